"""One pattern after the other: heads and channels, further, 4x1 in what is left; and models that were cut before."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from pruning import runtime
from tests.conftest import Cli
from tests.runner.test_ways_to_prune import SHORT, check_ratios, dense_model, features_of, ok, read, zeros

pytestmark = pytest.mark.slow
STEPS = ("train.max_steps=12", "schedule=short", "schedule.start=2")
TEXT = "Who wrote the letter, and when was it sent to the office in the capital?"


def run_in(folder: Path, output: str) -> Path:
    """The folder of the only run below `output`."""
    (found,) = [file.parent for file in (folder / output).glob("*/result.json")]
    return found


def dead_units(tensors: dict[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    """bool [units] by kind and layer: those whose weights and biases are all zero."""
    found = {}
    for kind in ("ffn", "heads"):
        for layer in range(4):
            writers, reader = features_of(kind, layer, tensors)
            found[kind, layer] = torch.stack([(part == 0).all(1) for part in (*writers, reader)]).all(0)
    return found


def share_of_units(tensors: dict[str, Tensor]) -> float:
    """Weights in dead units over those of all units, biases included."""
    size = {"ffn": 2 * 128 + 1, "heads": 4 * 32 * 128 + 3 * 32}
    dead = dead_units(tensors)
    return sum(int(gone.sum()) * size[kind] for (kind, _), gone in dead.items()) / sum(
        len(gone) * size[kind] for (kind, _), gone in dead.items()
    )


def stay(before: dict[str, Tensor], after: dict[str, Tensor], names: list[str]) -> bool:
    """Whether all zeros of before are zeros."""
    return all(bool((after[name][before[name] == 0] == 0).all()) for name in names)


def test_heads_and_channels_first_then_blocks_in_what_is_left(cli: Cli, tmp_path: Path) -> None:
    ok(cli("-m", "runner", *SHORT, *STEPS, "pattern=structured", "output_dir=first"))
    first = run_in(tmp_path, "first")
    half, _, before = read(first)
    assert share_of_units(before) == pytest.approx(0.5, abs=0.02)
    again = (*SHORT, *STEPS, f"model.sparse={first}", f"model.finetuned={dense_model(tmp_path)}")

    # From 50 to 80 %: units go on top of those that are gone.
    tried = ok(cli("-m", "runner", *again, "pattern=structured", "pattern.target_sparsity=0.8", "dry_run=true"))
    line = (
        r"of the ([\d,]+) weights in units of structured, (0\.\d+) are zero and stay so; (0\.\d+) are in whole units, "
        r"which count towards the target, 0\.8 of all of them, not of those"
    )
    said = re.search(line, tried.stderr)
    assert said is not None, tried.stderr
    assert int(said[1].replace(",", "")) == 4 * (512 * 257 + 4 * (4 * 32 * 128 + 96))
    assert float(said[3]) == pytest.approx(share_of_units(before), abs=6e-5)
    ok(cli("-m", "runner", *again, "pattern=structured", "pattern.target_sparsity=0.8", "output_dir=further"))
    result, pruning, further = read(run_in(tmp_path, "further"))
    names = [layer["name"] for layer in pruning["layers"]]
    assert stay(before, further, names)
    assert share_of_units(further) == pytest.approx(0.8, abs=0.02)
    assert {row["name"]: row["zeros"] for row in pruning["layers"]} == {name: zeros(further[name]) for name in names}
    check_zeros_counted(result, pruning, further)

    # 4x1 in what is left: 80 % of all weights, those of dead units included.
    ok(cli("-m", "runner", *again, "pattern=4x1", "output_dir=blocks"))
    place = run_in(tmp_path, "blocks")
    result, pruning, blocks = read(place)
    matrices = [layer["name"] for layer in pruning["layers"]]
    assert stay(before, blocks, matrices)
    for name in matrices:
        groups = (blocks[name] == 0).unflatten(0, (-1, 4))
        assert bool((groups.all(1) == groups.any(1)).all())
    total = sum(blocks[name].numel() for name in matrices)
    assert sum(zeros(blocks[name]) for name in matrices) == 4 * round(0.8 * total / 4)
    check_ratios(result, pruning, blocks)
    weighed, less = half["footprint"], result["footprint"]
    assert less["parameters_cut"] <= weighed["parameters_cut"] < weighed["parameters"]
    assert less["macs_sparse"] < weighed["macs_sparse"]
    card = (place / "model" / "README.md").read_text()
    assert "whose zeros stayed and are counted here" in card
    assert f"{less['parameters_cut']:,} of {less['parameters_dense']:,} parameters" in card
    seen = ok(cli("-m", "runner.inspect", str(place / "model")))
    assert "pruning.json says 4x1: the file agrees" in seen.stdout
    left = (
        f"{less['dead']} compute nothing; without them, as exports cut them out: {less['parameters_cut']:,} parameters"
    )
    assert left in " ".join(seen.stdout.split())
    wide = ok(cli("-m", "results", "--wide")).stdout
    for header in ("Size once cut", "Parameters once cut", "Multiply-accumulates once cut"):
        assert all(word in wide for word in header.split())
    assert f"{less['parameters_cut'] / less['parameters_dense']:.1%}" in wide
    same_in_every_form(cli, place)


def check_zeros_counted(result: dict, pruning: dict, tensors: dict[str, Tensor]) -> None:
    """The ratios of units, whose biases are no matrices."""
    matrices = [row["name"] for row in pruning["layers"] if row["name"].endswith("weight")]
    everything = sum(tensors[name].numel() for name in matrices) + tensors["qa_outputs.weight"].numel()
    counted = result["verification"]
    assert counted["linear_ratio"] == pytest.approx(sum(zeros(tensors[name]) for name in matrices) / everything)
    assert counted["violations"] == 0


def same_in_every_form(cli: Cli, run: Path) -> None:
    """ONNX and the packed file compute what the saved model does."""
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    tokens = tokenizer([TEXT, "No."], padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModelForQuestionAnswering.from_pretrained(run / "model").eval()(**tokens).start_logits
    ok(cli("-m", "runner.export", str(run), "--to", "packed"))
    fast = runtime.load(run / "exports" / "packed" / "model.packed.safetensors", "float32")
    mask = tokens["attention_mask"].bool()
    report = json.loads((run / "result.json").read_text())["footprint"]["dead"]
    if fast.report.cut is not None:  # with the kernels, which cut channels in groups of 4
        assert fast.report.cut.heads == int(report.split(", ")[1].split()[0])
        assert fast.report.cut.channels > 0
    with torch.inference_mode():
        torch.testing.assert_close(fast(**tokens)["start_logits"][mask], expected[mask], atol=1e-3, rtol=1e-3)
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (the extra bench)")
    pytest.importorskip("onnx", reason="onnx is not installed (the extra bench)")
    ok(cli("-m", "runner.export", str(run), "--to", "onnx"))
    session = onnxruntime.InferenceSession(run / "exports" / "onnx" / "model.onnx")
    wanted = {value.name: tokens[value.name].numpy() for value in session.get_inputs()}
    got = torch.from_numpy(session.run(["start_logits"], wanted)[0])
    torch.testing.assert_close(got[mask], expected[mask], atol=1e-3, rtol=1e-3)
    record = json.loads((run / "exports" / "onnx" / "export.json").read_text())["cut"]
    assert f"{record['channels']:,} of {record['all_channels']:,} channels, {record['heads']} of" in report


def test_blocks_first_then_heads_and_channels(cli: Cli, tmp_path: Path) -> None:
    ok(cli("-m", "runner", *SHORT, *STEPS, "pattern=4x1", "pattern.target_sparsity=0.5", "output_dir=first"))
    first = run_in(tmp_path, "first")
    *_, before = read(first)
    again = (*SHORT, *STEPS, f"model.sparse={first}", f"model.finetuned={dense_model(tmp_path)}", "output_dir=units")
    ok(cli("-m", "runner", *again, "pattern=structured"))
    result, pruning, after = read(run_in(tmp_path, "units"))
    names = [row["name"] for row in pruning["layers"]]
    assert stay(before, after, names)
    assert share_of_units(after) == pytest.approx(0.5, abs=0.02)
    assert [row["zeros"] for row in pruning["layers"]] == [zeros(after[name]) for name in names]
    check_zeros_counted(result, pruning, after)
    matrices = [name for name in names if name.endswith("weight")]
    groups = [(after[name] == 0).unflatten(0, (-1, 4)) for name in matrices]
    assert result["verification"]["linear_ratio"] > 0.6  # and zeros in units that stay
    assert sum(int(group.any(1).sum()) for group in groups) > 0
    same_in_every_form(cli, run_in(tmp_path, "units"))


def test_a_run_starts_from_a_model_that_was_cut(cli: Cli, tmp_path: Path) -> None:
    ok(cli("-m", "runner", *SHORT, *STEPS, "pattern=ffn", "allocation=uniform", "output_dir=first"))
    first = run_in(tmp_path, "first")
    ok(cli("-m", "runner.export", str(first), "--to", "transformers"))
    small = first / "exports" / "transformers"
    ok(cli("-m", "runner", *SHORT, *STEPS, f"model.finetuned={small}", "pattern=4x1", "output_dir=second"))
    run = run_in(tmp_path, "second")
    result, pruning, tensors = read(run)
    assert tensors["bert.encoder.layer.3.output.dense.weight"].shape == (128, 256)
    assert result["footprint"]["parameters"] == result["footprint"]["parameters_dense"]
    assert result["footprint"]["parameters"] == sum(tensor.numel() for tensor in tensors.values())
    scored = read(first)[0]["sparse"]
    assert result["dense"] == pytest.approx(scored)  # the smaller model is the dense one
    check_ratios(result, pruning, tensors)
    total = sum(tensors[row["name"]].numel() for row in pruning["layers"])
    assert sum(zeros(tensors[row["name"]]) for row in pruning["layers"]) == 4 * round(0.8 * total / 4)
    assert json.loads((run / "model" / "config.json").read_text())["intermediate_size"] == 256

    # Units again, of what is left; and the sparse start may be as small.
    ok(cli("-m", "runner", *SHORT, *STEPS, f"model.finetuned={small}", f"model.sparse={run}", "pattern=structured",
           "output_dir=third"))  # fmt: skip
    *_, third = read(run_in(tmp_path, "third"))
    assert stay(tensors, third, [row["name"] for row in pruning["layers"]])
    assert third["bert.encoder.layer.0.intermediate.dense.weight"].shape == (256, 128)
    loaded = load_file(small / "model.safetensors")
    assert loaded["bert.encoder.layer.0.intermediate.dense.weight"].shape == (256, 128)
