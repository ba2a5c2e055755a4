"""Single linear layers in the sparse runtime: against nn.Linear, and in models of families without kernels."""

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel

from pruning import runtime
from pruning.runtime import compiler, linears
from pruning.runtime.linears import SparseLinear, swap_linears
from pruning.runtime.packing import Blocks

pytestmark = pytest.mark.skipif(
    not compiler.supported() or not compiler.compilers(), reason="no C compiler, or no kernels for this CPU"
)
SIZES = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip


def prune(layer: nn.Linear, density: float) -> None:
    """Leave this share of random 4x1 blocks."""
    blocks = torch.rand(-(-layer.out_features // 4), layer.in_features) < density
    layer.weight.data *= blocks.repeat_interleave(4, dim=0)[: layer.out_features]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(0, 9), max_size=3), st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), st.integers(1, 3),
)  # fmt: skip
def test_a_sparse_layer_gives_what_the_dense_one_gives(
    rows: int, columns: int, batch: list[int], bias: bool, dtype: torch.dtype, threads: int
) -> None:
    torch.manual_seed(rows)
    dense = nn.Linear(columns, rows, bias=bias)
    prune(dense, 0.3)
    sparse = SparseLinear(Blocks.of(dense.weight), dense.bias, compiler.library(), "float32", threads)
    x = torch.randn(*batch, columns).to(dtype)
    with torch.inference_mode():
        got, expected = sparse(x), dense(x.float()).to(dtype)
    assert (got.dtype, got.shape) == (dtype, expected.shape)
    torch.testing.assert_close(got, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4)


def test_another_number_of_features_is_refused() -> None:
    sparse = SparseLinear(Blocks.of(torch.ones(4, 8)), None, compiler.library(), "float32")
    with pytest.raises(ValueError, match="7 features; the layer has 8"):
        sparse(torch.ones(2, 7))


@torch.no_grad()
def sparse_model(family: str, density: float = 0.2, **changes: object) -> PreTrainedModel:
    """A random model whose linear layers have this share of their blocks."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(family, **SIZES | changes)).eval()
    for layer in model.modules():
        if type(layer) is nn.Linear:
            prune(layer, density)
    return model


def hidden_states(model: PreTrainedModel | runtime.FastModel) -> Tensor:
    with torch.inference_mode():
        return model(input_ids=torch.arange(5, 69).view(2, 32))["last_hidden_state"]


@pytest.mark.parametrize("family", ["albert", "mpnet", "deberta-v2", "modernbert", "convbert"])
def test_a_model_of_another_family_gives_the_same_with_sparse_layers(family: str) -> None:
    dense = sparse_model(family)
    fast = copy.deepcopy(dense)
    done = swap_linears(fast, compiler.library(), "float32")
    assert len(done.sparse) >= 4
    assert done.packed_bytes < done.dense_bytes
    assert sum(isinstance(layer, SparseLinear) for layer in fast.modules()) == len(done.sparse)
    assert sum(isinstance(layer, nn.Linear) for layer in fast.modules()) == done.dense
    tokens = torch.randint(5, 100, (2, 16))
    with torch.inference_mode():
        expected, got = (model(input_ids=tokens).last_hidden_state for model in (dense, fast))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_small_dense_shared_and_derived_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Derived(nn.Linear):
        pass

    model = nn.ModuleDict({name: nn.Linear(256, 256) for name in ("sparse", "dense", "one", "two")})
    model.update({"small": nn.Linear(64, 64), "derived": Derived(256, 256)})
    for name, layer in model.items():
        if name != "dense":
            prune(layer, 0.1)  # pyright: ignore[reportArgumentType]
    model["two"].weight = model["one"].weight
    done = swap_linears(model, compiler.library(), "float32")
    assert [name for name, layer in model.items() if isinstance(layer, SparseLinear)] == ["sparse"]
    assert (list(done.sparse), done.dense) == (["sparse"], 5)
    monkeypatch.setattr(linears, "DENSEST", 1.0)
    assert list(swap_linears(model, compiler.library(), "float32").sparse) == ["dense"]


def test_threads_share_the_tokens() -> None:
    dense = nn.Linear(64, 64)
    sparse = SparseLinear(Blocks.of(dense.weight), dense.bias, compiler.library(), "float32", threads=2)
    shared: list[int] = []
    one = sparse._rows
    sparse._rows = lambda x: shared.append(len(x)) or one(x)
    x = torch.randn(50, 64)
    with torch.inference_mode():
        torch.testing.assert_close(sparse(x), dense(x))
    assert sorted(shared) == [18, 32]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("saved", [False, True])
def test_a_family_without_kernels_has_sparse_layers_and_says_so(saved: bool, threads: int, tmp_path: Path) -> None:
    model = sparse_model("mpnet")
    expected = hidden_states(model)
    model.save_pretrained(tmp_path)
    fast = (
        runtime.load(tmp_path, "float32", threads) if saved else runtime.accelerate(model, "float32", threads=threads)
    )
    report = fast.report
    assert (report.runtime, report.precision, report.swapped, report.dense) == ("sparse linears", "float32", 13, 0)
    assert "no kernels for the architecture 'mpnet'" in report.reason
    assert report.packed_bytes < report.dense_bytes
    assert 0.15 < report.density < 0.25
    assert report.difference is not None
    assert report.difference < 1e-4
    assert "sparse linears float32" in str(report)
    assert "in 13 layers, 0 are dense" in str(report)
    assert report.reason in str(report)
    torch.testing.assert_close(hidden_states(fast), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("density", "precision", "reason"), [
    (0.9, "auto", "no linear layer is sparse enough to be faster alone"),
    (0.2, {"down": "float32", "others": "int8"}, "single linear layers have one precision"),
])  # fmt: skip
def test_where_no_layer_can_be_sparse_the_model_is_dense(density: float, precision: str, reason: str) -> None:
    if precision != "auto" and "int8" not in compiler.precisions(compiler.library().instructions):
        pytest.skip("this CPU has float32 only")
    model = sparse_model("mpnet", density)
    expected = hidden_states(model)
    fast = runtime.accelerate(model, precision)
    assert fast.report.runtime == "dense torch"
    assert reason in fast.report.reason
    assert torch.equal(hidden_states(fast), expected)


def test_layers_that_fail_the_self_check_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sparse_model("mpnet")
    expected = hidden_states(model)
    monkeypatch.setattr(SparseLinear, "_rows", lambda self, x: torch.ones(len(x), self.out_features))
    fast = runtime.accelerate(model)
    assert fast.report.runtime == "dense torch"
    assert "its sparse linear layers" in fast.report.reason
    assert torch.equal(hidden_states(fast), expected)


def test_a_model_that_reads_the_weight_of_a_layer_stays_dense() -> None:
    model = sparse_model("mpnet")
    expected = hidden_states(model)
    encoder = model.get_submodule("encoder")
    encoder.register_forward_pre_hook(lambda module, _: module.layer[0].output.dense.weight.dtype and None)  # pyright: ignore
    fast = runtime.accelerate(model)
    assert fast.report.runtime == "dense torch"
    assert "it needs its dense layers" in fast.report.reason
    assert torch.equal(hidden_states(fast), expected)


def test_a_model_of_other_inputs_stays_dense() -> None:
    config = AutoConfig.for_model("vit", hidden_size=256, num_hidden_layers=1, num_attention_heads=4,
                                  intermediate_size=512, image_size=32)  # fmt: skip
    fast = runtime.accelerate(AutoModel.from_config(config))
    assert fast.report.runtime == "dense torch"
    assert "its self-check cannot run" in fast.report.reason


def test_without_a_compiler_it_is_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "compilers", list)
    report = runtime.accelerate(sparse_model("mpnet")).report
    compiler.library.cache_clear()
    assert report.runtime == "dense torch"
    assert "no kernels for the architecture 'mpnet'" in report.reason
    assert "no C compiler was found" in report.reason
