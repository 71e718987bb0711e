"""The default configuration stands at the root of the repository; an installed package has a copy of it."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConfig(build_py):
    """Copies the file: a link in the package would be no link where git makes none, as on Windows."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("lightning_cli.yaml", str(Path(self.build_lib) / "lightning_ncmtl"))


setup(cmdclass={"build_py": BuildWithConfig})
