"""Runs that begin at a block give what whole runs give, bit for bit, and cost a few runs of the model in all."""

import copy
import logging
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pruning import OBS, Block, Global, Plan, matrix_weights, obs
from pruning.second_order.chain import Chain
from tests.pruning.test_architectures import CASES, network

NO_CHAIN = "runs from the middle of the model differ from whole ones"


class Feed(nn.Module):
    """A block with two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(x)))


class Stack(nn.Module):
    """Four blocks, run in one of several ways."""

    def __init__(self, way: Callable[[nn.ModuleList, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.blocks, self.way, self.out = nn.ModuleList([Feed() for _ in range(4)]), way, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.way(self.blocks, x))


def in_order(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


def reversed_order(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in reversed(list(blocks)):
        x = block(x)
    return x


def with_a_bypass(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    first = blocks[0](x)
    return blocks[3](blocks[2](blocks[1](first)) + first)


def in_place(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x).mul_(0.9)
    return x


def twice(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    return in_order(blocks, in_order(blocks, x))


def short_ones_differ(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    """The first batch of `batches` runs as a chain, the others have a bypass around each block."""
    x = first = blocks[0](x)
    for block in blocks[1:]:
        x = block(x) + (first if len(x) < 12 else 0)
    return x


def pruned(model: nn.Module, batches: list[Tensor], loss: Callable[[nn.Module, Tensor], Tensor]) -> dict[str, Tensor]:
    """The weights of a copy that was pruned in sequence."""
    model = copy.deepcopy(model)
    plan = Plan(matrix_weights(model), Block(1, 1, target_sparsity=0.5), Global(max_per_layer=0.9))
    obs(model, plan, batches, lambda batch, _: loss(model, batch), criterion=OBS(sequential=True, rounds=[1.0]))
    return model.state_dict()


def check(
    model: nn.Module, batches: list[Tensor], loss: Callable[[nn.Module, Tensor], Tensor], patch: pytest.MonkeyPatch
) -> None:
    short = pruned(model, batches, loss)
    with patch.context() as patched:
        patched.setattr(Chain, "reach", lambda self, modules, key, run, check: run())
        whole = pruned(model, batches, loss)
    assert any(not torch.equal(tensor, whole[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, whole[name]) for name, tensor in short.items())


def of_stack(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().sum()


def batches(count: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(12 - number % 3, 8, generator=random) for number in range(count)]


@pytest.mark.parametrize(("way", "is_chain"), [
    (in_order, True), (reversed_order, True), (with_a_bypass, False), (in_place, False), (twice, False),
    (short_ones_differ, False),
])  # fmt: skip
def test_any_order_of_blocks_gives_what_whole_runs_give(way, is_chain, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    check(Stack(way), batches(3), of_stack, monkeypatch)
    assert (NO_CHAIN in caplog.text) != is_chain


@pytest.mark.parametrize("case", CASES)
def test_families_are_chains(case, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    tokens = [torch.arange(5, 35).view(3, 10), torch.arange(7, 37).view(3, 10)]

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        assert isinstance(model, PreTrainedModel)
        result = model(input_ids=batch, attention_mask=(batch < 33).long())
        first = result[0] if "last_hidden_state" in result else result.start_logits
        return first.square().sum()

    check(network(case), tokens, loss, monkeypatch)
    assert NO_CHAIN not in caplog.text


def test_the_cost_grows_with_the_blocks_and_not_with_their_square():
    model, runs = Stack(in_order), [0] * 4
    for number, block in enumerate(model.blocks):
        block.down.register_forward_hook(lambda *_, n=number: runs.__setitem__(n, runs[n] + 1))  # type: ignore[union-attr]
    candidates = {name: p for name, p in matrix_weights(model).items() if name.startswith("blocks.")}
    plan = Plan(candidates, Block(1, 1, target_sparsity=0.5))
    obs(model, plan, batches(50), lambda batch, _: of_stack(model, batch), criterion=OBS(sequential=True))
    # 50 for the Hessians; 50 in each of two models to reach the next block, which the last has not; and those of two
    # for each later block that are compared with a whole run
    assert runs == [50 + 100 + 5, 50 + 100 + 4, 50 + 100 + 2, 50]


def test_blocks_are_themselves_again_after_a_failure():
    model = Stack(in_order)
    own = model.blocks[0].forward
    model.blocks[0].forward = own  # as some libraries set it
    later = model.blocks[2].get_submodule("up")

    def fail(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if "forward" in vars(model.blocks[1]):
            raise RuntimeError("a run in the middle")

    later.register_forward_pre_hook(fail)
    plan = Plan(matrix_weights(model), Block(1, 1, target_sparsity=0.5))
    with pytest.raises(RuntimeError, match="a run in the middle"):
        obs(model, plan, batches(3), lambda batch, _: of_stack(model, batch), criterion=OBS(sequential=True))
    assert vars(model.blocks[0])["forward"] is own
    assert all("forward" not in vars(block) for block in model.blocks[1:])


class Tied(Stack):
    """A matrix that two blocks have as one module, and one that two have as a weight."""

    def __init__(self) -> None:
        super().__init__(in_order)
        one, two, three, _ = cast("list[Feed]", [*self.blocks])
        three.up = one.up
        three.down.weight = two.down.weight


def test_what_several_blocks_share_is_reached_by_whole_runs(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    check(Tied(), batches(3), of_stack, monkeypatch)
    assert NO_CHAIN not in caplog.text
