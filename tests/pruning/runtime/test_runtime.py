"""The sparse runtime: its products against a naive one, its models against the Hugging Face model."""

import copy
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import prune
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from pruning import PruningError, runtime
from pruning.runtime import compiler
from pruning.runtime.encoder import SparseEncoder, linear, selection
from pruning.runtime.families import ACTIVATIONS, LINEARS, structure_of
from pruning.runtime.model import layer_precisions
from pruning.runtime.packed_file import Packed
from pruning.runtime.packing import Blocks, PackedLinear
from pruning.runtime.self_check import TOLERANCE
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(
    not compiler.supported() or not compiler.compilers(), reason="no C compiler, or no kernels for this CPU"
)
SUPPORTED = compiler.supported() if "neon" in compiler.supported() else [*compiler.supported(), "neon"]
KERNELS = [(name, precision) for name in SUPPORTED for precision in compiler.precisions(name)]
FINE = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 6e-2}
"""Mean difference of a model's outputs relative to their mean size that each precision may cause."""


@pytest.fixture(autouse=True)
def instructions_without_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "neon" is plain C with vector types: every compiler takes it, so an x86 CPU tests it, too."""
    monkeypatch.setattr(compiler, "supported", lambda: SUPPORTED)


def rounding(x: Tensor, weight: Tensor, precision: str) -> Tensor:
    """The largest error of each output of x W^T (tokens, rows) that the rounding of a precision can cause."""
    products = x.abs() @ weight.abs().T
    if precision != "int8":
        return products * {"float32": 4e-6, "bfloat16": 2**-7}[precision]  # bfloat16: 2^-9 of each factor
    step_x = (x.amax(dim=1) - x.amin(dim=1)) / 255  # of each token
    step_w = weight.abs().amax(dim=1) / 127  # of each row
    of_x = 0.51 * step_x[:, None] * (weight.abs() + step_w[:, None]).sum(dim=1)
    return of_x + 0.51 * step_w * (x.abs() @ (weight != 0).float().T) + 1e-5 * (products + 1)


def sparse_matrix(rows: int, columns: int, density: float, seed: int) -> Tensor:
    """A random matrix with this share of 4x1 blocks."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(-(-rows // 4), columns, generator=generator) < density
    return torch.randn(rows, columns, generator=generator) * blocks.repeat_interleave(4, dim=0)[:rows]


# --- matrices -----------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 70), st.sampled_from([0, 0.1, 0.5, 1]), st.integers(0, 99))
def test_blocks_give_the_matrix_back_bit_for_bit(rows: int, columns: int, density: float, seed: int) -> None:
    weight = sparse_matrix(rows, columns, density, seed)
    blocks = Blocks.of(weight)
    assert torch.equal(blocks.dense().view(torch.int32), (weight + 0.0).view(torch.int32))
    present = sum(bool(weight[r : r + 4, c].any()) for r in range(0, rows, 4) for c in range(columns))
    assert len(blocks.value) == present
    assert blocks.density == present / (-(-rows // 4) * columns)


@given(st.integers(1, 24), st.integers(1, 40), st.integers(0, 99))
def test_int8_blocks_are_within_half_a_step_of_each_row(rows: int, columns: int, seed: int) -> None:
    weight = sparse_matrix(rows, columns, 0.5, seed)
    error = (Blocks.of(weight, "int8").dense() - weight).abs()
    assert bool((error <= weight.abs().amax(dim=1, keepdim=True) / 127 * 0.501).all())


@pytest.mark.parametrize("precision", ["float32", "int8"])
@given(
    st.integers(1, 6), st.integers(1, 9), st.sampled_from([0, 0.3, 1]), st.integers(0, 99),
    st.lists(st.booleans(), min_size=9, max_size=9), st.lists(st.booleans(), min_size=6, max_size=6),
)  # fmt: skip
def test_selected_blocks_are_those_of_the_smaller_matrix(
    precision: str, block_rows: int, columns: int, density: float, seed: int, of_columns: list, of_rows: list
) -> None:
    weight = sparse_matrix(4 * block_rows, columns, density, seed)
    blocks = Blocks.of(weight, precision)
    rows = torch.tensor(of_rows[:block_rows]).repeat_interleave(4)
    kept = torch.tensor(of_columns[:columns])
    part = blocks.select(rows, kept)
    assert part.shape == (int(rows.sum()), int(kept.sum()))
    assert torch.equal(part.dense(), blocks.dense()[rows][:, kept])
    assert torch.equal(blocks.select().dense(), blocks.dense())
    assert torch.equal(blocks.used(1), (weight != 0).any(dim=1).view(-1, 4).any(dim=1).repeat_interleave(4))
    assert torch.equal(blocks.used(0), (weight != 0).any(dim=0))


@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 90), tokens=st.integers(1, 150), seed=st.integers(0, 9999),
    density=st.sampled_from([0, 0.05, 0.2, 0.5, 1]), bias=st.booleans(),
)  # fmt: skip
def test_a_product_is_the_naive_one(
    instructions: str, precision: str, rows: int, columns: int, tokens: int, seed: int, density: float, bias: bool
) -> None:
    weight = sparse_matrix(rows, columns, density, seed)
    x, b = torch.randn(tokens, columns), torch.randn(rows) if bias else None
    packed = PackedLinear.of(Blocks.of(weight, precision), b, precision)
    got = linear(packed, x, compiler.library(instructions))[:, :rows]
    expected = x.double() @ weight.double().T + (b.double() if b is not None else 0)
    assert bool(((got - expected).abs() <= rounding(x, weight, precision) + 1e-6).all())


REFERENCE = {
    "relu": nn.functional.relu, "gelu": nn.functional.gelu, "silu": nn.functional.silu,
    "gelu_new": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}  # fmt: skip


@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
@pytest.mark.parametrize("name", REFERENCE)
def test_activations_are_torchs(name: str, instructions: str, precision: str) -> None:
    if precision == "int8":
        return  # its rounding of the input hides them; it uses the activations of bfloat16
    x = torch.linspace(-30, 30, 4001)[:, None]
    packed = PackedLinear.of(Blocks.of(torch.ones(4, 1), precision), None, precision)
    got = linear(packed, x, compiler.library(instructions), ACTIVATIONS[name])[:, 0]
    x = x if precision == "float32" else x.bfloat16().float()
    torch.testing.assert_close(got, REFERENCE[name](x)[:, 0], atol=1e-6 if precision == "float32" else 2e-4, rtol=1e-5)


@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_token_that_is_not_finite_stays_so_and_alone(instructions: str, precision: str, value: float) -> None:
    x = torch.randn(70, 8)
    x[3, 5] = value
    packed = PackedLinear.of(Blocks.of(torch.randn(8, 8), precision), None, precision)
    got = linear(packed, x, compiler.library(instructions))
    assert not got[3].isfinite().any()
    assert got[torch.arange(70) != 3].isfinite().all()


@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
def test_denormal_numbers_are_no_trap(instructions: str, precision: str) -> None:
    x = torch.full((5, 8), 1e-40)
    packed = PackedLinear.of(Blocks.of(torch.ones(4, 8), precision), torch.ones(4), precision)
    torch.testing.assert_close(linear(packed, x, compiler.library(instructions)), torch.ones(5, 4))


# --- models -------------------------------------------------------------------------------------------------

SIZES = {
    "bert": {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 70},
    "roberta": {"hidden_size": 30, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64,
                "max_position_embeddings": 300, "pad_token_id": 1},
    "electra": {"hidden_size": 32, "embedding_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
                "intermediate_size": 64, "hidden_act": "relu"},
    "distilbert": {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 96},
    "camembert": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
                  "hidden_act": "gelu_new", "max_position_embeddings": 300},
}  # fmt: skip
HEADS = [AutoModelForQuestionAnswering, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModel]


def sparse_model(
    kind: str, head: type = AutoModelForQuestionAnswering, density: float = 0.3, **sizes: object
) -> PreTrainedModel:
    """A small random model with 4x1 weights of several densities."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=100, **{**SIZES[kind], **sizes})
    model = head.from_config(config).eval()  # pyright: ignore[reportAttributeAccessIssue]
    with torch.no_grad():
        for number, (name, weight) in enumerate(model.named_parameters()):
            if ".layer." in f".{name}" and weight.dim() == 2:
                share = [0.3, 1.0, 0.0, 0.15][number % 4]
                weight.copy_(sparse_matrix(weight.shape[0], weight.shape[1], share, number) * 0.3)
            elif weight.dim() == 1:
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def batch_of(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and a mask with right and left padding, a hole and, if there are enough, a text without a token."""
    ids, mask = torch.randint(5, 100, (batch, length)), torch.ones(batch, length, dtype=torch.long)
    for row in range(batch):
        [lambda m: m, lambda m: m[length // 2 + 1 :].zero_(), lambda m: m[: length // 3].zero_(),
         lambda m: m[length // 2 :: 3].zero_(), lambda m: m.zero_()][row % 5](mask[row])  # fmt: skip
    return ids, mask


def difference(dense: PreTrainedModel, fast: runtime.FastModel, ids: Tensor, mask: Tensor) -> float:
    """Mean difference of the outputs where the mask has tokens, relative to their mean size."""
    with torch.inference_mode():
        expected, got = dense(input_ids=ids, attention_mask=mask), fast(input_ids=ids, attention_mask=mask)
    assert expected.keys() == got.keys()
    largest = 0.0
    for name, value in expected.items():
        rows = mask.bool() if value.shape[:2] == mask.shape else mask.any(dim=1)
        a, b = value[rows], got[name][rows]
        largest = max(largest, float((a - b).abs().mean() / a.abs().mean().clamp(min=1e-6)))
    return largest


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
def test_a_model_gives_what_the_hugging_face_model_gives(kind: str, instructions: str, precision: str) -> None:
    dense = sparse_model(kind, AutoModel)
    fast = runtime.accelerate(copy.deepcopy(dense), precision, instructions=instructions)
    assert fast.report.runtime == "sparse"
    for batch, length in ((1, 1), (5, 17), (6, 70)):
        assert difference(dense, fast, *batch_of(batch, length)) < FINE[precision]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: head.__name__)
@pytest.mark.parametrize("kind", ["bert", "distilbert", "electra", "roberta"])
def test_every_head_works(kind: str, head: type) -> None:
    dense = sparse_model(kind, head)
    fast = runtime.accelerate(copy.deepcopy(dense), "float32")
    assert difference(dense, fast, *batch_of(5, 20)) < 2e-6


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
def test_dead_parts_are_cut(kind: str, instructions: str, precision: str, tmp_path: Path) -> None:
    dense = sparse_model(kind, AutoModel)
    structure = structure_of(dense.config)
    size, padded = structure.head_size, -(-structure.head_size // 4) * 4
    weights = [
        {name: dense.base_model.get_parameter(structure.family.parameter(layer, name, "weight")) for name in LINEARS}
        for layer in (0, 1)
    ]
    with torch.no_grad():
        for weight in (*weights[0].values(), *weights[1].values()):
            weight.uniform_(-0.3, 0.3)
        weights[0]["value"][:size] = 0  # the first head; its bias remains
        weights[0]["output"][:, size : 2 * size] = 0  # the second
        weights[0]["key"][2 * size : 2 * size + 8] = 0  # features of the third, and others of it
        weights[0]["value"][2 * size + 4 : 2 * size + 8] = 0
        weights[0]["up"][:8] = 0
        weights[0]["down"][:, 8:18] = 0  # two channels of a block live
        weights[1]["down"].zero_()
        weights[1]["key"].zero_()  # attends to all tokens alike
    fast = runtime.accelerate(copy.deepcopy(dense), precision, instructions=instructions)
    assert fast.report.cut is not None
    channels, heads = -(-len(weights[0]["up"]) // 4) * 4, structure.heads
    assert (fast.report.cut.channels, fast.report.cut.all_channels) == (16 + channels - 4, 2 * channels)
    assert (fast.report.cut.heads, fast.report.cut.all_heads) == (2, 2 * heads)
    features = 4 * padded + 8 + 4 + heads * padded
    assert (fast.report.cut.features, fast.report.cut.all_features) == (features, 4 * heads * padded)
    assert f"cut: {fast.report.cut}" in str(fast.report)
    runtime.pack(dense, tmp_path / "packed", precision)
    packed = runtime.load(tmp_path / "packed", precision, instructions=instructions)
    assert packed.report.cut == fast.report.cut
    for batch, length in ((1, 1), (5, 17), (3, 70)):
        ids, mask = batch_of(batch, length)
        assert difference(dense, fast, ids, mask) < FINE[precision]
        assert difference(dense, packed, ids, mask) < FINE[precision]


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_the_number_of_threads_changes_nothing_but_time(threads: int) -> None:
    dense = sparse_model("bert")
    for batch, length in ((1, 130), (2, 33), (7, 20)):
        ids, mask = batch_of(batch, length)
        outputs = [
            runtime.accelerate(copy.deepcopy(dense), "float32", n)(input_ids=ids, attention_mask=mask)["start_logits"]
            for n in (1, threads)
        ]
        assert torch.equal(*outputs)


def test_a_text_does_not_depend_on_its_batch() -> None:
    fast = runtime.accelerate(sparse_model("bert"), "float32")
    ids, mask = batch_of(7, 40)
    together = fast(input_ids=ids, attention_mask=mask)["start_logits"]
    for row in range(7):
        alone = fast(input_ids=ids[row : row + 1], attention_mask=mask[row : row + 1])["start_logits"]
        assert torch.equal(alone[0], together[row])


def test_selection_puts_keys_first_and_longest_texts_first() -> None:
    mask = torch.tensor([[1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]])
    tokens, keys, source = selection(mask, 3, 4)
    assert tokens.tolist() == [4, 2, 1]
    assert keys.tolist() == [3, 2, 0]
    assert source.tolist() == [5, 6, 7, 4, 0, 1, 8]


def test_calls_from_several_threads_do_not_disturb_each_other() -> None:
    from concurrent.futures import ThreadPoolExecutor

    fast = runtime.accelerate(sparse_model("bert"), "float32", threads=2)
    batches = [batch_of(1 + i % 4, 20 + 9 * i) for i in range(8)]
    alone = [fast(input_ids=ids, attention_mask=mask)["start_logits"] for ids, mask in batches]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda b: fast(input_ids=b[0], attention_mask=b[1])["start_logits"], batches * 3))
    assert all(torch.equal(a, b) for a, b in zip(alone * 3, results, strict=True))


def test_mixed_precision_is_between_its_parts() -> None:
    has = compiler.precisions(compiler.supported()[0])
    if len(has) == 1:
        pytest.skip("this CPU has float32 only")
    dense = sparse_model("bert", AutoModel)
    mixed = dict.fromkeys(LINEARS, "float32") | {"down": next(p for p in has if p != "float32")}
    exact, fast = (runtime.accelerate(copy.deepcopy(dense), precision) for precision in ("float32", mixed))
    assert fast.report.precision == "mixed"
    batch = batch_of(4, 50)
    assert difference(dense, exact, *batch) < difference(dense, fast, *batch) < 2e-2


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize(("instructions", "precision"), KERNELS)
def test_the_self_check_passes_what_is_right_and_reports_the_difference(
    kind: str, instructions: str, precision: str
) -> None:
    model = sparse_model(kind)
    generator = torch.get_rng_state()
    fast = runtime.accelerate(model, precision, instructions=instructions)
    assert torch.equal(torch.get_rng_state(), generator)
    assert fast.report.difference is not None
    assert 0 < fast.report.difference < TOLERANCE[precision] / 2
    assert runtime.accelerate(sparse_model(kind), precision, check=False).report.difference is None
    again = runtime.accelerate(sparse_model(kind).train(), precision, instructions=instructions)  # without dropout
    assert again.report == fast.report


@pytest.mark.parametrize("wrong", ["a row of a weight", "not finite", "the mask"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_wrong_kernel_runs_dense_and_says_so(
    wrong: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dense = sparse_model("bert")
    runtime.pack(dense, tmp_path / "packed")
    right = SparseEncoder.forward

    def broken(self: SparseEncoder, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        out = right(self, hidden, None if wrong == "the mask" else mask)
        if wrong == "a row of a weight":
            out[..., 5] = 0
        elif wrong == "not finite":
            out[0, 1, 2] = torch.nan
        return out

    monkeypatch.setattr(SparseEncoder, "forward", broken)
    load = (lambda: runtime.load(tmp_path / "packed")) if packed else lambda: runtime.accelerate(copy.deepcopy(dense))
    fast = load()
    assert fast.report.runtime == "dense torch"
    assert "failed its self-check: it differs from torch by" in fast.report.reason
    assert "the model runs dense in torch" in caplog.text
    assert difference(dense, fast, *batch_of(5, 20)) < 1e-6


def test_a_model_that_is_not_finite_in_torch_either_passes_the_self_check() -> None:
    model = sparse_model("bert")
    with torch.no_grad():
        model.base_model.get_parameter("encoder.layer.1.output.dense.bias")[3] = torch.nan
    assert runtime.accelerate(model).report.runtime == "sparse"


def test_a_mapping_of_precisions_may_name_some_layers() -> None:
    name = compiler.supported()[0]
    best, *rest = compiler.precisions(name)
    other = rest[-1] if rest else best
    each = dict.fromkeys(LINEARS, best)
    assert layer_precisions("auto", name) == layer_precisions({}, name) == each
    assert layer_precisions({"down": other}, name) == each | {"down": other}
    assert layer_precisions({"others": other, "up": "auto"}, name) == dict.fromkeys(LINEARS, other) | {"up": best}


# --- what it cannot do --------------------------------------------------------------------------------------


def test_an_architecture_without_kernels_runs_dense_and_says_so() -> None:
    config = AutoConfig.for_model("albert", vocab_size=100, hidden_size=32, num_attention_heads=2, intermediate_size=64,
                                  embedding_size=16)  # fmt: skip
    model = AutoModel.from_config(config).eval()
    fast = runtime.accelerate(model)
    assert fast.report.runtime == "dense torch"
    assert "albert" in str(fast.report)
    ids = torch.randint(5, 100, (1, 8))
    with torch.inference_mode():
        assert torch.equal(fast(input_ids=ids)["last_hidden_state"], model(input_ids=ids)["last_hidden_state"])


def test_an_unknown_activation_runs_dense_and_says_so() -> None:
    fast = runtime.accelerate(sparse_model("bert", hidden_act="mish"))
    assert "mish" in fast.report.reason


def test_without_a_compiler_it_runs_dense_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "compilers", list)
    fast = runtime.accelerate(sparse_model("bert"))
    compiler.library.cache_clear()
    assert fast.report.runtime == "dense torch"
    assert "no C compiler was found" in fast.report.reason


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "compilers", lambda: [["false"]])
    fast = runtime.accelerate(sparse_model("bert"))
    compiler.library.cache_clear()
    assert "no compiler works: false: exit status 1" in fast.report.reason


@pytest.mark.parametrize(("precision", "words"), [
    ("float16", "precision='float16' is not one of auto, float32, bfloat16, int8"),
    ({"queries": "float32"}, "must name query, key, value, output, up, down"),
    ({"query": "float32"}, "must name query, key, value, output, up, down"),
    ({**dict.fromkeys(LINEARS, "float32"), "key": "int8"}, "the same"),
])  # fmt: skip
def test_a_precision_that_makes_no_sense_is_refused(precision: str, words: str) -> None:
    if "same" in words and "int8" not in compiler.precisions(compiler.supported()[0]):
        pytest.skip("this CPU has float32 only")
    with pytest.raises(PruningError, match=words):
        runtime.accelerate(sparse_model("bert"), precision)


def test_a_number_of_threads_or_a_device_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(PruningError, match="threads=0 must be at least 1"):
        runtime.accelerate(sparse_model("bert"), threads=0)
    with pytest.raises(PruningError, match="the model is on meta; move it to the CPU"):
        runtime.accelerate(sparse_model("bert").to("meta"))  # pyright: ignore[reportArgumentType]


def test_what_a_sparse_encoder_cannot_serve_is_refused() -> None:
    fast = runtime.accelerate(sparse_model("bert"))
    ids, mask = batch_of(2, 8)
    with pytest.raises(PruningError, match="output_hidden_states"):
        fast(input_ids=ids, output_hidden_states=True)
    with pytest.raises(PruningError, match=r"attention_mask is \(2, 8, 8\), not"):
        fast(input_ids=ids, attention_mask=mask[:, None].expand(2, 8, 8))


# --- files and compilation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIZES)
def test_a_packed_file_loads_without_the_dense_model_and_restores_it(kind: str, tmp_path: Path) -> None:
    dense = sparse_model(kind)
    runtime.pack(dense, tmp_path / "model.packed.safetensors")
    fast = runtime.load(tmp_path / "model.packed.safetensors", "float32")
    assert fast.report.runtime == "sparse"
    assert difference(dense, fast, *batch_of(5, 30)) < 2e-6
    packed = Packed.read(tmp_path / "model.packed.safetensors")
    config, tensors = packed.config, packed.tensors
    assert config.num_hidden_layers == dense.config.num_hidden_layers
    for name, original in dense.state_dict().items():
        stored = tensors[name]
        restored = stored.dense() if isinstance(stored, Blocks) else stored
        assert torch.equal(restored, original), name
    assert sum(isinstance(tensor, Blocks) for tensor in tensors.values()) == 6 * config.num_hidden_layers


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_a_packed_file_of_lower_precision_is_what_the_runtime_would_make(precision: str, tmp_path: Path) -> None:
    if precision not in compiler.precisions(compiler.supported()[0]):
        pytest.skip(f"this CPU has no {precision}")
    dense = sparse_model("bert")
    runtime.pack(dense, tmp_path / "packed", precision)
    ids, mask = batch_of(5, 30)
    expected = runtime.accelerate(dense, precision)(input_ids=ids, attention_mask=mask)["start_logits"]
    fast = runtime.load(tmp_path / "packed")
    assert fast.report.precision == precision
    assert torch.equal(fast(input_ids=ids, attention_mask=mask)["start_logits"], expected)


def test_a_packed_file_without_a_compiler_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = sparse_model("bert")
    runtime.pack(dense, tmp_path / "packed")
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "compilers", list)
    fast = runtime.load(tmp_path / "packed")
    compiler.library.cache_clear()
    assert fast.report.runtime == "dense torch"
    assert difference(dense, fast, *batch_of(5, 30)) < 1e-6


@pytest.mark.parametrize(("part", "change"), [
    ("column", lambda t: t + 48), ("start", lambda t: t.flip(0)), ("start", lambda t: t[:-1]),
    ("value", lambda t: t[:-1]), ("shape", lambda t: t * 2), ("shape", lambda t: t[:1]), ("value", None),
])  # fmt: skip
def test_a_packed_file_with_damaged_blocks_is_refused(
    part: str, change: Callable[[Tensor], Tensor] | None, tmp_path: Path
) -> None:
    file = tmp_path / "packed"
    runtime.pack(sparse_model("bert"), file)
    with safe_open(file, "pt") as stored:
        described, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    name = f"bert.encoder.layer.0.attention.self.query.weight.{part}"
    old = tensors.pop(name)
    if change is not None:
        tensors[name] = change(old.int() if part == "column" else old).to(old.dtype).contiguous()
    save_file(tensors, file, metadata=described)
    with pytest.raises(PruningError, match=r"query\.weight"):
        runtime.load(file)


def test_a_packed_file_of_another_size_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "packed"
    runtime.pack(sparse_model("bert"), file)
    with safe_open(file, "pt") as stored:
        described, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    save_file(tensors, file, metadata=described | {"config": described["config"].replace(": 70", ": 64")})
    with pytest.raises(PruningError, match="do not fit BertForQuestionAnswering, such as"):
        runtime.load(file)
    save_file(tensors, file, metadata=described | {"config": "{"})
    with pytest.raises(PruningError, match="its configuration is damaged"):
        runtime.load(file)


def test_a_mask_for_all_texts_is_that_of_each() -> None:
    dense = sparse_model("bert")
    fast = runtime.accelerate(copy.deepcopy(dense), "float32")
    ids, mask = torch.randint(5, 100, (4, 9)), torch.tensor([[1] * 6 + [0] * 3])
    expected = fast(input_ids=ids, attention_mask=mask.expand(4, 9))["start_logits"]
    assert torch.equal(fast(input_ids=ids, attention_mask=mask)["start_logits"], expected)
    with pytest.raises(PruningError, match=r"attention_mask is \(2, 9\), not \(batch, length\): \(4, 9\)"):
        fast(input_ids=ids, attention_mask=mask.expand(2, 9))


def test_a_layer_with_something_added_runs_dense_and_says_so() -> None:
    model = sparse_model("bert")
    prune.random_unstructured(model.get_submodule("bert.encoder.layer.1.intermediate.dense"), "weight", 0.5)
    report = runtime.accelerate(model).report
    assert report.runtime == "dense torch"
    assert "layer 1's intermediate.dense, a Linear with the parameters bias, weight_orig: merge" in report.reason


def test_a_configuration_that_asks_for_more_outputs_runs_dense_and_says_so() -> None:
    model = sparse_model("bert")
    model.config.output_hidden_states = True
    fast = runtime.accelerate(model)
    assert "asks for output_hidden_states" in fast.report.reason
    assert len(fast(input_ids=torch.tensor([[5, 6]]))["hidden_states"]) == 3


def test_a_file_that_is_not_packed_is_refused(tmp_path: Path) -> None:
    sparse_model("bert").save_pretrained(tmp_path)
    for file, text in ((tmp_path / "model.safetensors", None), (tmp_path / "text", "nonsense")):
        if text:
            file.write_text(text)
        with pytest.raises(PruningError, match="is no packed model"):
            runtime.load(file)


def test_a_saved_folder_loads(tmp_path: Path) -> None:
    dense = sparse_model("bert")
    dense.save_pretrained(tmp_path)
    fast = runtime.load(tmp_path, "float32")
    assert type(fast.model).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    assert difference(dense, fast, *batch_of(5, 30)) < 2e-6
    assert fast.report.packed_bytes < fast.report.dense_bytes


def _compile(folder: Path) -> str:
    compiler.library.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return compiler.library().instructions


@pytest.mark.slow
def test_eight_processes_compile_at_once(tmp_path: Path) -> None:
    with multiprocessing.get_context("fork").Pool(8) as pool:
        assert set(pool.map(_compile, [tmp_path] * 8)) == {compiler.supported()[0]}
    files = [path.suffix for path in (tmp_path / "prune-distill" / "runtime").iterdir()]
    assert sorted(files) == ["", ".so"]  # the lock and one library


SANITIZED = """
import sys
sys.path.insert(0, ".")
from pruning.runtime import compiler
flags = [flag for flag in compiler._BASE if flag != "-O3"]
compiler._BASE = (*flags, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
import torch
from pruning import runtime
from pruning.runtime.encoder import linear
from pruning.runtime.packing import Blocks, PackedLinear
from tests.pruning.runtime.test_runtime import KERNELS, SIZES, SUPPORTED, batch_of, sparse_matrix, sparse_model
compiler.supported = lambda: SUPPORTED
for instructions, precision in (*KERNELS[:3], *KERNELS[-2:]):
    for rows, columns, tokens in ((1, 1, 1), (4, 4, 16), (7, 33, 65), (65, 5, 130)):
        for density in (0, 0.3, 1):
            blocks = Blocks.of(sparse_matrix(rows, columns, density, 0), precision)
            packed = PackedLinear.of(blocks, torch.ones(rows), precision)
            linear(packed, torch.randn(tokens, columns), compiler.library(instructions))
    for kind in SIZES:
        for threads in (1, 3):
            fast = runtime.accelerate(sparse_model(kind), precision, threads, instructions)
            for batch, length in ((1, 1), (5, 17), (2, 70), (1, 200)):
                ids, mask = batch_of(batch, length)
                fast(input_ids=ids, attention_mask=mask)
print("clean")
"""


@pytest.mark.slow
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(tmp_path: Path) -> None:
    """Under the address and undefined behaviour sanitizers of gcc."""
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    asan = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(asan).is_absolute():
        pytest.skip("gcc's libasan is not installed")
    settings = {"LD_PRELOAD": asan, "ASAN_OPTIONS": "detect_leaks=0", "XDG_CACHE_HOME": str(tmp_path), "CC": "gcc"}
    command, env = [sys.executable, "-c", SANITIZED], {**os.environ, **settings}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, env=env)
    assert done.stdout == "clean\n", done.stderr[-3000:]
