"""`python -m runner.benchmark --units`: tables of times by a timer that counts weights, and what they predict."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from pruning import LatencySettings, LatencyTable, TimePrediction
from pruning.runtime.cut import cut
from runner import benchmark
from runner.exports.onnx import Inputs
from runner.speed import units
from runner.speed.runtimes import Runtime
from runner.system.errors import UserError
from tests.conftest import NO_DATA, Cli, Refused

SETTINGS = LatencySettings("torch", "float32", 1, 16, 1)
LAYERS, HIDDEN, HEADS, CHANNELS = 3, 32, 4, 40


def config(kind: str = "bert", **changes: int) -> PretrainedConfig:
    sizes = {
        "bert": {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "num_attention_heads": HEADS,
                 "intermediate_size": CHANNELS},
        "distilbert": {"n_layers": LAYERS, "dim": HIDDEN, "n_heads": HEADS, "hidden_dim": CHANNELS},
    }[kind]  # fmt: skip
    return AutoConfig.for_model(kind, vocab_size=50, max_position_embeddings=64, **{**sizes, **changes})


@pytest.fixture
def weighed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Instead of a clock: each weight takes a microsecond, and one turn in five is disturbed. Returns the numbers of
    bytes of all models that were timed."""
    seen: list[int] = []

    def timer(runtimes: Sequence[Runtime], inputs: Inputs, threads: int, seconds: float) -> list[list[float]]:
        assert (inputs["input_ids"].shape, threads) == ((1, 16), 1)
        seen.extend(runtime.bytes or 0 for runtime in runtimes)
        return [[(runtime.bytes or 0) / 4e3 * noise for noise in (1, 1, 7, 1, 1)] for runtime in runtimes]

    monkeypatch.setattr(units, "time_in_turns", timer)
    return seen


def weights(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_each_size_is_timed_in_turns_with_the_whole_model(kind: str, weighed: list[int], tmp_path: Path) -> None:
    model = units.random_model(config(kind))
    table = units.measure_units(model, SETTINGS)
    head, channel = (4 * HIDDEN * HIDDEN + 3 * HIDDEN) / HEADS, 2 * HIDDEN + 1  # weights of a unit
    assert table.heads_ms == pytest.approx({n: (n - 1) * head / 1e3 for n in (1, 2, 3, 4)})
    measured = (1, 2, 5, 10, 15, 20, 25, 30, 35, 40)
    assert table.channels_ms == pytest.approx({n: (n - 1) * channel / 1e3 for n in measured})
    assert table.whole_ms == pytest.approx(weights(model) / 1e3)
    assert weighed[::2] == [4 * weights(model)] * (3 + 9 + 1)
    assert table.check.size == units.Size(2, 20)
    assert table.check.predicted_ms == pytest.approx(table.check.measured_ms)
    file = tmp_path / "new" / "table.json"
    table.write(file)
    read = LatencyTable.read(str(file))
    assert (read.layers, read.hidden, len(read.heads), len(read.channels)) == (LAYERS, HIDDEN, HEADS + 1, CHANNELS + 1)
    assert read.channels[7] == pytest.approx(6 * channel / 1e3)  # between two measured numbers
    assert (read.settings, read.whole) == (SETTINGS, pytest.approx(table.whole_ms))
    text = str(table)
    assert f"{HEADS} heads  " in text
    assert "1 head " in text
    assert f"predicts {table.check.predicted_ms:.2f} ms" in text


def test_the_cut_model_takes_what_the_table_predicts(weighed: list[int], tmp_path: Path) -> None:
    model = units.random_model(config())
    units.measure_units(model, SETTINGS).write(tmp_path / "table.json")
    table = LatencyTable.read(str(tmp_path / "table.json"))
    saved = 0.0
    for number, (name, unit) in enumerate(units.units_of(model).items()):  # unlike in each layer
        gone = number % unit.units
        saved += table.saved(name, unit)[gone]
        for part in unit.parts:
            part.view(part.parameter.data)[:gone] = 0
    predicted = TimePrediction(table.whole, table.whole - saved, table.settings)
    measured = units.measure_speedup(model, SETTINGS)
    assert measured.dense_ms == pytest.approx(predicted.dense_ms)
    assert measured.speedup == pytest.approx(predicted.speedup)
    assert measured.speedup > 1.05


def test_noise_never_makes_fewer_units_slower(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    noise = iter([1.0, 0.85, 0.95, *(0.5 + 0.04 * (n % 3) for n in range(9)), 0.9])
    monkeypatch.setattr(units, "time_in_turns", lambda *_: [[10.0], [10.0 * next(noise)]])
    table = units.measure_units(units.random_model(config()), SETTINGS)
    for times in (table.heads_ms, table.channels_ms):
        ordered = [times[n] for n in sorted(times)]
        assert ordered == sorted(ordered)
        assert ordered[0] == 0
    assert table.heads_ms[4] == pytest.approx((10 - (10 + 8.5) / 2) / LAYERS)
    assert "this table predicts poorly: with 2 heads and 20 channels" in caplog.text


def test_times_that_make_no_sense_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "time_in_turns", lambda *_: [[10.0], [1.0]])
    with pytest.raises(UserError, match="the times make no sense on this busy machine: measure again, longer"):
        units.measure_units(units.random_model(config()), SETTINGS)


def sizes(model: PreTrainedModel) -> set[tuple[int, int]]:
    rows = {name: p.shape[0] for name, p in model.named_parameters()}
    layers = [f"encoder.layer.{number}." for number in range(model.config.num_hidden_layers)]
    return {(rows[f"{name}attention.self.query.weight"], rows[f"{name}intermediate.dense.weight"]) for name in layers}


def test_models_are_cut_as_exports_cut_them() -> None:
    model = units.random_model(config(), layers=2)
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert units.size_of(model) == units.Size(HEADS, CHANNELS)
    assert sizes(units.cut_to(model, units.Size(3, 7))) == {(3 * HIDDEN // HEADS, 7)}
    assert sizes(units.cut_to(model, units.Size(1, 1))) == {(HIDDEN // HEADS, 1)}
    assert sizes(units.cut_to(model, units.Size(4, 40))) == sizes(model) == {(HIDDEN, CHANNELS)}
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert (cut(model).heads, model.config.num_hidden_layers) == (0, 2)


def test_an_architecture_that_is_not_cut_is_refused() -> None:
    other = AutoConfig.for_model("albert", vocab_size=50, hidden_size=32, num_attention_heads=4, intermediate_size=40)
    with pytest.raises(UserError, match="out of each layer: 1 attentions and 1 feed-forward networks are cut"):
        units.random_model(other)


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "int8"), ("openvino", "float32")])
def test_other_backends_are_timed(backend: str, precision: str) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip(backend)
    settings = LatencySettings(backend, precision, 2, 16, 1)
    measured = units.measure_speedup(units.random_model(config(), layers=1), settings, 0)
    assert measured.dense_ms > 0
    assert measured.sparse_ms > 0


def test_a_backend_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any) -> None:
        raise units.Missing("onnx is not installed")

    monkeypatch.setattr(units, "export_onnx", missing)
    with pytest.raises(UserError, match=r"^--backend openvino: onnx is not installed$"):
        units.measure_units(units.random_model(config(), layers=1), LatencySettings("openvino", "float32", 1, 16, 1), 0)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_writes_a_table_for_each_setting_from_a_configuration_alone(
    weighed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config().save_pretrained(tmp_path / "only-config")
    benchmark.main(["only-config", "--units", "--length", "16", "--seconds", "0"])
    file = tmp_path / "cache" / "latency" / "only-config-torch-float32-b1-l16-t1.json"
    assert f"pass it as allocation.latency={file.relative_to(tmp_path)}" in capsys.readouterr().out
    values = json.loads(file.read_text())
    assert values["model"] == {"model_type": "bert", "layers": 3, "hidden": 32, "heads": 4, "channels": 40}
    assert values["machine"]["versions"]["torch"] == torch.__version__
    benchmark.main(["only-config", "--units", "--length", "16", "--layers", "2", "--output", "mine.json", "--json"])
    written = (tmp_path / "mine.json").read_text()
    assert capsys.readouterr().out == written
    assert json.loads(written)["model"]["layers"] == 2


def test_the_name_of_an_option_is_the_model_of_that_option(weighed: list[int], tmp_path: Path) -> None:
    benchmark.main(["tiny", "--units", "--length", "16", "--cache-dir", str(tmp_path)])
    values = json.loads((tmp_path / "latency" / "tiny-torch-float32-b1-l16-t1.json").read_text())
    assert (values["model"]["layers"], values["model"]["channels"]) == (4, 512)


@pytest.mark.parametrize(("arguments", "words"), [
    (["MODEL", "--backend", "torch"], "--backend: it is of --units; add that, or leave it out"),
    (["MODEL", "--cache-dir", "x"], "--cache-dir: it is of --units"),
    (["MODEL", "--units", "--compile"], "--units times torch, ONNX Runtime or OpenVINO on the CPU"),
    (["MODEL", "--units", "--precision", "int8"], "--precision int8: --units --backend torch takes one of float32, bf"),
    (["MODEL", "--units", "--length", "16,32", "--output", "x"], "--output x: a file has one table"),
    (["MODEL", "--units", "--layers", "0"], "--layers 0: give a number above 0"),
    (["MODEL", "--units", "--length", "4096"], "--length 4096: the model has 512 positions"),
    (["MODEL", "--units", "--output", "MODEL/config.json/x"], "--output=.*config.json: "),
])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], words: str, small_model: Path) -> None:
    with pytest.raises(UserError, match=words):
        benchmark.main([argument.replace("MODEL", str(small_model)) for argument in arguments])


def test_a_prediction_is_compared_with_a_measurement(
    small_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(small_model), "--length", "8", "--seconds", "0"]
    settings = {"backend": "torch", "precision": "float32", "batch": 1, "length": 16, "threads": 1}
    predicted = {"predicted": {"dense_ms": 8.0, "sparse_ms": 4.0, "settings": settings}}
    measured = TimePrediction(9.0, 5.0, SETTINGS)
    monkeypatch.setattr(units, "measure_speedup", lambda *given: given[1] == SETTINGS and measured)
    (small_model / "pruning.json").write_text(json.dumps(predicted))
    benchmark.main(arguments)
    words = "(torch float32, batch 1, length 16, 1 thread)"
    assert capsys.readouterr().out.endswith(
        f"\n\npredicted: 2.00x as fast, 8.00 to 4.00 ms {words}\nmeasured:  1.80x as fast, 9.00 to 5.00 ms {words}\n"
    )
    predicted["predicted"]["settings"] = {**settings, "backend": "sparse"}
    (small_model / "pruning.json").write_text(json.dumps(predicted))
    benchmark.main(arguments)
    assert "predicted" not in capsys.readouterr().out
    for damaged in ("{", json.dumps({"predicted": 2}), json.dumps({"predicted": {"dense_ms": math.nan}})):
        (small_model / "pruning.json").write_text(damaged)
        with pytest.raises(UserError, match=r"pruning.json is damaged or not whole; remove it"):
            benchmark.main(arguments)


# --- a run by a table -------------------------------------------------------------------------------------------------

RUN = ("model=tiny", "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=16", "train.max_steps=8",
       "train.per_device_train_batch_size=8", "finetune.max_steps=2", "finetune.per_device_train_batch_size=8",
       "pattern=structured")  # fmt: skip


def table_of_tiny(folder: Path, **changes: Any) -> Path:
    values = {
        "format": "prune-distill latency 1",
        "settings": {"backend": "torch", "precision": "float32", "batch": 1, "length": 16, "threads": 1},
        "model": {"layers": 4, "hidden": 128, "heads": 4, "channels": 512},
        "whole_ms": 10.0,
        "heads_ms": {"1": 0, "2": 0.3, "3": 0.4, "4": 0.8},
        "channels_ms": {"1": 0, "128": 0.4, "512": 1.2},
        **changes,
    }
    (folder / "table.json").write_text(json.dumps(values))
    return folder / "table.json"


def finished(folder: Path) -> list[Path]:
    return sorted((folder / "outputs").glob("*/result.json"))


@pytest.mark.slow
def test_a_run_picks_the_units_for_a_speed_up(cli: Cli, tmp_path: Path) -> None:
    table_of_tiny(tmp_path)
    asked = ("-m", "runner", *RUN, "pattern.target_speedup=2", "allocation.latency=table.json")
    said = cli(*asked, "dry_run=true").stdout
    assert "pattern structured, target 0.625 of the time: 8 layers, 2,064 units\n" in said  # 5 of 8 ms
    words = "10.00 to 5.00 ms (torch float32, batch 1, length 16, 1 thread)"
    assert f"predicted at the target: 2.00x as fast, {words}; how many" in said
    done = cli(*asked)
    assert done.returncode == 0, done.stderr
    assert "allocation.latency has times for texts of 16 tokens, and dataset.max_seq_length=128" in done.stderr
    (file,) = finished(tmp_path)
    predicted = json.loads(file.read_text())["predicted"]
    assert 1.99999 <= predicted["dense_ms"] / predicted["sparse_ms"] <= 2.3
    speedup = f"{predicted['dense_ms'] / predicted['sparse_ms']:.2f}x as fast, 10.00 to "
    assert f"  predicted         {speedup}" in done.stdout
    card = (file.parent / "model" / "README.md").read_text()
    assert f"with the pruned heads and channels cut out as an export does: {speedup}" in card
    pruning = json.loads((file.parent / "model" / "pruning.json").read_text())
    assert pruning["predicted"] == predicted
    assert pruning["pattern"]["target_speedup"] == 2
    saved = 0.0
    for layer in pruning["layers"]:
        if layer["name"].endswith("attention.output.dense.weight"):
            saved += 0.8 - [0, 0, 0.3, 0.4, 0.8][4 - layer["pruned_units"]]
        elif layer["name"].endswith("output.dense.weight"):
            left = max(1, 512 - layer["pruned_units"])
            saved += 1.2 - (0.4 * (left - 1) / 127 if left <= 128 else 0.4 + 0.8 * (left - 128) / 384)
    assert predicted["sparse_ms"] == pytest.approx(10 - saved)

    # The table's times are part of the run's identity, not its place; the cost is implied.
    (tmp_path / "table.json").rename(tmp_path / "moved.json")
    again = cli(*asked[:-1], "allocation.latency=moved.json", "allocation.cost=latency")
    assert "already finished" in again.stderr
    table_of_tiny(tmp_path, whole_ms=10.5)
    assert cli(*asked).returncode == 0
    assert len(finished(tmp_path)) == 2


@pytest.mark.parametrize(("arguments", "change", "words"), [
    (["pattern.target_speedup=9"], {}, "pattern.target_speedup=9 is out of reach: of 10.00 ms the units that may be "
     "pruned take 7.87 ms; at most 4.7"),
    (["pattern.target_speedup=2", "pattern.target_sparsity=0.5"], {}, "give one of them"),
    (["allocation.cost=latency"],
     {"model": {"layers": 4, "hidden": 128, "heads": 8, "channels": 512}, "heads_ms": {"1": 0, "8": 1}},
     "allocation.latency=FILE: it was measured with 8 heads"),
    (["allocation.cost=latency", "model.num_layers=2"], {}, "allocation.latency=FILE: it was measured with 4 "
     "layers, and the student has 2: python -m runner.benchmark MODEL_OR_FOLDER --units --layers 2"),
    (["allocation.cost=latency"], {"format": 0}, "allocation.latency=FILE is no latency table of this version"),
    ([], {}, "allocation.latency=FILE has no effect with allocation.cost=parameters: set allocation.cost=latency"),
])  # fmt: skip
def test_a_table_that_does_not_serve_is_refused_before_data_are_read(
    arguments: list[str], change: dict[str, Any], words: str, refused: Refused, tmp_path: Path
) -> None:
    table = table_of_tiny(tmp_path, **change)
    run = [argument for argument in RUN if not argument.startswith("dataset")]
    said = refused(*run, f"allocation.latency={table}", *arguments, "dataset=sst2", f"dataset.path={NO_DATA}")
    assert words in said.replace(str(table), "FILE")


def test_times_are_asked_for(refused: Refused) -> None:
    for key in ("pattern.target_speedup=2", "allocation.cost=latency"):
        said = refused(*RUN, key, "dry_run=true")
        assert (
            f"{key} needs times of this model: python -m runner.benchmark MODEL_OR_FOLDER --units writes them" in said
        )
    said = refused(*RUN, "pattern.target_speedup=2", "allocation.latency=nowhere.json")
    assert "allocation.latency=nowhere.json cannot be read (No such file or directory)" in said
