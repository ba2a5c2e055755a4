"""`python -m runner.tradeoff`, through its command line."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from results.quick_look import picture
from runner import tradeoff
from runner.speed import timing
from runner.speed.runtimes import Runtime
from runner.system.errors import UserError
from tests.conftest import FINISHED, Cli, cli_in, copy_run

SMALL = ("--examples", "60", "--length", "16", "--seconds", "0", "criterion.samples=24")


@pytest.mark.slow
def test_points_are_those_of_runs_and_are_found_again(finished_run: Path, tmp_path: Path) -> None:
    place = copy_run(finished_run, tmp_path / "copy")
    run = cli_in(place)
    overrides = ("model=hub", f"model.path={finished_run / 'small-model'}", *FINISHED[:-1])
    command = ("-m", "runner", "tradeoff", *overrides, *SMALL, "--output", "look")
    first = run(*command, "--sparsity", "0.5")
    assert first.returncode == 0, first.stderr
    assert first.stderr.count("choosing masks and solving for survivors took") == 2
    title, scored, calibrated, *_ = first.stdout.splitlines()
    assert title.endswith("on demo: pruned in one shot, nothing trained")
    assert scored.startswith("scored in float32 on 60 examples of the evaluation set, which the table of results")
    assert scored.endswith("set dataset.holdout=0.1")
    assert calibrated == "calibrated on 24 training windows"
    lines = first.stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("pattern"))
    assert lines[at].split() == ["pattern", "zeros", "f1", "points", "ms", "to", "best", "dense", "runtime"]
    assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["dense", "structured", "4x1"]
    assert {file.name for file in (place / "look").iterdir()} == {"points.json", "tradeoff.png"}
    before = json.loads((place / "look" / "points.json").read_text())

    again = run(*command, "--sparsity", "0.5,0.75", "--json")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count(f"from {Path('look') / 'points.json'}") == 2
    found = json.loads(again.stdout)
    points = found["points"]
    assert [(p["pattern"], p["target"]) for p in points] == [
        ("dense", 0), ("structured", 0.5), ("structured", 0.75), ("4x1", 0.5), ("4x1", 0.75),
    ]  # fmt: skip
    after = json.loads((place / "look" / "points.json").read_text())
    stored = {key: value for key, value in before.items() if isinstance(value, dict)}
    assert len(stored) == 2
    assert {key: after[key] for key in stored} == stored
    for point in points[1:]:
        assert point["zeros"] == pytest.approx(point["target"], abs=0.05)
        runtimes = {each["runtime"] for each in point["timings"]}
        assert "torch" in runtimes
        assert all(each["precision"] != "int8" for each in point["timings"])
    assert 0 < points[0]["score"] <= 1

    done = run("-m", "runner", *overrides, "criterion=obs", "criterion.samples=24", "schedule=one_shot",
               "train.max_steps=-1", "train.num_train_epochs=0", "pattern=4x1",
               "pattern.target_sparsity=0.75", "output_dir=single")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (result,) = (json.loads(file.read_text()) for file in place.glob("single/*/result.json"))
    assert result["sparse"]["f1"] == points[-1]["score"]
    assert result["dense"]["f1"] == points[0]["score"]


def test_without_a_dense_model_the_message_has_the_command_that_makes_one(cli: Cli, small_model: Path) -> None:
    done = cli("-m", "runner.tradeoff", "model=hub", f"model.path={small_model}", "dataset=demo",
               "dataset.train_examples=64", "dataset.eval_examples=60", "pattern=4x1")  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr[done.stderr.index("error: ") :]
    assert "nothing is trained here: name a fine-tuned one with model.finetuned=PLACE" in error
    assert "prune=false" in error


@pytest.mark.parametrize(("arguments", "message"), [
    (["pattern=dense"], "pattern=dense prunes nothing; choose some that do: pattern=structured,4x1"),
    (["prune=false"], "prune=false: there is nothing to trade"),
    (["pattern=4x1,2:4", "--sparsity", "0.6"], "--sparsity 0.6: 2:4 has one sparsity, its own"),
    (["pattern=4x1", "pattern.target_sparsity=0.5"], "give the sparsities with --sparsity, such as 0.3,0.5"),
    (["pattern.target_speedup=2"], "pattern.target_speedup is one point: give the sparsities with --sparsity"),
    (["model.sparse=somewhere"], "model.sparse=somewhere: the dense model is pruned"),
    (["model.num_layers=1"], "model.layers and model.num_layers need a training"),
    (["criterion=magnitude"], "criterion=magnitude: the quick look prunes by obs"),
    (["--sparsity", "50"], "--sparsity 50: give numbers between 0 and 1"),
    (["--sparsity", "0.99", "pattern=4x1"], "target sparsity 0.99 is above what max_per_layer=0.98 allows"),
    (["--examples", "0"], "--examples 0: give a number above 0"),
    (["--seconds", "-1"], "--seconds -1: give a number from 0"),
    (["--length", "9999"], "--length 9999: the model has 160 positions"),
    (["--output", "nowhere/here"], "--output nowhere/here: there is no folder nowhere"),
    (["patern=4x1"], "patern"),
])  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_pruned(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception) as error:  # noqa: PT011
        tradeoff.main(["model=tiny", "dataset=demo", "dataset.train_examples=20", "dataset.eval_examples=10",
                       *arguments])  # fmt: skip
    assert message in str(error.value)
    assert not list(tmp_path.glob("tradeoff-*"))


def test_what_only_a_training_reads_is_left_out_of_the_overrides() -> None:
    typed = ["model=tiny", "schedule=short", "schedule.end=0.5ep", "train.max_steps=9", "train.learning_rate=1e-4",
             "pattern=2:4,4x1", "model.finetuned=x"]  # fmt: skip
    overrides, patterns = tradeoff.with_defaults(typed, 300)
    assert patterns == ["2:4", "4x1"]
    assert overrides == [
        "model=tiny", "train.learning_rate=1e-4", "model.finetuned=x", "criterion=obs",
        "dataset.max_train_samples=1024", "dataset.max_eval_samples=300", "schedule=one_shot",
        "train.num_train_epochs=0",
    ]  # fmt: skip
    typed = ["dataset.max_eval_samples=9", "model.finetuned=x"]
    assert "dataset.max_eval_samples=300" not in tradeoff.with_defaults(typed, 300)[0]
    assert tradeoff.with_defaults(["model=tiny"], 300) == (
        ["model=tiny", "criterion=obs", "schedule=one_shot", "train.num_train_epochs=0"], ["structured", "4x1"]
    )  # fmt: skip


def point(pattern: str, target: float, score: float, ratio: float) -> Any:
    times = timing.Timing("torch", "float32", 1, 8, 1, 2.0, 1.9, 2.1, 2.0, ratio, 0.0, None)
    return tradeoff.quick_look.Point(pattern, target, target, score, [times])


def test_the_fastest_within_the_drop_is_named_with_its_command() -> None:
    points = [point("dense", 0, 0.8, 1.0), point("4x1", 0.5, 0.79, 1.5), point("4x1", 0.8, 0.6, 3.0),
              point("2:4", 0.5, 0.8, 0.9)]  # fmt: skip
    best = points[1]
    assert tradeoff.fastest(points, 0.03) is best
    assert tradeoff.fastest(points, 0.5) is points[2]
    assert tradeoff.fastest(points, 0.001) is None
    typed = shlex.split(tradeoff.command_of(best, ["model=tiny", "dataset.max_eval_samples=300", "criterion=obs"]))
    assert typed == ["python", "-m", "runner", "model=tiny", "criterion=obs", "pattern=4x1",
                     "pattern.target_sparsity=0.5"]  # fmt: skip
    assert tradeoff.command_of(points[3], ["a=b"]).endswith("a=b pattern=2:4")
    assert tradeoff.in_words(best, points[0]).startswith("4x1 at 50 %: 0.7900 (-1.0 points), 2.00 ms in torch float32")


def test_the_picture_has_each_pattern_and_its_zeros() -> None:
    lines = {"structured": [(1.4, 0.7, 0.3), (1.9, 0.6, 0.5)], "4x1": [(2.0, 0.72, 0.8)]}
    text = picture(lines, 0.78, "minilm on squad", "f1", "svg").decode()
    assert all(word in text for word in ("structured", "4x1", "30%", "80%", "minilm on squad", "dense"))


def test_ratios_are_to_the_runtime_of_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_turns", lambda *_: ([[2.0] * 5, [4.0] * 5, [8.0] * 5],) * 2)
    monkeypatch.setattr(timing, "_agreeing", lambda runtimes, _: [(runtime, 0.0) for runtime in runtimes])
    a, b, rival = (Runtime(name, "float32", lambda _: []) for name in ("a", "b", "rival"))
    inputs: Any = {"input_ids": __import__("torch").zeros(1, 8)}
    timings = timing.time_all([a, b], inputs, 1, 0, rival=rival)
    assert [(each.runtime, each.ratio_to_best_dense) for each in timings] == [("a", 4.0), ("b", 2.0)]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="this is a file; name a folder"):
        tradeoff.main(["model=tiny", "--output", str(tmp_path / "file")])
