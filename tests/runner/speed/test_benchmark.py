"""`python -m runner.benchmark`: runtimes take turns, and one that computes something else is not timed."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForQuestionAnswering

from pruning.runtime import compiler
from runner import benchmark
from runner.speed import timing
from runner.speed.runtimes import Missing, Runtime, available, installed, torch_dense
from runner.system.errors import UserError
from tests.conftest import Cli


def test_json_lists_the_runtimes_with_their_ratios(cli: Cli, small_model: Path) -> None:
    done = cli(
        "-m", "runner.benchmark", str(small_model), "--batch", "1,2", "--length", "16", "--seconds", "0", "--json"
    )
    assert done.returncode == 0, done.stderr
    timings = json.loads(done.stdout)
    fields = {"runtime", "precision", "batch", "length", "threads", "ms", "ms_low", "ms_high", "ratio_to_best_dense"}
    assert all(fields | {"memory_bytes"} <= t.keys() for t in timings)
    for batch in (1, 2):
        alike = [t for t in timings if (t["batch"], t["length"], t["threads"]) == (batch, 16, 1)]
        assert {"torch float32", "torch bfloat16"} <= {f"{t['runtime']} {t['precision']}" for t in alike}
        assert all(0 < t["ms_low"] <= t["ms"] <= t["ms_high"] for t in alike)
        dense = [t for t in alike if t["runtime"] != "sparse"]
        assert min(dense, key=lambda t: t["ms"])["ratio_to_best_dense"] == 1
        if compiler.supported() and compiler.compilers():
            assert {t["precision"] for t in alike if t["runtime"] == "sparse"} == set(benchmark.default_precisions())


@pytest.mark.parametrize(("arguments", "words"), [
    (["nowhere"], "nowhere: there is no config.json"),
    (["MODEL", "--batch", "0"], "--batch 0: give numbers above 0"),
    (["MODEL", "--length", "1,x"], "--length 1,x: give numbers above 0"),
    (["MODEL", "--length", "4096"], "--length 4096: the model has 512 positions"),
    (["MODEL", "--precision", "float16"], "--precision float16: choose from float32, bfloat16, int8"),
])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(arguments: list[str], words: str, small_model: Path) -> None:
    with pytest.raises(UserError, match=words):
        benchmark.main([str(small_model) if a == "MODEL" else a for a in arguments])


def test_a_runtime_that_computes_something_else_is_not_timed(
    small_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(small_model).eval()
    inputs = benchmark.batch_of(model, 2, 8)
    exact = torch_dense(model, "float32", compiled=False)
    wrong = Runtime("wrong", "float32", lambda i: [2 * value for value in exact.run(i)])
    close = dataclasses.replace(exact, name="close")
    timings = timing.time_all([exact, wrong, close], inputs, 1, 0)
    assert {t.runtime for t in timings} == {"torch", "close"}
    assert "wrong float32 is not timed: its outputs differ from torch's by 1" in caplog.text


def test_ratios_are_medians_of_the_ratios_of_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = [[10.0, 20.0, 40.0], [5.0, 10.0, 10.0], [4.0, 4.0, 4.0]]
    monkeypatch.setattr(timing, "_turns", lambda *_: (cpu, cpu))
    monkeypatch.setattr(timing, "_agreeing", lambda runtimes, _: [(runtime, 0.0) for runtime in runtimes])
    runtimes = [
        Runtime("a", "float32", lambda _: []),
        Runtime("b", "float32", lambda _: []),
        Runtime("c", "int8", lambda _: [], sparse=True),
    ]
    timings = {t.runtime: t for t in timing.time_all(runtimes, {"input_ids": torch.zeros(1, 4)}, 1)}
    assert timings["b"].ratio_to_best_dense == 1  # its median is the least of the dense ones
    assert timings["a"].ratio_to_best_dense == 0.5  # of 0.5, 0.5, 0.25
    assert timings["c"].ratio_to_best_dense == 2.5  # of 1.25, 2.5, 2.5


def test_a_busy_machine_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    cpu = [[1.0, 1.0, 9.0, 9.0, 9.0]]
    monkeypatch.setattr(timing, "_turns", lambda *_: (cpu, cpu))
    monkeypatch.setattr(timing, "_agreeing", lambda runtimes, _: [(runtime, 0.0) for runtime in runtimes])
    timing.time_all([Runtime("a", "float32", lambda _: [])], {"input_ids": torch.zeros(1, 4)}, 1)
    assert "this machine is busy: times vary by 89 %" in caplog.text


def test_a_module_that_is_not_installed_is_named_with_the_remedy() -> None:
    with pytest.raises(Missing, match=r"no_such_module is not installed: .venv/bin/pip install -e '.\[bench\]'"):
        installed("no_such_module")


def test_exported_models_agree_with_torch(small_model: Path) -> None:
    for module in ("onnx", "onnxruntime"):
        pytest.importorskip(module, reason=f"{module} is not installed (the extra bench)")
    model = AutoModelForQuestionAnswering.from_pretrained(small_model).eval()
    with available(model, benchmark.batch_of(model, 2, 8), ("float32",), 1, compiled=False) as runtimes:
        timings = timing.time_all(runtimes, benchmark.batch_of(model, 3, 20), 1, 0)
    assert "ONNX Runtime" in {t.runtime for t in timings}
