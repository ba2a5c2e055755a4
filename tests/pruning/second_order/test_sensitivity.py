"""The rise of the loss by layer is that of the layer's least squares, and that of the loss itself where this is one."""

from typing import Any

import pytest
import torch
from torch import nn

from pruning import OBS, Calibration, Plan, PruningError, parse, sensitivity

BATCHES = [torch.randn(64, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Linear(12, 4)).double()


def measured(model: Any, pattern: str, sparsities: list[float], **settings: Any) -> dict:
    def loss(batch: torch.Tensor, chance: torch.Generator) -> torch.Tensor:
        out = model(batch.double())
        drawn = out.detach() + torch.randn(out.shape, generator=chance, dtype=out.dtype)  # unit variance: Fisher is 1
        return (out - drawn).square().sum() / 2

    plan = Plan({f"{i}.weight": layer.weight for i, layer in enumerate(model)}, parse(pattern, None))
    return sensitivity(Calibration(model, BATCHES, loss), plan, sparsities, OBS(**settings))


@pytest.mark.parametrize("pattern", ["1x1", "4x1", "1x2"])
def test_the_loss_rises_with_sparsity_and_no_weight_changes(pattern: str) -> None:
    model = net()
    before = [p.clone() for p in model.parameters()]
    found = measured(model, pattern, [0.9, 0.5, 0.75])
    assert [list(losses) for losses in found.values()] == [[0.5, 0.75, 0.9]] * 2
    for losses in found.values():
        low, middle, high = losses.values()
        assert 0 < low < middle < high
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert measured(model, pattern, [0.9, 0.5, 0.75]) == found


def test_it_is_the_rise_of_a_quadratic_loss() -> None:
    """For the last layer with unit Fisher, against least squares by torch on the inputs themselves."""
    model = net()
    (losses,) = [found for name, found in measured(model, "rows", [0.5], damping=1e-9).items() if name == "1.weight"]
    inputs = model[0](torch.cat(BATCHES).double()).detach()
    out = model[1](inputs).detach()
    lost = (out - out.mean(0)).square().mean(0)  # a row without weights gives its mean: the bias is refitted
    two = sorted(lost.tolist())[:2]
    assert losses[0.5] == pytest.approx(len(inputs) * sum(two) / 2, rel=0.25)  # Fisher is sampled from 192 labels


def test_nm_has_its_own_sparsity_and_a_looser_pattern_costs_less() -> None:
    tight, loose = measured(net(), "1:4", [0.5]), measured(net(), "2:4", [0.5])
    assert {tuple(losses) for losses in tight.values()} == {(0.75,)}
    assert {tuple(losses) for losses in loose.values()} == {(0.5,)}
    assert all(loose[name][0.5] < tight[name][0.75] for name in loose)


def test_a_layer_that_nothing_depends_on_is_left_out() -> None:
    model = net()
    with torch.no_grad():
        model[1].weight.zero_()
    assert list(measured(model, "4x1", [0.5])) == ["1.weight"]


@pytest.mark.parametrize("sparsities", [[], [0.0], [0.5, 1.0], [-0.1]])
def test_impossible_sparsities_are_refused(sparsities: list[float]) -> None:
    with pytest.raises(PruningError, match=r"sparsities=.* must lie between 0 and 1"):
        measured(net(), "4x1", sparsities)
