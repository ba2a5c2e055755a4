"""dry_run=true says what the run then does, and does none of it."""

import json
import logging
import re
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from runner import dry_run, models
from runner.config.compose import compose, compose_experiment
from runner.config.sweep import Composer
from runner.config.training import Training
from runner.models import kind_of
from runner.stages.prepare import resolve
from runner.sweeps import preview
from runner.system.errors import UserError
from runner.system.text_tables import aligned
from tests.conftest import FINISHED, Cli, copy_run, save_small_model

SHORT = (
    "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=16", "recipe=published", "schedule=short",
    "train.per_device_train_batch_size=8", "train.max_steps=20", "finetune.per_device_train_batch_size=8",
    "finetune.max_steps=10",
)  # fmt: skip


def test_what_it_says_is_what_the_run_does(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT)
    said = cli(*command, "dry_run=true")
    assert said.returncode == 0, said.stderr
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "outputs").exists()
    assert not list((tmp_path / "cache").glob("dense/*"))
    assert said.stderr.rstrip().endswith("nothing was trained (dry_run=true)")
    assert "dense model: fine-tuned first, 10 optimizer steps" in said.stdout
    assert re.search(r"time of the pruning: about \d+ s, at [\d,]+ tokens a second over 6 steps", said.stdout)
    assert "time of the fine-tuning: about" in said.stdout
    on_a_gpu = (
        r"memory on a GPU: about 0\.[78] GB for the \S+ at batch 8 of \d+ tokens in \w+ \(.*\); fits cards of 8 GB"
    )
    assert re.search(on_a_gpu, said.stdout)

    done = cli(*command)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("*/")
    assert f"-> {folder.relative_to(tmp_path)}\n" in said.stderr
    pruning = json.loads((folder / "model" / "pruning.json").read_text())
    units = sum(layer["units"] for layer in pruning["layers"])
    assert f"pattern 4x1, target 0.8: {len(pruning['layers'])} layers, {units:,} units\n" in said.stdout
    assert "2 x intermediate.dense [64, 32]" in said.stdout
    expected = re.search(r"zeros in the end: (\d\.\d+)", said.stdout)
    assert expected is not None
    assert float(expected[1]) == pytest.approx(pruning["linear_ratio"], abs=2e-4)
    told = re.search(r"sparsity by step: (.*)", said.stdout)
    assert told is not None
    updates = {step: f"{sparsity:.3f}" for step, sparsity in pruning["updates"].items()}
    assert len(updates) > 8
    shown = dict(entry.split(": ") for entry in told[1].split(", ") if entry != "...")
    assert shown.items() <= updates.items()
    assert len(shown) == 7

    again = cli(*command, "dry_run=true")
    assert f"already finished: {folder.relative_to(tmp_path)}" in again.stdout
    assert "dense model: cached in cache/dense/" in again.stdout
    assert "time of the fine-tuning" not in again.stdout


def test_the_average_of_the_weights_takes_memory(cli: Cli, small_model: Path) -> None:
    averaged, plain = Training(average_weights=0.9), Training()
    trained = 10**9
    assert dry_run.memory(trained, [(plain, trained)] * 2) == "weights, gradients and AdamW's moments 16.0 GB"
    for trainings in ([averaged, plain], [plain, averaged], [averaged, averaged]):  # one after the other
        expected = "weights, gradients, AdamW's moments and a second set of weights 20.0 GB"
        assert dry_run.memory(trained, [(training, trained) for training in trainings]) == expected
    half = [(averaged, trained // 2), (plain, trained // 2)]  # the rest is frozen
    assert dry_run.memory(trained, half).endswith(" 12.0 GB")
    given = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT, "dry_run=true")
    assert "memory: weights, gradients and AdamW's moments " in cli(*given).stdout
    said = cli(*given, "train.average_weights=0.9")
    assert "memory: weights, gradients, AdamW's moments and a second set of weights " in said.stdout


def test_schedules_of_some_layers_are_listed_and_refused_early(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    given = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT, "dry_run=true",
             "train.max_steps=20", "schedule=short")  # fmt: skip
    own = "{schedule:{start:1,end:5,frequency:2},allocation:uniform}"
    said = cli(*given, f"+allocation.layers={{*.query:{own}}}")
    assert said.returncode == 0, said.stderr
    words = "pattern 4x1 spread uniform, end=5, frequency=2, start=1"
    assert re.search(rf"^{words}, target 0.8: 2 layers, 512 units$", said.stdout, re.MULTILINE)
    assert f"  of {words}: 1: 0.000, 3: 0.700, 5: 0.800\n" in said.stdout
    assert "sparsity by step: 1: 0.000, 2: 0.000, 3: 0.184, 4: " in said.stdout
    for wrong, words in (
        ("begin:3", "schedule.begin=3: Gradual has no begin; it has start, decay, initial, end, frequency, cooldown"),
        ("start:soon", "start='soon' is no length of time"),
        ("end:40", "the schedule is longer than the training: it ends at step 40 of 20"),
    ):
        refused = cli(*given, f"+allocation.layers={{*.query:{{schedule:{{{wrong}}}}}}}")
        assert refused.returncode == 1
        message = refused.stderr.splitlines()[-1]
        assert "allocation.layers, for bert.encoder.layer.0.attention.self.query.weight: " in message
        assert words in message
        assert "Traceback" not in refused.stderr
    assert not (tmp_path / "outputs").exists()


def test_layers_that_stay_dense_are_named_with_the_reason(cli: Cli, small_model: Path) -> None:
    said = cli("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=block", "pattern.rows=64", *SHORT,
               "+allocation.layers={*.key:{excluded:true}}", "dry_run=true")  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert "left dense: 2 layers: allocation.layers excludes it\n" in said.stdout
    assert "left dense: 6 layers: [32, 32] does not divide into blocks of 64 rows by 1 columns\n" in said.stdout
    assert "pattern 64x1, target 0.8: 2 layers, 64 units\n" in said.stdout
    assert "not candidates: qa_outputs" in said.stdout


def test_what_the_run_would_refuse_is_refused(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    given = ("-m", "runner", "model=hub", f"model.path={small_model}", *SHORT, "dry_run=true")
    said = cli(*given, "pattern=4x1", "pattern.target_sparsity=0.99")
    assert said.returncode == 1
    assert "Traceback" not in said.stderr
    assert "error: " in said.stderr
    sweep = cli("-m", "runner", "-m", *given[2:], "pattern=4x1", "pattern.target_sparsity=0.8,0.99", "seed=0,1")
    assert sweep.returncode == 1
    assert "2 of these would be refused" not in sweep.stderr  # once for both seeds
    assert " pattern=4x1 pattern.target_sparsity=0.99 seed=0\n  target sparsity 0.99 is above" in sweep.stderr
    assert "error: 1 of these would be refused, whatever the seed" in sweep.stderr
    assert "pattern.target_sparsity=0.8  0,1" in sweep.stdout
    assert not (tmp_path / "mlflow.db").exists()


def table(stdout: str) -> list[list[str]]:
    """The cells of the table of a sweep's dry run, without its header."""
    lines = stdout.split("\n\n")[0].splitlines()
    assert lines[0].split() == ["model", "dataset", "pattern", "seeds", "finished", "dense", "models", "time", "disk"]
    return [re.split("  +", line) for line in lines[1:]]


def test_a_sweep_is_one_table_of_what_is_missing(finished_run: Path, cli: Cli, tmp_path: Path) -> None:
    copy_run(finished_run, tmp_path)
    shared = [each for each in FINISHED if each != "pattern=4x1"]
    command = ("-m", "runner", "-m", "model=hub", f"model.path={tmp_path / 'small-model'}", *shared,
               "pattern=4x1,2:4", "seed=0,1", "dry_run=true")  # fmt: skip
    before = sorted(tmp_path.glob("outputs/*"))
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    first, second = table(done.stdout)
    assert first[:6] == ["small-model", "demo", "4x1", "0,1", "1 of 2", "1 of 2 cached"]
    assert second[:6] == ["small-model", "demo", "2:4", "0,1", "0 of 2", "1 of 2 cached"]
    assert "4 runs, 1 finished. The others take about " in done.stdout
    assert "of disk (" in done.stdout
    assert done.stderr.rstrip().endswith("nothing was trained (dry_run=true)")
    assert sorted(tmp_path.glob("outputs/*")) == before

    both = cli(*command[:-1], "dry_run=true,false")
    assert both.returncode == 1
    assert "error: dry_run=true,false: a sweep is shown or done" in both.stderr


def test_what_runs_share_is_counted_once() -> None:
    rows = [preview.Row(("a", "b", "4x1"), [0, 1], 1, [True, False], 3600.0, 5_000_000),
            preview.Row(("a", "b", "2:4"), list(range(9)), 9, [True] * 9),
            preview.Row(("long-name", "b", "dense"), [0], 0, [], 60.0, 1_000_000)]  # fmt: skip
    assert [row.cells[3:] for row in rows] == [
        ("0,1", "1 of 2", "1 of 2 cached", "60 min", "5 MB"),
        ("9 seeds", "9 of 9", "9 of 9 cached", "-", "-"),
        ("0", "0 of 1", "given", "60 s", "1 MB"),
    ]
    lines = aligned([row.cells for row in rows])
    assert {line.index("  b  ") for line in lines} == {9}
    text = preview.total(rows, Path("nowhere"))
    assert text.startswith("12 runs, 10 finished. The others take about 61 min ")
    assert "at most 6 MB of disk" in text


def test_the_jobs_of_a_sweep_are_those_composed_one_by_one() -> None:
    composer = Composer()
    shared = ["model=bert-mini", "dataset=squad"]
    for job in (
        [*shared, "pattern=4x1", "seed=0"],
        [*shared, "pattern=4x1", "seed=1", "train.learning_rate=1e-3"],
        [*shared, "pattern=dense", "train.max_steps=5"],
        [*shared, "pattern=4x1", "+allocation.layers={a:{excluded:true}}"],
        ["model=tiny", "dataset=demo", "recipe.learning_rate=1e-3"],
        ["model=tiny", "dataset=demo", "recipe=squad-bert-mini"],
        ["experiment=mrpc-bert-mini-2of4", "seed=3"],
        ["debug=default", "model=tiny", "dataset=demo", "pattern=64x1"],
        [*shared, "pattern=4x1", "seed=0"],
    ):
        assert composer(job) == compose_experiment(job)


@pytest.mark.parametrize("override", ["train.learning_rat=1", "train.learning_rate=x", "seed=-1", "pattern=nonsense",
                                      "train.learning_rate=1e-3 2", "pattern.n=2"])  # fmt: skip
def test_the_mistakes_of_a_job_have_the_same_message(override: str) -> None:
    with pytest.raises(UserError) as one:
        compose_experiment(["model=tiny", "dataset=demo", override])
    with pytest.raises(UserError) as of_sweep:
        Composer()(["model=tiny", "dataset=demo", override])
    assert str(of_sweep.value) == str(one.value)


def test_what_jobs_share_is_composed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.config import sweep

    composed = []
    monkeypatch.setattr(sweep, "compose", lambda *args, **kw: composed.append(args) or compose(*args, **kw))
    composer = Composer()
    for pattern in ("4x1", "2:4"):
        for seed in range(10):
            composer(["model=tiny", "dataset=demo", f"pattern={pattern}", f"seed={seed}"])
    assert len(composed) == 2


@pytest.mark.parametrize(("seconds", "expected"), [(8.4, "8 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert dry_run.duration(seconds) == expected


def test_kinds_of_matrices() -> None:
    assert kind_of("bert.encoder.layer.11.attention.self.query.weight") == "attention.self.query"
    assert kind_of("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight") == "ffn"
    assert kind_of("projector.weight") == "projector"


def test_pruning_without_training_says_what_its_calibration_takes(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    given = ("-m", "runner", "model=hub", f"model.path={small_model}", f"model.finetuned={small_model}", "pattern=4x1",
             *SHORT, "schedule=one_shot", "train.max_steps=-1", "train.num_train_epochs=0", "dry_run=true")  # fmt: skip
    said = cli(*given, "criterion=obs", "criterion.samples=24")
    assert said.returncode == 0, said.stderr
    assert "sparsity by step: 0: 0.800\n" in said.stdout
    assert re.search(r"calibration of each mask update: 24 training windows; up to 2\d\d MB of memory", said.stdout)
    assert "time of" not in said.stdout
    sequential = cli(*given, "criterion=obs", "criterion.samples=24", "criterion.sequential=true").stdout
    again = "24 training windows, and again for the input of each layer; up"
    assert f"calibration of each mask update: {again}" in sequential
    assert "calibration of each mask update: 24 " not in cli(*given, "criterion=magnitude").stdout
    assert not (tmp_path / "outputs").exists()


def test_more_calibration_windows_than_there_are(cli: Cli, small_model: Path) -> None:
    given = ("-m", "runner", "model=hub", f"model.path={small_model}", "pattern=4x1", *SHORT, "criterion=wanda")
    said = cli(*given, "dry_run=true")
    assert said.returncode == 0, said.stderr
    windows = re.search(r"calibration of each mask update: (\d+) training windows", said.stdout)
    assert windows is not None
    assert 64 <= int(windows[1]) < 256  # the default


def test_a_sparse_checkpoint_is_loaded_once_and_what_is_zero_is_logged(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    sparse = save_small_model(tmp_path / "sparse")
    tensors = load_file(sparse / "model.safetensors")
    tensors["bert.encoder.layer.0.attention.self.query.weight"][:8] = 0
    save_file(tensors, sparse / "model.safetensors", {"format": "pt"})
    loaded, load = [], models.load
    monkeypatch.setattr(models, "load", lambda of, start, **more: loaded.append(start.path) or load(of, start, **more))
    given = [f"model.path={small_model}", f"model.sparse={sparse}", f"model.finetuned={small_model}"]
    with caplog.at_level(logging.INFO):
        resolve(*compose_experiment(["model=hub", *given, "pattern=4x1", "tracking.uri=sqlite:///x.db", *SHORT]))
    assert loaded == [str(sparse)]
    (line,) = [text for text in caplog.messages if "are zero and stay so" in text]
    assert f"of the 16,384 weights in units of 4x1, {8 * 32 / 16384:.4f} are zero and stay so" in line
    assert f"{8 * 32 / 16384:.4f} are in whole units, which count towards the target, 0.8 of all of them" in line
