"""`python -m runner.benchmark --device cuda`: which layers become 2:4, and which form is kept."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering, BertConfig, BertForQuestionAnswering

from runner import benchmark
from runner.speed import cuda
from runner.speed.measure import batch_of
from runner.speed.runtimes import Runtime
from runner.speed.timing import Timing, time_all
from runner.system.errors import UserError

AMPERE = (8, 0)
gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < AMPERE,
    reason="needs an NVIDIA GPU of compute capability 8.0",
)


def two_of_four(rows: int, columns: int) -> Tensor:
    """Random weights with the two largest of each four."""
    weight = torch.rand(rows, columns // 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    least = weight.argsort(-1)[..., :2]
    return weight.scatter(-1, least, 0.0).view(rows, columns)


@pytest.fixture
def model() -> BertForQuestionAnswering:
    """A small BERT whose encoder is 2:4."""
    torch.manual_seed(0)
    sizes = BertConfig(vocab_size=50, hidden_size=64, intermediate_size=128, num_attention_heads=2, num_hidden_layers=1)
    net = BertForQuestionAnswering(sizes).eval()
    with torch.no_grad():
        for layer in net.bert.encoder.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.mul_(two_of_four(*layer.weight.shape) != 0)
    return net


def timed(runtime: str, ms: float, ratio: float, batch: int = 1) -> Timing:
    return Timing(runtime, "bfloat16", batch, 128, 1, ms, ms, ms, ms, ratio, 0.0, None)


def layer(weight: Tensor) -> nn.Module:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight = nn.Parameter(weight)
    return nn.Sequential(made)


def test_two_of_four_is_counted_along_the_input() -> None:
    weight = two_of_four(8, 16)
    assert cuda.is_2_of_4(weight)
    assert not cuda.is_2_of_4(weight.t().contiguous())
    weight[3, 4:8] = torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert not cuda.is_2_of_4(weight)
    assert not cuda.is_2_of_4(torch.zeros(8, 6)), "6 columns are no groups of 4"


def test_4x1_is_counted_along_the_output() -> None:
    weight = torch.ones(8, 5)
    assert not cuda.is_4x1(weight), "dense is no 4x1"
    weight[4:, 2] = 0
    assert cuda.is_4x1(weight)
    weight[1, 0] = 0
    assert not cuda.is_4x1(weight)


@pytest.mark.parametrize(
    ("rows", "columns", "cutlass", "cusparselt"),
    [(32, 64, True, True), (16, 64, False, True), (32, 48, False, True), (8, 64, False, False), (48, 64, False, True)],
)
def test_a_layer_is_chosen_where_its_shape_fits_the_backend(
    rows: int, columns: int, cutlass: bool, cusparselt: bool
) -> None:
    net = layer(two_of_four(rows, columns))
    assert bool(cuda.layers(net, "CUTLASS")) == cutlass
    assert bool(cuda.layers(net, "cuSPARSELt")) == cusparselt
    assert not cuda.layers(layer(torch.ones(rows, columns)), "cuSPARSELt"), "a dense layer"


def test_the_2_of_4_layers_are_converted_in_bfloat16_and_timed(model: BertForQuestionAnswering) -> None:
    converted: list[tuple[str, torch.Size, torch.dtype]] = []

    def convert(weight: Tensor, backend: str) -> Tensor:
        converted.append((backend, weight.shape, weight.dtype))
        return weight.clone()

    before = copy.deepcopy(model.state_dict())
    made = cuda.runtimes(model, False, AMPERE, convert)
    assert [str(each) for each in made] == [
        "torch float32", "torch bfloat16", "2:4 CUTLASS bfloat16", "2:4 cuSPARSELt bfloat16",
    ]  # fmt: skip
    assert len(converted) == 12  # six layers for two backends; the head's 2 rows fit none
    assert {dtype for _, _, dtype in converted} == {torch.bfloat16}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    timings = time_all(made, batch_of(model, 2, 8), 1, 0, wall=True)
    assert {t.runtime for t in timings} == {"torch", "2:4 CUTLASS", "2:4 cuSPARSELt"}
    assert all(t.ms == t.wall_ms for t in timings)


def test_a_backend_that_fails_is_named_and_the_other_is_timed(
    model: BertForQuestionAnswering, caplog: pytest.LogCaptureFixture
) -> None:
    def convert(weight: Tensor, backend: str) -> Tensor:
        if backend == "cuSPARSELt":
            raise RuntimeError("no such library")
        return weight.clone()

    made = cuda.runtimes(model, False, AMPERE, convert)
    assert [each.name for each in made] == ["torch", "torch", "2:4 CUTLASS"]
    assert "2:4 cuSPARSELt is not timed: no such library" in caplog.text


def test_without_a_sparse_form_dense_alone_is_timed_and_the_reason_named(
    model: BertForQuestionAnswering, caplog: pytest.LogCaptureFixture
) -> None:
    made = cuda.runtimes(model, False, (7, 5))
    assert [str(each) for each in made] == ["torch float32", "torch bfloat16"]
    assert "2:4 needs compute capability 8.0 (Ampere), and this GPU has 7.5; dense alone is timed" in caplog.text
    weight = torch.ones(32, 64)
    assert cuda.why_dense(layer(weight), AMPERE) == "no layer is 2:4 in a shape that the GPU multiplies"
    weight[:4, ::3] = 0
    assert "1 layers are 4x1, and a GPU has no form for it" in str(cuda.why_dense(layer(weight), AMPERE))


def test_the_sparse_form_is_kept_only_where_it_wins() -> None:
    timings = [
        timed("torch", 4, 0.5), timed("torch.compile", 2, 1), timed("2:4 CUTLASS", 4, 0.5),
        timed("2:4 cuSPARSELt", 2.5, 0.8),
        timed("torch", 9, 1, batch=32), timed("2:4 CUTLASS", 8, 1.12, batch=32),
        timed("torch", 9, 1, batch=48), timed("2:4 CUTLASS", 9, 1.004, batch=48),
        timed("torch", 9, 1, batch=64),
    ]  # fmt: skip
    keep = ": it loses: keep the dense form"
    assert cuda.verdicts(timings) == [
        f"2:4 cuSPARSELt is 0.80x the best dense (torch.compile bfloat16) at batch 1, length 128{keep}",
        "2:4 CUTLASS is 1.12x the best dense (torch bfloat16) at batch 32, length 128",
        f"2:4 CUTLASS is 1.00x the best dense (torch bfloat16) at batch 48, length 128{keep}",
        "no 2:4 form was timed at batch 64, length 128: keep the dense form",
    ]


def test_a_call_waits_for_the_gpu_before_and_after() -> None:
    order: list[str] = []
    runtime = Runtime("a", "float32", lambda _: order.append("run") or [])
    cuda.synchronised(runtime, lambda: order.append("wait")).run({})
    assert order == ["wait", "run", "wait"]


def test_without_a_gpu_nothing_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device cuda: torch .* finds no CUDA GPU here; use a machine with one"):
        benchmark.main(["nowhere", "--device", "cuda"])


@pytest.mark.parametrize("option", [["--threads", "2"], ["--precision", "int8"]])
def test_options_of_the_cpu_are_refused_on_a_gpu(option: list[str]) -> None:
    with pytest.raises(UserError, match="--device cuda: --precision and --threads are of the CPU"):
        benchmark.main(["nowhere", "--device", "cuda", *option])


@pytest.mark.parametrize(("capability", "has"), [((8, 0), True), ((8, 9), True), ((9, 0), False), ((12, 0), False)])
def test_cutlass_is_used_on_ampere_and_ada_alone(capability: tuple[int, int], has: bool) -> None:
    reason = cuda.why_not("CUTLASS", capability)
    assert (reason is None) == has
    assert has or f"this GPU has {capability[0]}.0" in str(reason)


@gpu
@pytest.mark.parametrize("backend", list(cuda.BACKENDS))
def test_the_compressed_form_multiplies_as_the_dense_one(backend: str) -> None:
    if reason := cuda.why_not(backend, torch.cuda.get_device_capability()):
        pytest.skip(reason)
    weight, x = two_of_four(64, 128).bfloat16().cuda(), torch.rand(32, 128).bfloat16().cuda()
    got = nn.functional.linear(x, cuda.compress(weight, backend))
    torch.testing.assert_close(got, nn.functional.linear(x, weight), rtol=0.02, atol=0.1)


@gpu
def test_a_dense_model_is_timed_on_the_gpu(small_model: Path) -> None:
    model = AutoModelForQuestionAnswering.from_pretrained(small_model).eval()
    speed = cuda.measure_cuda(model, [1, 2], [16], seconds=0)
    assert speed.machine.gpu
    assert torch.cuda.get_device_name() in str(speed.machine)
    assert {t.batch for t in speed.timings} == {1, 2}
