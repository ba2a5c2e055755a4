"""`python -m runner.reproduce`: the same bits from what a run kept, and which stage differs where they are not."""

import argparse
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from results import columns
from runner.config.compose import compose_experiment
from runner.config.experiment import GROUPS
from runner.config.restore import classes, restore
from runner.records import runs
from runner.records.comparison import Comparison, compare, conclusion, differences
from runner.records.result import Result
from runner.records.runs import MadeBy, Run
from runner.reproduce import Repetition, main, parse, place_of, prepared
from runner.system import files
from runner.system.errors import UserError
from runner.tracking import Tracking
from tests.conftest import ROOT, cli_in, copy_run, save_small_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),  # as many as the command line's processes have
    pytest.mark.xdist_group("reproduce"),  # `original` is made once
]

SHORT = (
    "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=24", "recipe=published", "schedule=short",
    "train.max_steps=20", "train.per_device_train_batch_size=8", "train.learning_rate=1e-2", "train.warmup_steps=2",
    "finetune.max_steps=8", "finetune.per_device_train_batch_size=8", "finetune.learning_rate=1e-2",
    "distill.label_weight=1",
)  # fmt: skip
REPRODUCE = ("-m", "runner.reproduce")


def made(place: Path, *overrides: str) -> Path:
    """The folder of a new run of a small model in `place`."""
    model = save_small_model(place / "small-model")
    done = cli_in(place)("-m", "runner", "model=hub", f"model.path={model}", *SHORT, *overrides)
    assert done.returncode == 0, done.stderr
    (folder,) = place.glob("outputs/*-s*/")
    return folder


@pytest.fixture(scope="module")
def original(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `outputs/`, which was reproduced once."""
    place = copy_run(finished_run, tmp_path_factory.mktemp("original"))
    folder = run_in(place)
    done = cli_in(place)(*REPRODUCE, str(folder.relative_to(place)))
    assert done.returncode == 0, done.stdout + done.stderr
    (place / "told.txt").write_text(done.stdout)
    return place


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    """A copy of it; the store too, whose runs lie in other folders."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def run_in(place: Path) -> Path:
    (folder,) = place.glob("outputs/*-s*/")
    return folder


def rewritten(folder: Path, **changes: object) -> None:
    """Change result.json, with a checksum that agrees."""
    result = files.read_json(folder / "result.json")
    assert result is not None
    files.write_json(folder / "result.json", {**result, **changes})


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def compared(place: Path, tolerance: float | None = None) -> Comparison:
    """The run of `place` beside the reproduction that lies there, without running anything."""
    (again,) = place.glob("reproductions/*/*-s0-*/")
    values = files.read_json(again / "result.json")
    assert values is not None
    return compare(runs.find(str(run_in(place)), Tracking()), Result(**{**values, "folder": str(again)}), [], tolerance)


def circumstances(place: Path) -> list[str]:
    """What is not as it was when the run of `place` was made."""
    return prepare(place).circumstances


def prepare(place: Path) -> Repetition:
    options = parse([str(run_in(place)), "--output-dir", str(place / "reproductions")])
    run = runs.find(options.run, Tracking())
    return prepared(run, options, place_of(run, options.output_dir, False))


# --- the same -----------------------------------------------------------------------------------------------


def test_the_same_comes_out_bit_for_bit(original: Path) -> None:
    told = (original / "told.txt").read_text()
    assert "No circumstance is known to differ." in told
    assert "Reproduced bit for bit: all 6 stages and the scores are the same." in told
    stages = [line.split()[0] for line in told.splitlines() if line.split()[1:] == ["same"]]
    assert stages == ["prepare", "finetune", "evaluate_dense", "teacher", "prune", "evaluate"]

    # Not what it says: what lies there.
    (again,) = original.glob("reproductions/*/*-s0-*/")
    assert again.name == run_in(original).name  # the identity is in it
    for name in ("model/model.safetensors", "predictions.json", "dense_predictions.json", "scores.json"):
        assert (again / name).read_bytes() == (run_in(original) / name).read_bytes(), name
    assert result_of(again)["identity"] == result_of(run_in(original))["identity"]
    # It was computed, with a cache of its own.
    assert {p.name for p in again.parent.glob("cache/*/")} >= {"dense", "features", "scores", "teacher"}
    with sqlite3.connect(original / "mlflow.db") as store:
        losses = store.execute("select count(*) from metrics where key = 'finetune/loss' group by run_uuid").fetchall()
    assert len(losses) == 2


def test_a_reproduction_is_no_row_of_the_table(original: Path) -> None:
    done = cli_in(original)("-m", "results", "--format", "json")
    assert [row["seeds"] for row in json.loads(done.stdout)] == [[0]]
    with sqlite3.connect(original / "mlflow.db") as store:
        query = "select t.value, r.run_uuid from runs r join tags t on t.run_uuid = r.run_uuid where t.key = ?"
        kinds = dict(store.execute(query, (columns.KIND,)).fetchall())
        assert kinds.keys() == {columns.PRUNED, columns.REPRODUCTION}
        assert store.execute(query, (columns.REPRODUCES,)).fetchall() == [
            (kinds[columns.PRUNED], kinds[columns.REPRODUCTION])
        ]
        assert store.execute(query, (columns.REPRODUCED,)).fetchall() == [("bit for bit", kinds[columns.REPRODUCTION])]
    (file,) = original.glob(f"mlartifacts/**/{columns.COMPARISON}")
    kept = json.loads(file.read_text())
    assert (kept["verdict"], set(kept["stages"].values()), kept["circumstances"]) == ("bit for bit", {True}, [])


def test_by_its_id_a_second_call_tells_the_same_and_again_computes(original: Path) -> None:
    folder = run_in(original)
    (again,) = original.glob("reproductions/*/*-s0-*/")
    before = (again / "model" / "model.safetensors").stat().st_mtime_ns
    done = cli_in(original)(*REPRODUCE, result_of(folder)["mlflow_run"])
    assert done.returncode == 0, done.stderr
    assert "It resumes what was begun there; --again starts anew." in done.stderr
    assert "Reproduced bit for bit" in done.stdout
    assert (again / "model" / "model.safetensors").stat().st_mtime_ns == before
    done = cli_in(original)(*REPRODUCE, str(folder), "--again", "--no-log")
    assert done.returncode == 0, done.stderr
    assert "is not resumed" in done.stderr
    assert "Reproduced bit for bit" in done.stdout
    assert (again / "model" / "model.safetensors").stat().st_mtime_ns > before


@pytest.mark.slow
def test_one_that_is_killed_goes_on(original: Path, tmp_path: Path) -> None:
    folder = made(tmp_path, "pattern=2:4", "train.max_steps=200", "train.save_steps=20", "seed=3")
    command = [sys.executable, *REPRODUCE, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    deadline = time.monotonic() + 200
    while not any(tmp_path.glob("reproductions/*/*/checkpoints/checkpoint-*")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM, text
    done = cli_in(tmp_path)(*REPRODUCE, str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It resumes what was begun there" in done.stderr
    assert "the dense model is cached in" in done.stderr  # that of the reproduction, not fine-tuned twice
    assert "Reproduced bit for bit: all 6 stages" in done.stdout
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select status from runs").fetchall() == [("FINISHED",)] * 2


def test_without_pruning_from_a_finetuned_model_that_has_moved(tmp_path: Path) -> None:
    folder = made(tmp_path, "prune=false", f"model.finetuned={tmp_path / 'small-model'}")
    (tmp_path / "small-model").rename(tmp_path / "moved")
    done = cli_in(tmp_path)(*REPRODUCE, str(folder), "--no-log")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: model.finetuned={tmp_path / 'small-model'}: there is no such folder")
    assert "add model.finetuned=PLACE to this command" in done.stderr
    done = cli_in(tmp_path)(*REPRODUCE, str(folder), f"model.finetuned={tmp_path / 'moved'}", "--no-log")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No circumstance is known to differ." in done.stdout
    assert "all 3 stages and the scores are the same" in done.stdout
    assert "sparse" not in done.stdout
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)  # --no-log


# --- not the same -------------------------------------------------------------------------------------------


def test_the_first_stage_that_differs_is_named(place: Path) -> None:
    folder = run_in(place)
    stages = result_of(folder)["stages"]
    rewritten(folder, stages={**stages, "teacher": "0" * 8, "evaluate": "0" * 8})
    done = cli_in(place)(*REPRODUCE, str(folder))
    assert done.returncode == 1, done.stderr
    assert "Not reproduced: teacher differs first; the scores are the same." in done.stdout
    differing = [line.split()[0] for line in done.stdout.splitlines() if line.split()[1:] == ["differs"]]
    assert differing == ["teacher", "evaluate"]
    assert "one of the two machines did not compute as it should" in done.stdout
    for stage in stages:
        rewritten(folder, stages={**stages, stage: "0" * 8, "evaluate": "0" * 8})
        found = compared(place)
        assert (found.first, found.verdict) == (stage, f"differs first: {stage}")
    rewritten(folder, stages={name: made for name, made in stages.items() if name != "teacher"})
    assert compared(place).first == "teacher"  # only one of the two kept logits
    rewritten(folder, stages=stages)
    assert (compared(place).first, compared(place).same) == (None, True)


def test_other_base_weights_are_seen_before_and_after(place: Path) -> None:
    file = place / "small-model" / "model.safetensors"
    weights = load_file(file)
    name = "bert.encoder.layer.0.output.dense.weight"
    weights[name] = weights[name] + torch.full_like(weights[name], 0.01)
    save_file(weights, file, {"format": "pt"})
    folder = run_in(place)
    done = cli_in(place)(*REPRODUCE, str(folder), f"model.path={place / 'small-model'}", "--no-log")
    assert done.returncode == 1, done.stderr
    before, after = done.stdout.split("\n\n")[0], done.stdout
    said = "model.path: the checkpoint differs, or its files were changed"
    assert said in before
    assert "prepare          same" in after
    assert "Not reproduced: finetune differs first" in after
    assert "may be the reason" in after
    (again,) = [f for f in place.glob("reproductions/*/*-s0-*/") if f.name != folder.name]  # another identity
    assert result_of(again)["stages"]["finetune"] != result_of(folder)["stages"]["finetune"]


def test_what_was_made_otherwise_is_told_and_not_gone_on_with(place: Path) -> None:
    folder = run_in(place)
    by = result_of(folder)["made_by"]
    rewritten(folder, made_by={**by, "threads": 7, "packages": {**by["packages"], "torch": "1.0"}})
    begun = next(place.glob("reproductions/*/begun.json"))
    files.write_json(begun, {**by, "ranks": 2})
    done = cli_in(place)(*REPRODUCE, str(folder))
    assert f"  torch: 1.0 then, {by['packages']['torch']} now\n" in done.stdout
    assert "  threads: 7 then, 1 now (OMP_NUM_THREADS=7 gives the same number)\n" in done.stdout
    assert "is not resumed.\n  ranks: 2 then, 1 now" in done.stderr
    assert "fine-tuning the dense model" in done.stderr
    assert done.returncode == 0  # and yet the same came out


def test_a_configuration_or_a_model_that_was_changed_since(place: Path) -> None:
    assert circumstances(place) == []
    folder = run_in(place)
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("max_steps: 20", "max_steps: 21"))
    file = folder / "model" / "model.safetensors"
    save_file({name: w * 2 for name, w in load_file(file).items()}, file, {"format": "pt"})
    assert circumstances(place) == [
        "config.yaml is not as the run wrote it: it gives another identity",
        f"{folder / 'model'} was changed since: model.safetensors is not what was written",
    ]
    (folder / "config.yaml").write_text(text)
    (folder / "model" / files.MANIFEST).unlink()
    files.publish(folder / "model", folder / "sealed")  # by somebody who knows how
    (folder / "sealed").rename(folder / "model")
    assert circumstances(place) == [
        f"{folder / 'model'} was changed since: its weights are not those that the run made"
    ]


# --- refused ------------------------------------------------------------------------------------------------


def test_what_cannot_be_reproduced(place: Path) -> None:
    done = cli_in(place)(*REPRODUCE, str(run_in(place)), "seed=1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: seed=1: only what has moved since can be named here, with its new place")
    for given, message in (
        ("nowhere", "nowhere: neither a run's folder nor the id of a run in MLflow"),
        (str(place / "small-model"), "there is no result.json, or a damaged one: give the folder of a finished run"),
    ):
        with pytest.raises(UserError, match=message):
            main([given])
    (run_in(place) / "result.json").unlink()
    with pytest.raises(UserError, match=r"there is no result\.json"):
        main([str(run_in(place))])


def test_a_folder_of_another_run_is_not_cleared(place: Path) -> None:
    run = runs.find(str(run_in(place)), Tracking())
    with pytest.raises(UserError, match="a run's own folder"):
        place_of(run, place / "outputs", False)
    assert place_of(run, place / "elsewhere", True) == place / "elsewhere" / f"{run.folder.name}-with-cache"


# --- the configuration --------------------------------------------------------------------------------------


@pytest.mark.parametrize("overrides", [
    ["model=tiny", "dataset=demo", "pattern=4x1", "seed=7"],
    ["model=bert-base", "pattern=2:4", "criterion=platon", "distill=simkd", "schedule=one_shot", "prune=false"],
    ["model=bert-mini", "pattern=dense", "allocation=uniform", "regularizer=group_lasso", "distill=none"],
    ["pattern=rows", "criterion=magnitude", "criterion.reduce=max", "train.precision=bf16", "model.excluded=[*.query]",
     "+allocation.layers={*.query:{target:0.5},*.layer.0.*:{excluded:true}}"],
    ["distill=hidden", "+distill.layers={2: 4, 4: 12}"],
    ["distill=simkd", "distill.projector=mlp"],
])  # fmt: skip
def test_a_configuration_comes_back_exactly(overrides: list[str]) -> None:
    experiment, origin = compose_experiment(overrides)
    back = restore(origin.yaml, classes(experiment), {})
    assert back.experiment == experiment
    assert [type(getattr(back.experiment, g)) for g in GROUPS] == [type(getattr(experiment, g)) for g in GROUPS]
    assert (back.yaml, back.added) == (origin.yaml, [])
    moved = restore(origin.yaml, classes(experiment), {"model.path": "/new", "train.precision": None})
    assert moved.experiment == replace(
        experiment, model=replace(experiment.model, path="/new"), train=replace(experiment.train, precision=None)
    )


def test_a_configuration_of_another_version() -> None:
    experiment, origin = compose_experiment(["model=tiny", "dataset=demo"])
    chosen = classes(experiment)
    older = origin.yaml.replace("  batch_tokens: null\n", "", 1)
    assert restore(older, chosen, {}).added == ["train.batch_tokens"]
    with pytest.raises(UserError, match=r"Key 'of_tomorrow' not in 'Experiment'.*take the version that made the run"):
        restore(origin.yaml + "of_tomorrow: 1\n", chosen, {})
    with pytest.raises(UserError, match="no criterion of the class Crystal"):
        restore(origin.yaml, {**chosen, "criterion": "Crystal"}, {})
    with pytest.raises(UserError, match="learning_rate=-1"):
        restore(origin.yaml, chosen, {"train.learning_rate": "-1"})
    run = Run(Path("outputs/x"), None, origin.yaml, {"made_by": {"of tomorrow": 1}})
    with pytest.raises(UserError, match="another version of the runner"):
        runs.made_by_of(run)
    with pytest.raises(UserError, match="another version of the runner"):
        runs.restored(Run(Path("outputs/x"), None, origin.yaml, {}), {})


# --- what is said -------------------------------------------------------------------------------------------


def test_differences_name_what_differs(original: Path) -> None:
    then = MadeBy(**result_of(run_in(original))["made_by"])
    assert list(differences(then, replace(then, folder="/elsewhere", overrides=["seed=0"]))) == []
    now = replace(then, data="x", checkpoints={"model.path": "y"}, stages={**then.stages, "prune": 99},
                  hardware="abacus", ranks=4, code="z")  # fmt: skip
    assert [line.split(":")[0] for line in differences(then, now)] == [
        "dataset.path", "model.path", "version of the stage prune", "hardware", "ranks", "code of the runner"
    ]  # fmt: skip
    assert asdict(then)["classes"]["criterion"] == "SnipMomentum"
    assert then.precision["train"] in ("float32", "bf16")  # as it was resolved


def test_the_conclusion_follows_from_stages_scores_and_tolerance() -> None:
    def found(same: bool, now: float, tolerance: float | None = None) -> Comparison:
        return Comparison("a", "b", [], {"prepare": True, "finetune": same}, {"dense f1": (0.5, now)}, tolerance)

    assert (found(True, 0.5).reproduced, found(True, 0.5).first) == (True, None)
    assert not found(False, 0.5).reproduced
    assert found(False, 0.5).verdict == "differs first: finetune"
    assert found(True, 0.6).verdict == "differs first: scores"
    assert found(False, 0.51, tolerance=0.02).reproduced
    assert not found(False, 0.53, tolerance=0.02).reproduced
    assert "more than the tolerance of 0.02" in "\n".join(conclusion(found(False, 0.53, tolerance=0.02)))
    assert "within the tolerance of 0.02" in "\n".join(conclusion(found(False, 0.51, tolerance=0.02)))


def test_options_out_of_range() -> None:
    assert isinstance(parse(["run", "--tolerance", "0.5"]), argparse.Namespace)
    for wrong in ("-1", "2", "nan", "x"):
        with pytest.raises(SystemExit):
            parse(["run", f"--tolerance={wrong}"])
