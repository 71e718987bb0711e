"""What the command line says before it imports anything that takes seconds."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_ncmtl import cli, usage
from lightning_ncmtl.comparison import compare
from lightning_ncmtl.errors import InputError
from lightning_ncmtl.main import main

LIGHT = """
import sys
from lightning_ncmtl.main import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print("exit", stop.code)
print("heavy:", sorted({"torch", "pytorch_lightning", "jsonargparse", "yaml", "numpy"} & sys.modules.keys()))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["fit", "--help"],
        ["compare", "-h"],
        ["doctor", "--help"],
        ["bogus"],
        ["fit", "--max_epochs", "3"],
        ["test", "--ckpt_path", "nowhere"],
    ],
    ids=" ".join,
)
def test_help_and_refusals_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, timeout=300)
    assert done.stdout.splitlines()[-1] == "heavy: []", done.stderr


def test_known_options_are_those_of_the_parser() -> None:
    class Parser(cli.NCMTLCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            for name, inner in parser._subcommands_action.choices.items():
                found[name] = {action.dest.split(".")[0] for action in inner._actions}
            raise KeyError

    found: dict[str, set[str]] = {}
    with pytest.raises(KeyError):
        cli.make_cli(["fit"], Parser)
    assert found == {name: usage.known(name) for name in cli.NCMTLCLI.subcommands()}
    assert usage.SUBCOMMANDS.keys() == {*found, "compare", "doctor"}


@pytest.mark.parametrize("subcommand", usage.SUBCOMMANDS)
def test_each_subcommand_has_a_page(subcommand: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([subcommand, "--help"])
    page = capsys.readouterr().out
    assert page.startswith(f"usage: ncmtl {subcommand}")
    assert "`" not in page
    if subcommand == "compare":
        arguments = set(inspect.signature(compare).parameters) - {"arguments", "command"}
        assert all(f"    {name}: " in page for name in arguments)
        assert "command:" not in page
    elif subcommand != "doctor":
        assert usage.DEFAULT_CONFIG.read_text() in page
        assert all(f"  {name} " in page for name in usage.known(subcommand) & usage._GROUPS.keys())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max_epochs", "3"], "unknown option --max_epochs: did you mean --trainer.max_epochs?"),
        (["--cluster_features=[8]"], "did you mean --model.init_args.cluster_features?"),
        (["--trainr.devices", "2"], "unknown option --trainr.devices: did you mean --trainer.devices?"),
        (["--run_dirs", "x"], "did you mean --run_dir?"),
        (["--xyzzy"], r"unknown option --xyzzy \(ncmtl fit --help shows all\)"),
        (["--output", "x"], r"unknown option --output \("),
        (["--config", "nowhere.yaml"], "the configuration 'nowhere.yaml' does not exist: set --config to a file"),
        (["--config=nowhere.yaml"], "the configuration 'nowhere.yaml' does not exist"),
        (["--ckpt_path", "."], "the checkpoint '.' does not exist: set --ckpt_path to a file"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        usage.check("fit", arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trainer.max_epochs", "3", "--seed", "2", "--data.domains+=a", "--config", "trainer: {max_epochs: 3}"],
        ["--config", __file__, "--ckpt_path=null", "--print_config", "--data.source.help", "Tables"],
        ["--trainer.callbacks+", "RichProgressBar", "--run_dir", "--weights_only=true", "-x", "--"],
    ],
)
def test_what_may_be_an_option_is_left_to_the_parser(arguments: list[str]) -> None:
    usage.check("fit", arguments)


@pytest.mark.parametrize("arguments", [["--help"], ["fit", "--help"]], ids=" ".join)
def test_a_reader_that_has_seen_enough(arguments: list[str]) -> None:
    ours = subprocess.Popen(
        [sys.executable, "-m", "lightning_ncmtl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert ours.stdout is not None
    ours.stdout.close()
    assert ours.communicate(timeout=300)[1] == ""
    assert ours.returncode == 141  # as a shell tells SIGPIPE


def test_all_settings_are_listed_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["fit", "--help_all"])
    assert "--trainer.accumulate_grad_batches" in capsys.readouterr().out


def test_a_configuration_before_the_subcommand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.yaml").write_text("fit: {trainer: {max_epochs: 7}}\n")
    with pytest.raises(SystemExit, match="0"):
        main(["--config", str(tmp_path / "all.yaml"), "fit", "--print_config"])
    assert "max_epochs: 7" in capsys.readouterr().out
