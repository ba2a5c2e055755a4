"""Ways to prune through the real command line: criteria, schedules, exceptions by layer, locked zeros, N:M mixes."""

import itertools
import json
import math
import re
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForQuestionAnswering

from pruning.runtime.cut import cut
from runner.inspect import inspect
from tests.conftest import Cli, Refused

SHORT = (
    "model=tiny", "dataset=demo", "dataset.train_examples=96", "dataset.eval_examples=16", "train.max_steps=30",
    "train.per_device_train_batch_size=8", "train.learning_rate=1e-3", "finetune.max_steps=3",
    "finetune.per_device_train_batch_size=8",
)  # fmt: skip
ENCODER = 4 * 6  # prunable weights of the embedded model


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def finished(folder: Path, pattern: str) -> Path:
    """The folder of the only run of this pattern below `folder`."""
    (found,) = [p.parent for p in (folder / "outputs").glob(f"tiny-demo-{pattern}-s0-*/result.json")]
    return found


def read(run: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Tensor]]:
    """result.json, pruning.json and the saved tensors of a run."""
    result = json.loads((run / "result.json").read_text())
    pruning = json.loads((run / "model" / "pruning.json").read_text())
    return result, pruning, load_file(run / "model" / "model.safetensors")


def dense_model(folder: Path) -> Path:
    """The only dense model in the cache of `folder`."""
    (found,) = [p.parent for p in (folder / "cache" / "dense").glob("*/config.json")]
    return found


def zeros(weight: Tensor) -> int:
    return int((weight == 0).sum())


def check_ratios(result: dict[str, Any], pruning: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """The reported sparsities are those of the file: the weights that were pruned have all zeros there are."""
    pruned = [tensors[layer["name"]] for layer in pruning["layers"] if layer["skipped"] is None]
    total = sum(zeros(weight) for weight in pruned)
    matrices = sum(tensors[layer["name"]].numel() for layer in pruning["layers"]) + tensors["qa_outputs.weight"].numel()
    found = result["verification"]
    assert found["linear_ratio"] == pruning["linear_ratio"] == pytest.approx(total / matrices)
    assert (
        found["overall_ratio"]
        == pruning["overall_ratio"]
        == pytest.approx(total / sum(tensor.numel() for tensor in tensors.values()))
    )
    assert found["sparsity"] == pruning["sparsity"] == pytest.approx(total / sum(weight.numel() for weight in pruned))
    assert found["violations"] == pruning["violations"]


@pytest.mark.slow
def test_a_mixed_recipe_of_patterns_criteria_schedules_and_scopes(cli: Cli, tmp_path: Path) -> None:
    layers = (
        "*.attention.self.*:{pattern:2:4,criterion:magnitude,schedule:{start:1,end:9,frequency:4}},"
        "*.intermediate.dense:{target:0.5,allocation:uniform,schedule:{end:90%}}"
    )
    ok(cli("-m", "runner", *SHORT, "pattern=4x1", "schedule=short", f"+allocation.layers={{{layers}}}"))
    result, pruning, tensors = read(finished(tmp_path, "4x1"))
    rows = {layer["name"]: layer for layer in pruning["layers"]}
    main = [row for row in rows.values() if "self" not in row["name"] and "intermediate" not in row["name"]]
    for name, row in rows.items():
        assert row["zeros"] == zeros(tensors[name])
        assert row["pattern"] == ("2:4" if "self" in name else "4x1")
        if row not in main:
            assert row["sparsity"] == 0.5
    total = sum(math.prod(row["shape"]) for row in main)
    assert sum(row["zeros"] for row in main) == 4 * round(0.8 * total / 4)
    assert len({row["sparsity"] for row in main}) > 1
    updates = {int(step): sparsity for step, sparsity in pruning["updates"].items()}
    assert {1, 5, 9, 27} <= set(updates)
    assert (updates[1], updates[27]) == (0.0, 0.8)
    assert list(updates.values()) == sorted(updates.values())
    assert result["verification"]["violations"] == 0


@pytest.mark.slow
def test_rows_by_platon_with_exceptions_by_layer(cli: Cli, tmp_path: Path) -> None:
    frozen, other, excluded, lighter = (
        f"bert.encoder.layer.{i}.{name}.weight"
        for i, name in enumerate(
            ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
        )
    )
    layers = (
        "*.0.attention.self.query:{frozen:true},*.1.attention.self.key:{pattern:2:4},"
        "*.2.attention.self.value:{excluded:true},*.3.intermediate.dense:{target:0.25}"
    )
    ok(cli("-m", "runner", *SHORT, "pattern=rows", "criterion=platon", "schedule=large_first",
           f"+allocation.layers={{{layers}}}"))  # fmt: skip
    result, pruning, tensors = read(finished(tmp_path, "rows"))
    assert result["pattern"] == pruning["pattern"]["name"] == "rows"
    assert (pruning["criterion"]["name"], pruning["criterion"]["beta1"]) == ("Platon", 0.85)
    assert (pruning["schedule"]["name"], pruning["schedule"]["initial"]) == ("Gradual", "85%")
    assert pruning["regularizer"] == {"name": "Regularizer"}
    assert pruning["allocation"]["name"] == "Global"
    assert pruning["allocation"]["layers"]["*.1.attention.self.key"]["pattern"] == "2:4"
    updates = {int(step): sparsity for step, sparsity in pruning["updates"].items()}
    assert list(updates) == list(range(3, 22, 2))  # from 10 % in steps of 5 % of 30 to where the last 30 % begin
    assert (updates[3], updates[21]) == (pytest.approx(0.85 * 0.8), 0.8)

    rows = {layer["name"]: layer for layer in pruning["layers"]}
    assert len(rows) == ENCODER
    assert {name for name, row in rows.items() if row["skipped"]} == {frozen, excluded}
    assert "freezes" in rows[frozen]["skipped"]
    assert "excludes" in rows[excluded]["skipped"]
    for row in rows.values():
        assert row["zeros"] == zeros(tensors[row["name"]])
        assert row["violations"] == 0
        assert row["sparsity"] == row["zeros"] / math.prod(row["shape"])
    assert (rows[frozen]["pattern"], rows[other]["pattern"], rows[lighter]["pattern"]) == ("", "2:4", "rows")
    assert rows[other]["sparsity"] == 0.5
    assert rows[lighter]["sparsity"] == 0.25

    # The same in the file: whole rows, of the layers that share the target 80 % to within half a row.
    dense = load_file(dense_model(tmp_path) / "model.safetensors")
    assert torch.equal(tensors[frozen], dense[frozen])
    assert not torch.equal(tensors[excluded], dense[excluded])
    assert zeros(tensors[excluded]) == 0
    assert int((tensors[other] != 0).unflatten(1, (-1, 4)).sum(2).max()) == 2
    ranked = [tensors[name] for name in rows.keys() - {frozen, other, excluded, lighter}]
    for weight in [*ranked, tensors[lighter]]:
        share = (weight == 0).float().mean(1)
        assert bool(((share == 0) | (share == 1)).all())
    total = sum(weight.numel() for weight in ranked)
    assert abs(sum(map(zeros, ranked)) - 0.8 * total) <= max(weight.shape[1] for weight in ranked) / 2
    assert len({zeros(weight) / weight.numel() for weight in ranked}) > 1  # ranked over all layers together
    check_ratios(result, pruning, tensors)
    assert result["verification"]["violations"] == 0

    found = inspect(finished(tmp_path, "rows") / "model")
    assert (found.claims, found.broken_claims) == ("rows", [])
    assert {layer.name: "rows" in layer.patterns for layer in found.layers if layer.zeros} == {
        name: name != other for name in rows if name not in (frozen, excluded)
    }
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        logged = dict(store.execute("select key, value from params"))
        metrics = dict(store.execute("select key, value from latest_metrics where key like 'sparsity/%'"))
    assert "*.1.attention.self.key" in logged["allocation.layers"]
    assert (logged["criterion"], logged["schedule"], logged["regularizer"]) == ("platon", "large_first", "none")
    assert metrics["sparsity/all"] == result["verification"]["overall_ratio"]
    assert metrics["sparsity/target"] == 0.8


@pytest.mark.slow
def test_blocks_by_fisher_at_once_and_their_zeros_locked_afterwards(cli: Cli, tmp_path: Path) -> None:
    ok(cli("-m", "runner", *SHORT, "pattern=4x1", "criterion=fisher", "schedule=one_shot", "regularizer=group_lasso",
           "regularizer.weight=1e-3"))  # fmt: skip
    first = finished(tmp_path, "4x1")
    result, pruning, sparse = read(first)
    assert pruning["updates"] == {"3": 0.8}
    names = [pruning[group]["name"] for group in ("criterion", "schedule", "regularizer")]
    assert names == ["DiagonalFisher", "OneShot", "GroupLasso"]
    assert pruning["regularizer"]["weight"] == 1e-3
    assert result["verification"]["violations"] == 0
    elements = sum(sparse[layer["name"]].numel() for layer in pruning["layers"])
    assert sum(layer["zeros"] for layer in pruning["layers"]) == 4 * round(0.8 * elements / 4)
    check_ratios(result, pruning, sparse)
    assert inspect(first / "model").patterns == ["4x1"]

    # The zeros kept, the rest trained on, with the dense model as the teacher and to compare with.
    dense = dense_model(tmp_path)
    done = ok(cli("-m", "runner", *SHORT, "schedule=short", "pattern=locked", f"model.sparse={first / 'model'}",
                  f"model.finetuned={dense}"))  # fmt: skip
    assert "fine-tuning the dense model" not in done.stderr
    (second,) = [p.parent for p in (tmp_path / "outputs").glob("*-locked-s0-*/result.json")]
    again, kept, tensors = read(second)
    assert again["pattern"] == kept["pattern"]["name"] == "locked"
    assert again["dense"] == result["dense"]
    assert kept["updates"] == {}
    assert len(kept["layers"]) == ENCODER
    for row, before in zip(kept["layers"], pruning["layers"], strict=True):
        assert (row["name"], row["zeros"], row["pattern"]) == (before["name"], before["zeros"], "locked")
        was, now = sparse[row["name"]], tensors[row["name"]]
        assert torch.equal(now == 0, was == 0)
        trained = was != 0
        if row["name"].endswith("intermediate.dense.weight"):  # a neuron that nothing reads any more has no gradient
            trained &= (sparse[row["name"].replace("intermediate", "output")] != 0).any(0)[:, None]
        assert float((now != was)[trained].float().mean()) > 0.98
        assert not torch.signbit(now[now == 0]).any()
    check_ratios(again, kept, tensors)
    assert again["verification"] == result["verification"]

    done = ok(cli("-m", "runner.inspect", str(second / "model")))
    assert f"4x1 in all of the {ENCODER} layers with zeros (of {ENCODER + 1})" in done.stdout
    assert "pruning.json says locked: the file agrees" in done.stdout
    assert f"{again['verification']['linear_ratio']:.4f} of all Linear and Conv weights are zero" in done.stdout


@pytest.mark.slow
def test_a_mix_of_n_of_m_and_dense_groups(cli: Cli, tmp_path: Path) -> None:
    done = ok(cli("-m", "runner", *SHORT, "schedule=short", "pattern=nm", "pattern.mix=true",
                  "pattern.target_sparsity=0.3"))  # fmt: skip
    run = finished(tmp_path, "2of4_mix")
    result, pruning, tensors = read(run)
    assert result["pattern"] == pruning["pattern"]["name"] == "2:4 mix"
    assert (pruning["pattern"]["target_sparsity"], max(pruning["updates"].values())) == (0.3, 0.3)
    assert len(pruning["layers"]) == ENCODER
    units = opened = removed = 0
    for layer in pruning["layers"]:
        groups = (tensors[layer["name"]] != 0).unflatten(1, (-1, 4)).sum(2)
        assert layer["units"] == groups.numel()
        assert layer["pruned_units"] == int((groups == 2).sum())
        assert layer["zeros"] == 2 * layer["pruned_units"] == zeros(tensors[layer["name"]])
        assert layer["violations"] == int((groups > 2).sum()) == layer["units"] - layer["pruned_units"]
        units, opened, removed = units + groups.numel(), opened + layer["violations"], removed + layer["pruned_units"]
    assert removed == round(0.6 * units)
    assert result["verification"]["violations"] == opened == units - removed  # meant, and still counted
    assert result["verification"]["sparsity"] == pytest.approx(0.3, abs=2 / units)
    check_ratios(result, pruning, tensors)
    assert "2:4 mix" in done.stdout
    found = inspect(run / "model")
    assert (found.claims, found.broken_claims, found.patterns) == ("2:4 mix", [], [])


@pytest.mark.slow
def test_a_pruned_model_is_pruned_further_and_to_another_pattern(cli: Cli, tmp_path: Path) -> None:
    ok(cli("-m", "runner", *SHORT, "pattern=4x1", "pattern.target_sparsity=0.5", "schedule=one_shot"))
    first = finished(tmp_path, "4x1")
    result, _, half = read(first)
    again = (*SHORT, "schedule=short", f"model.sparse={first}", f"model.finetuned={dense_model(tmp_path)}")
    prunable = [layer["name"] for layer in json.loads((first / "model" / "pruning.json").read_text())["layers"]]

    tried = ok(cli("-m", "runner", *again, "pattern=2:4", "dry_run=true"))
    least = re.search(r"zeros in the end: at least (0\.\d+) of all", tried.stdout)
    done = ok(cli("-m", "runner", *again, "pattern=2:4"))
    assert "its zeros stay, and count" in done.stderr
    (second,) = [p.parent for p in (tmp_path / "outputs").glob("*-2of4-s0-*/result.json")]
    other, pruning, tensors = read(second)
    assert (other["verification"]["violations"], other["dense"]) == (0, result["dense"])
    for name, row in zip(prunable, pruning["layers"], strict=True):
        old, new = ((weights[name] == 0).unflatten(1, (-1, 4)) for weights in (half, tensors))
        assert bool((new | ~old).all())
        assert torch.equal(new.sum(2), old.sum(2).clamp_min(2))  # not one zero more than 2:4 asks for
        assert row["zeros"] == int(new.sum()) >= int(old.sum())
    check_ratios(other, pruning, tensors)
    assert least is not None
    assert 0.5 < other["verification"]["sparsity"] < 0.8
    assert float(least[1]) < other["verification"]["linear_ratio"]

    ok(cli("-m", "runner", *again, "pattern=4x1", "output_dir=more"))
    (more,) = (tmp_path / "more").glob("*/model")
    a = load_file(more / "model.safetensors")
    for name in prunable:
        blocks = (a[name] == 0).unflatten(0, (-1, 4))
        assert bool((blocks.all(1) == blocks.any(1)).all())
        assert bool(((a[name] == 0) | (half[name] != 0)).all())
    elements = sum(a[name].numel() for name in prunable)
    assert sum(zeros(a[name]) for name in prunable) == 4 * round(0.8 * elements / 4)
    refusal = cli("-m", "runner", *again, "pattern=4x1", "pattern.target_sparsity=0.3", "dry_run=true")
    assert refusal.returncode == 1
    assert "pattern.target_sparsity=0.3 cannot hold with the zeros that the weights have" in refusal.stderr


# --- units that span several matrices ---------------------------------------------------------------------------------


def features_of(kind: str, layer: int, tensors: dict[str, Tensor]) -> tuple[list[Tensor], Tensor]:
    """Rows and biases that write the features of a layer, and columns that read them, one entry for each unit."""
    name = f"bert.encoder.layer.{layer}."
    if kind == "ffn":
        writers, reader, units = ["intermediate.dense"], "output.dense", 512
    else:
        writers, reader, units = [f"attention.self.{x}" for x in ("query", "key", "value")], "attention.output.dense", 4
    rows = [tensors[f"{name}{writer}.{what}"].reshape(units, -1) for writer in writers for what in ("weight", "bias")]
    return rows, tensors[f"{name}{reader}.weight"].t().reshape(units, -1)


@pytest.mark.slow
def test_heads_and_channels_go_whole_and_exports_are_cut(cli: Cli, tmp_path: Path) -> None:
    said = ok(cli("-m", "runner", *SHORT, "pattern=ffn", "dry_run=true")).stdout
    assert "pattern ffn, target 0.5: 4 layers, 2,048 units\n" in said
    rows = "rows of intermediate.dense, intermediate.dense.bias; columns of output.dense"
    assert f"    4 x channels [512, 257]: {rows}\n" in said
    assert "left dense: 16 layers: it belongs to no unit of ffn\n" in said
    said = ok(cli("-m", "runner", *SHORT, "pattern=structured", "allocation.cost=macs", "dry_run=true")).stdout
    assert "pattern structured, target 0.5 of the multiply-accumulates: 8 layers, 2,064 units\n" in said
    done = ok(cli("-m", "runner", "-m", *SHORT, "train.max_steps=12", "pattern=ffn,heads,structured",
                  "allocation.cost=macs"))  # fmt: skip
    assert "is left dense" not in done.stderr
    macs = {"ffn": 2 * 128, "heads": 4 * 32 * 128 + 2 * 32 * 128}  # of a unit, with 128 tokens
    for pattern in ("ffn", "heads", "structured"):
        run = finished(tmp_path, pattern)
        result, pruning, tensors = read(run)
        dead, cost, total = {"ffn": 0, "heads": 0}, 0, 0
        for kind, layer in itertools.product(dead if pattern == "structured" else [pattern], range(4)):
            writers, reader = features_of(kind, layer, tensors)
            gone = (reader == 0).all(1)
            assert all(bool((rows[gone] == 0).all()) and bool((rows != 0).any(1)[~gone].any()) for rows in writers)
            dead[kind] += int(gone.sum())
            cost, total = cost + int(gone.sum()) * macs[kind], total + len(gone) * macs[kind]
        assert abs(cost - total / 2) <= max(macs.values()) / 2
        matrices = [name for name, p in tensors.items() if p.dim() > 1 and "encoder" in name]
        pruned = {row["name"]: row for row in pruning["layers"] if row["skipped"] is None}
        assert {name for name in pruned if name.endswith("weight")} >= {n for n in matrices if zeros(tensors[n])}
        for name, row in pruned.items():
            assert (row["zeros"], row["violations"]) == (zeros(tensors[name]), 0)
        found = result["verification"]
        total = sum(tensors[name].numel() for name in matrices) + tensors["qa_outputs.weight"].numel()
        assert found["linear_ratio"] == pytest.approx(sum(zeros(tensors[name]) for name in matrices) / total)
        assert found["sparsity"] == pytest.approx(0.5, abs=1e-9 if pattern != "structured" else 0.1)
        assert inspect(run / "model").broken_claims == []

        model = AutoModelForQuestionAnswering.from_pretrained(run / "model").eval()
        tokens = torch.arange(5, 45).view(2, 20)
        with torch.inference_mode():
            before = model(input_ids=tokens)
            report = cut(model)
            after = model(input_ids=tokens)
        assert (report.channels, report.heads) == (dead["ffn"], dead["heads"])
        torch.testing.assert_close(after.start_logits, before.start_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(after.end_logits, before.end_logits, rtol=1e-4, atol=1e-4)
    table = ok(cli("-m", "results", "--format", "csv")).stdout
    assert {line.split(",")[2] for line in table.splitlines()[1:]} >= {"ffn", "heads", "structured"}


def test_units_that_span_matrices_are_refused_where_they_cannot_be_found_or_regrow(refused: Refused) -> None:
    text = refused(*SHORT, "pattern=ffn", "model.excluded=['*.output.dense']")
    assert text.startswith(
        "error: no units of ffn: among the matrices that may be pruned (such as bert.encoder.layer.0"
    )
    text = refused(*SHORT, "pattern=heads", "allocation.regrow=true")
    assert text.startswith("error: allocation.regrow=True: a unit of heads whose weights are all zero has no gradient")
