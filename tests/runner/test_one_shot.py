"""Pruning on calibration data through the real command line: without training, before it and during it."""

import json
import math
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import small_data
from tests.conftest import ROOT, Cli, save_small_model
from tests.loopback_hub import serve
from tests.runner.training.test_resume import killed

UNTRAINED = ("schedule=one_shot", "train.num_train_epochs=0")
QUICK = (
    "-m", "runner", "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=16", "finetune.max_steps=5",
    "finetune.per_device_train_batch_size=8", "train.per_device_train_batch_size=8", "train.learning_rate=1e-3",
    "criterion=obs", "criterion.samples=24",
)  # fmt: skip


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def folders(place: Path) -> list[Path]:
    return sorted(file.parent for file in place.glob("*/result.json"))


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """result.json, pruning.json and the tensors of a run."""
    result, pruning = (json.loads((run / name).read_text()) for name in ("result.json", "model/pruning.json"))
    return result, pruning, load_file(run / "model" / "model.safetensors")


def check_zeros(pruning: dict[str, Any], tensors: dict[str, Tensor], target: float, unit: int) -> None:
    """The file has the zeros that were meant, in whole units, and its report says so."""
    zeros = {layer["name"]: int((tensors[layer["name"]] == 0).sum()) for layer in pruning["layers"]}
    assert zeros == {layer["name"]: layer["zeros"] for layer in pruning["layers"]}
    total = sum(tensors[name].numel() for name in zeros)
    assert sum(zeros.values()) == unit * round(target * total / unit)
    assert not any(layer["violations"] or layer["skipped"] for layer in pruning["layers"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "metric", "criterion", "pattern", "target", "unit"),
    [
        ("squad", "f1", "obs", "4x1", 0.8, 4),
        ("sst2", "accuracy", "obs", "2:4", 0.5, 2),
        ("conll2003", "f1", "wanda", "4x1", 0.8, 4),
        ("conll2003", "f1", "obs", "rows", 0.5, 32),
        ("stsb", "pearson", "obs", "1x1", 0.6, 1),
        ("stsb", "pearson", "calibrated_fisher", "4x1", 0.5, 4),
        ("squad", "f1", "obs criterion.sequential=true", "4x1", 0.5, 4),
    ],
)
def test_every_kind_of_task_is_pruned_without_training(
    dataset: str,
    metric: str,
    criterion: str,
    pattern: str,
    target: float,
    unit: int,
    cli: Cli,
    rows: Callable[[], list[dict]],
    tmp_path: Path,
) -> None:
    model = save_small_model(tmp_path / "small")
    command = (
        "-m", "runner", f"dataset={dataset}", "model=hub", f"model.path={model}", "finetune.max_steps=4",
        *f"criterion={criterion}".split(), "criterion.samples=40", f"pattern={pattern}", *UNTRAINED,
        *([] if pattern == "2:4" else [f"pattern.target_sparsity={target}"]),
    )  # fmt: skip
    with serve(small_data.make(tmp_path / "hub"), tmp_path / "home") as env:
        ok(cli(*command, env=env))
        again = ok(cli(*command, env=env))
    (run,) = folders(tmp_path / "outputs")
    result, pruning, tensors = read(run)
    if pattern != "rows":  # rows are of two sizes
        check_zeros(pruning, tensors, target, unit)
    assert math.isfinite(result["sparse"][metric])
    assert result["cost"]["steps"] == 0
    assert "teacher" not in result["stages"]  # nothing asks it
    assert result["verification"]["violations"] == 0
    assert pruning["updates"] == {"0": target}
    assert pruning["criterion"]["samples"] == 40
    (row,) = rows()
    assert (row["dataset"], row["metric"], row["pattern"]) == (dataset, metric, pattern)
    assert row["sparse_max"] == pytest.approx(result["sparse"][metric])
    assert "already finished" in again.stderr
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select count(*) from runs").fetchone() == (1,)
        assert dict(store.execute("select key, value from params"))["criterion"] == criterion.split()[0]


@pytest.mark.slow
@pytest.mark.parametrize("cost", ["parameters", "macs"])
def test_heads_and_channels_are_pruned_by_their_curvature(
    cost: str, cli: Cli, small_model: Path, tmp_path: Path
) -> None:
    given = (
        *QUICK,
        "pattern=structured",
        *UNTRAINED,
        "model=hub",
        f"model.path={small_model}",
        f"allocation.cost={cost}",
    )
    assert "calibration of each mask update: 24 training windows" in ok(cli(*given, "dry_run=true")).stdout
    ok(cli(*given))
    (run,) = folders(tmp_path / "outputs")
    result, pruning, tensors = read(run)
    assert result["verification"]["violations"] == 0
    assert pruning["updates"] == {"0": 0.5}
    zeros = {layer["name"]: int((tensors[layer["name"]] == 0).sum()) for layer in pruning["layers"]}
    assert zeros == {layer["name"]: layer["zeros"] for layer in pruning["layers"]}
    share = sum(zeros.values()) / sum(tensors[name].numel() for name in zeros)
    assert cost == "macs" or share == pytest.approx(0.5, abs=0.05)
    (dense,) = tmp_path.glob("cache/dense/*/model.safetensors")
    before = load_file(dense)
    biases = [name for name in before if re.search(r"layer\.\d.*output\.dense\.bias", name)]
    assert any(not torch.equal(before[name], tensors[name]) for name in biases)  # the constant of the least squares


@pytest.mark.slow
def test_a_pruned_model_is_pruned_further_without_training(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = (*QUICK, "pattern=4x1", *UNTRAINED, "model=hub", f"model.path={small_model}")
    ok(cli(*command, "pattern.target_sparsity=0.5"))
    (first,) = folders(tmp_path / "outputs")
    before = read(first)[2]
    ok(cli(*command, "pattern.target_sparsity=0.8", f"model.sparse={first}"))
    (second,) = set(folders(tmp_path / "outputs")) - {first}
    result, pruning, after = read(second)
    check_zeros(pruning, after, 0.8, 4)
    assert result["verification"]["violations"] == 0
    for layer in pruning["layers"]:
        old, new = before[layer["name"]], after[layer["name"]]
        assert bool((new[old == 0] == 0).all())
    moved = [not torch.equal(before[name][new != 0], new[new != 0]) for name, new in after.items() if "layer" in name]
    assert sum(moved) >= len(pruning["layers"])


@pytest.mark.slow
def test_an_interrupted_run_is_repeated_bit_for_bit(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    command = (*QUICK, "pattern=4x1", *UNTRAINED, "model=hub", f"model.path={small_model}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("cache/dense/*/config.json")):  # the next stage scores it, then pruning begins
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    assert folders(tmp_path / "outputs") == []
    ok(cli(*command))
    ok(cli(*command, "output_dir=whole", "cache_dir=other", f"tracking.uri=sqlite:///{tmp_path}/whole.db"))
    (one,), (other,) = folders(tmp_path / "outputs"), folders(tmp_path / "whole")
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    assert read(one)[0]["sparse"] == read(other)[0]["sparse"]


@pytest.mark.slow
def test_training_after_one_update_has_its_masks(cli: Cli, small_model: Path, tmp_path: Path) -> None:
    given = (*QUICK, "pattern=4x1", "schedule=one_shot", "model=hub", f"model.path={small_model}")
    ok(cli(*given, "train.num_train_epochs=0", "output_dir=untrained"))
    ok(cli(*given, "schedule.start=0", "train.max_steps=12", "output_dir=trained"))
    (untrained,), (trained,) = folders(tmp_path / "untrained"), folders(tmp_path / "trained")
    _, before, start = read(untrained)
    result, after, end = read(trained)
    assert (result["cost"]["steps"], after["updates"]) == (12, {"0": 0.8})
    check_zeros(before, start, 0.8, 4)
    check_zeros(after, end, 0.8, 4)
    for layer in after["layers"]:
        one, other = start[layer["name"]], end[layer["name"]]
        assert torch.equal(one == 0, other == 0)
        assert not torch.equal(one, other)
        assert not torch.signbit(other[other == 0]).any()


@pytest.mark.parametrize(("pattern", "after"), [("4x1", {"0": 0.6, "3": 0.775, "6": 0.8}), ("2:4", None)])
def test_a_pair_without_a_published_recipe_is_pruned_early(
    pattern: str, after: dict[str, float] | None, cli: Cli, small_model: Path, tmp_path: Path
) -> None:
    given = [argument for argument in QUICK if argument != "criterion=obs"]
    done = ok(cli(*given, f"pattern={pattern}", "train.max_steps=20", "model=hub", f"model.path={small_model}"))
    assert "recipe=best (conf/recipe/best.yaml)\n" in done.stderr
    (run,) = folders(tmp_path / "outputs")
    result, pruning, tensors = read(run)
    assert "teacher" not in result["stages"]  # hidden states of the teacher are not cached
    assert list(pruning["updates"]) == ["0", "3", "6"]
    assert after is None or pruning["updates"] == pytest.approx(after, abs=2e-3)
    check_zeros(pruning, tensors, *((0.8, 4) if pattern == "4x1" else (0.5, 2)))


@pytest.mark.slow
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_gradual_updates_that_are_interrupted_end_as_without(
    pattern: str, cli: Cli, small_model: Path, tmp_path: Path
) -> None:
    command = (
        *QUICK, f"pattern={pattern}", "schedule=recipe", "schedule.start=4", "schedule.frequency=8",
        "schedule.end=36", "train.max_steps=60", "train.save_steps=10", "model=hub", f"model.path={small_model}",
    )  # fmt: skip
    assert killed(command, tmp_path, signal.SIGKILL, after=20).returncode == -signal.SIGKILL
    ok(cli(*command))
    ok(cli(*command, "output_dir=whole", f"tracking.uri=sqlite:///{tmp_path}/whole.db"))
    (one,), (other,) = folders(tmp_path / "outputs"), folders(tmp_path / "whole")
    assert (one / "model/model.safetensors").read_bytes() == (other / "model/model.safetensors").read_bytes()
    result, pruning, tensors = read(one)
    assert result["sparse"] == read(other)[0]["sparse"]
    assert len(pruning["updates"]) >= 4
    check_zeros(pruning, tensors, *((0.8, 4) if pattern == "4x1" else (0.5, 2)))
