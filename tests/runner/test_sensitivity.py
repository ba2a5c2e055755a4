"""`python -m runner.sensitivity`, through its command line."""

import json
from pathlib import Path

import pytest

from runner import sensitivity
from runner.system.errors import UserError
from tests.conftest import FINISHED, Cli, cli_in, copy_run

DATA = ("dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=60")
KINDS = ["Q", "K", "V", "O", "FFN-in", "FFN-out"]


def test_a_finished_runs_dense_model_by_the_same_overrides(finished_run: Path, tmp_path: Path) -> None:
    place = copy_run(finished_run, tmp_path / "copy")
    run = cli_in(place)
    overrides = ("model=hub", f"model.path={finished_run / 'small-model'}", *FINISHED)
    before = {file for file in place.rglob("*") if "features" not in file.parts}
    done = run("-m", "runner", "sensitivity", *overrides, "--sparsity", "0.5,0.75", "--output", "by-layer.svg")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].endswith("on demo, 4x1: rise of the loss if one matrix alone is pruned, in nats a training window")
    assert lines[3].split() == ["layer", "kind", "50%", "75%"]
    assert [line.split()[:2] for line in lines[4:16]] == [[layer, kind] for layer in "01" for kind in KINDS]
    assert lines[16].split()[0] == "all"
    after = {file for file in place.rglob("*") if "features" not in file.parts}
    assert {file.name for file in after - before} == {"by-layer.svg"}  # nothing is trained, nothing is saved
    svg = (place / "by-layer.svg").read_text(encoding="utf-8")
    assert all(text in svg for text in ("FFN-out", "50% zeros", "75% zeros"))
    again = run("-m", "runner", "sensitivity", *overrides, "--sparsity", "0.75", "--json", "--output", "again.svg")
    layers = json.loads(again.stdout)["layers"]
    assert [(layer["layer"], layer["kind"]) for layer in layers] == [(layer, kind) for layer in "01" for kind in KINDS]
    assert all(list(layer["losses"]) == ["0.75"] and layer["losses"]["0.75"] >= 0 for layer in layers)


def test_without_a_dense_model_the_message_has_the_command_that_makes_one(cli: Cli, small_model: Path) -> None:
    done = cli("-m", "runner.sensitivity", "model=hub", f"model.path={small_model}", *DATA, "pattern=2:4")
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr[done.stderr.index("error: ") :]
    assert "nothing is trained here: name a fine-tuned one with model.finetuned=PLACE" in error
    assert "python -m runner model=hub" in error
    assert error.strip().endswith("pattern=2:4 prune=false")


@pytest.mark.parametrize(("arguments", "message"), [
    (["pattern=dense"], "pattern=dense prunes nothing; choose one that does"),
    (["prune=false"], "prune=false: there is no pattern to look at"),
    (["pattern=2:4", "--sparsity", "0.6"], "--sparsity 0.6: 2:4 has one sparsity, its own"),
    (["model.sparse=somewhere"], "model.sparse=somewhere: the dense model is looked at"),
    (["--sparsity", "50"], "--sparsity 50: give numbers between 0 and 1"),
    (["--sparsity", "half"], "--sparsity half: give numbers between 0 and 1"),
    (["--output", "picture.gif"], "--output picture.gif: a picture ends in .png, .svg, .pdf"),
    (["--output", "nowhere/picture.png"], "--output nowhere/picture.png: there is no folder nowhere"),
    (["patern=4x1"], "pattern"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        sensitivity.main(["model=tiny", "dataset=demo", *arguments])
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []
