"""What the command line says where it refuses something."""

import pytest

from lightning_ncmtl.main import main


def refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line in which it refuses these arguments."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    (line,) = [line for line in error.splitlines() if line.startswith("ncmtl: error: ")]
    return line
