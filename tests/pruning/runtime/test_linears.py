"""Single linear layers in the sparse runtime: against nn.Linear, and in models of families without kernels."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoConfig, AutoModel

from pruning.runtime import compiler, linears
from pruning.runtime.linears import SparseLinear, swap_linears
from pruning.runtime.packing import Blocks

pytestmark = pytest.mark.skipif(
    not compiler.supported() or not compiler.compilers(), reason="no C compiler, or no kernels for this CPU"
)
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 100, "max_position_embeddings": 64, "pad_token_id": 0}  # fmt: skip


def prune(layer: nn.Linear, density: float) -> None:
    """Leave this share of random 4x1 blocks."""
    blocks = torch.rand(-(-layer.out_features // 4), layer.in_features) < density
    layer.weight.data *= blocks.repeat_interleave(4, dim=0)[: layer.out_features]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 40), st.lists(st.integers(0, 5), max_size=3), st.booleans(),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)  # fmt: skip
def test_a_sparse_layer_gives_what_the_dense_one_gives(
    rows: int, columns: int, batch: list[int], bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(rows)
    dense = nn.Linear(columns, rows, bias=bias)
    prune(dense, 0.3)
    sparse = SparseLinear(Blocks.of(dense.weight), dense.bias, compiler.library(), "float32")
    x = torch.randn(*batch, columns).to(dtype)
    with torch.inference_mode():
        got, expected = sparse(x), dense(x.float()).to(dtype)
    assert got.dtype == dtype and got.shape == expected.shape
    torch.testing.assert_close(got, expected, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-4)


def test_another_number_of_features_is_refused() -> None:
    sparse = SparseLinear(Blocks.of(torch.ones(4, 8)), None, compiler.library(), "float32")
    with pytest.raises(ValueError, match="7 features; the layer has 8"):
        sparse(torch.ones(2, 7))


@pytest.mark.parametrize("family", ["albert", "mpnet", "deberta-v2", "modernbert", "convbert"])
def test_a_model_of_another_family_gives_the_same_with_sparse_layers(family: str) -> None:
    torch.manual_seed(0)
    dense = AutoModel.from_config(AutoConfig.for_model(family, **SIZES)).eval()
    for layer in dense.modules():
        if type(layer) is nn.Linear:
            prune(layer, 0.2)
    fast = copy.deepcopy(dense)
    done = swap_linears(fast, compiler.library(), "float32")
    assert done.swapped >= 4 and done.packed_bytes < done.dense_bytes
    assert sum(isinstance(layer, SparseLinear) for layer in fast.modules()) == done.swapped
    assert sum(isinstance(layer, nn.Linear) for layer in fast.modules()) == done.dense
    tokens = torch.randint(5, 100, (2, 16))
    with torch.inference_mode():
        expected, got = (model(input_ids=tokens).last_hidden_state for model in (dense, fast))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_small_dense_shared_and_derived_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    class Derived(nn.Linear):
        pass

    model = nn.ModuleDict({name: nn.Linear(128, 128) for name in ("sparse", "dense", "one", "two")})
    model.update({"small": nn.Linear(64, 64), "derived": Derived(128, 128)})
    for name, layer in model.items():
        if name != "dense":
            prune(layer, 0.1)  # pyright: ignore[reportArgumentType]
    model["two"].weight = model["one"].weight
    done = swap_linears(model, compiler.library(), "float32")
    assert [name for name, layer in model.items() if isinstance(layer, SparseLinear)] == ["sparse"]
    assert (done.swapped, done.dense) == (1, 5)
    monkeypatch.setattr(linears, "DENSEST", 1.0)
    assert swap_linears(model, compiler.library(), "float32").swapped == 1  # the one that is dense
