"""Settings that cannot be used are told in one line, by the command itself: with the value found and the way out."""

from pathlib import Path

import pytest

from lightning_ncmtl.errors import InputError
from lightning_ncmtl.main import main
from lightning_ncmtl.wrong_settings import explain, explain_value, read_file

TABLES = ["--data.source", "Tables", "--data.source.train", "nowhere/*.csv"]
WRONG = [
    (["--data.source", "Tabels"], "data.source: there is no class 'Tabels' for it: did you mean Tables?"),
    (["--data.source", "Tables"], "data.source: lightning_ncmtl.datamodules.sources.Tables needs train: set --data.so"),
    ([*TABLES, "--data.source.texts", "a"], "sources.Tables has no 'texts': did you mean text?"),
    (["--data.batches.balance", "x"], "data.batches.balance must be proportional, uniform or a number, found 'x'"),
    (["--data.batch_size", "9"], "there is no option --data.batch_size: did you mean --data.batches.size?"),
    (["--model.metrics", "AUROC"], "model.metrics must be a list such as [AUROC] or null, found 'AUROC'"),
    (["--model.optimizer.lr", "x"], "model.optimizer.lr must be a number, found 'x'"),
    (["--model.optimizer", "Adm"], "model.optimizer: there is no class 'Adm' for it: did you mean Adam?"),
    (["--model", "HAN"], "model: there is no class 'HAN' for it: choose one of ASPMTL, CrossStitch, HardShare"),
    (["--model.encoder", "lightning_ncmtl.encoders.HANN"], "there is no class 'lightning_ncmtl.encoders.HANN' for it"),
    (["--model.encoder.hidden", "3"], "lightning_ncmtl.encoders.HAN has no 'hidden': did you mean hidden_size?"),
    (["--model.cluster_features", "[8, a]"], "model.cluster_features must be a whole number, found 'a'"),
    (["--model.dropout", "2"], "dropout must be at least 0 and less than 1, found 2.0"),
    (["--clustering.warmup", "late"], "clustering.warmup must be shared or apart, found 'late'"),
    (["--trainer", "3"], "trainer must be a mapping of settings, or a file of them, found '3'"),
    (["--trainer.max_epochs"], "argument --trainer.max_epochs: expected one argument"),
    (["--seed_everything", "-1"], "seed_everything must be from 0 to 4294967295, found -1"),
    (["--run_dir", "x", "a.csv", "b.csv"], "'a.csv' belongs to no option: put quotes around a pattern of files"),
    (["stray"], "'stray' belongs to no option: options are such as --trainer.max_epochs 5"),
]
FILES = [
    ("data:\n  split: {folds: 3\n", "wrong.yaml:3 cannot be read: expected ',' or '}', but got"),
    ("data:\n\tseed: 3\n", "wrong.yaml:2 cannot be read: found character"),
    ("data:\n  num_workers: 0\n  num_workers: 1\n", "wrong.yaml:3 cannot be read: 'num_workers' stands here twice"),
    ("text,label\ngood,1\n", "wrong.yaml must have settings, such as 'seed_everything: 1', found 'text,label good,1'"),
    ("dat:\n  batches: {size: 3}\n", "there is no setting 'dat.batches.size': did you mean data.batches.size?"),
    (
        "modl: {num_clusters: 3}\n",
        "there is no setting 'modl.num_clusters': did you mean model.init_args.num_clusters?",
    ),
    ("modl: 3\n", "there is no setting 'modl': did you mean model?"),
    ("data:\n  batches: 3\n", "data.batches must be a mapping of settings, found '3'"),
    ("trainer: 3\n", "trainer must be a mapping of settings, found '3'"),
    ("data:\n  source: 5\n", "data.source must be the name of a class, or its class_path and init_args, found '5'"),
]


def refuse(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The only line that a command ends with."""
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Seed set to")]
    return line


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[message for _, message in WRONG])
def test_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.csv").touch()
    line = refuse(["fit", *arguments], capsys)
    assert line.startswith("ncmtl: error: ")
    assert message in line


@pytest.mark.parametrize(("content", "message"), FILES, ids=[message for _, message in FILES])
def test_one_line_about_a_file(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.yaml").write_text(content)
    assert message in refuse(["fit", "--config", "wrong.yaml"], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--jobs", "two"], "jobs must be a whole number, found 'two'"),
        (["--jobs", "2", "x.yaml"], "'x.yaml' belongs to no option"),
        (["--sseds", "[1]"], "there is no option --sseds: did you mean --seeds?"),
    ],
)
def test_one_line_about_a_comparison(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "compare.yaml").write_text("systems: {A: {}, B: {}}\noutput: here\n")
    assert message in refuse(["compare", "--config", str(tmp_path / "compare.yaml"), *arguments], capsys)


def test_a_system_that_stands_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "compare.yaml").write_text("output: here\nsystems:\n  A: {}\n  A: {}\n")
    assert "compare.yaml:4 cannot be read: 'A' stands here twice" in refuse(
        ["compare", "--config", str(tmp_path / "compare.yaml")], capsys
    )


def test_files_that_are_right(tmp_path: Path) -> None:
    file = tmp_path / "right.yaml"
    for content, expected in [
        ("", {}),
        ("# nothing\n", {}),
        ("a: {b: 1}\nc: {b: 1}\n", {"a": {"b": 1}, "c": {"b": 1}}),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}\n", {"a": {"b": 1}, "c": {"b": 2}}),
    ]:
        file.write_text(content)
        assert read_file(str(file)) == expected
    file.write_bytes(b"a: \xff\n")
    with pytest.raises(InputError, match=r"right.yaml cannot be read: .* can't decode byte 0xff"):
        read_file(str(file))


def test_what_is_not_known_is_told_as_it_is_in_a_line() -> None:
    assert explain("Something\n  - of another\n\n    version") == "Something - of another version"
    assert explain('Parser key "a":\n  Parser key "b":\n    odd') == (
        "a.b must be the name of a class, or its class_path and init_args, found ''"
    )
    assert explain("unrecognized arguments: --xyzzy 3") == "there is no option --xyzzy (--help_all shows all)"


def test_a_fault_of_the_program_is_none_of_the_user() -> None:
    error = ValueError("wrapped")
    error.__cause__ = TypeError("a bug")
    with pytest.raises(ValueError, match="wrapped"):
        explain_value(error)
