"""dry_run=true says what the run then does, and does none of it."""

import json
import re
from pathlib import Path

import pytest

from runner import dry_run
from runner.models import kind_of
from tests.conftest import Cli

SHORT = (
    "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=16", "schedule=short",
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
    sweep = cli("-m", "runner", "-m", *given[2:], "pattern=4x1,2:4")
    assert sweep.returncode == 1
    assert "error: dry_run=true looks at one run" in sweep.stderr
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.parametrize(("seconds", "expected"), [(8.4, "8 s"), (89, "89 s"), (600, "10 min"), (7200, "2.0 h")])
def test_durations_are_for_people(seconds: float, expected: str) -> None:
    assert dry_run.duration(seconds) == expected


def test_kinds_of_matrices() -> None:
    assert kind_of("bert.encoder.layer.11.attention.self.query.weight") == "attention.self.query"
    assert kind_of("albert.encoder.albert_layer_groups.0.albert_layers.0.ffn.weight") == "ffn"
    assert kind_of("projector.weight") == "projector"
