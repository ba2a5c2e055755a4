"""Sequential OBS against least squares on the inputs themselves, layer after layer."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    OBS,
    Block,
    Calibration,
    Global,
    Gradual,
    LayerOverride,
    NofM,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    TrainingLength,
    matrix_weights,
    obs,
)
from pruning.second_order import collect
from tests.pruning.second_order.test_obs import Attention, check_resume, data, loss_of
from tests.pruning.second_order.test_references import in_order
from tests.pruning.two_ranks import on_two_ranks

SEQUENTIAL = OBS(sequential=True)
PATTERNS = [Block(4, 1, target_sparsity=0.75), Block(1, 1, target_sparsity=0.6), Block(2, 2, target_sparsity=0.5)]


def exact(model: nn.Module | None = None) -> nn.Module:
    """A network of float64, so that a comparison sees formulas and not rounding."""
    return (model or Attention()).double()


def batches(count: int = 4) -> list[Tensor]:
    return [batch.double() for batch in data(count)]


def pruned(model: nn.Module, pattern, criterion: OBS = SEQUENTIAL, given=None) -> nn.Module:
    """A copy of the model, pruned in one shot."""
    model = copy.deepcopy(model)
    obs(model, Plan(matrix_weights(model), pattern, Global(max_per_layer=0.9)), given or batches(), loss_of(model),
        criterion=criterion)  # fmt: skip
    return model


def inputs(model: nn.Module, name: str) -> Tensor:
    """[tokens, in + 1]: what a layer reads in all batches, with the constant 1."""
    seen: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0].detach()))
    for batch in batches():
        model(batch)
    hook.remove()
    x = torch.cat(seen).reshape(-1, seen[0].shape[-1])
    return torch.cat([x, x.new_ones(len(x), 1)], 1)


def whole(layer: nn.Module) -> Tensor:
    """[out, in + 1] weights with the bias."""
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()  # type: ignore[list-item, index]


def fitted(old: Tensor, x: Tensor, moved: Tensor, kept: Tensor, damping: float = 0.01) -> Tensor:
    """Row by row the least squares of ||x w0 - moved w||^2 / tokens + d ||w - w0||^2 on the columns that are kept.

    Args:
        old: [out, in + 1].
        x, moved: [tokens, in + 1].
        kept: bool [out, in + 1].
    """
    root = len(x) ** 0.5
    small = (damping * moved.square().mean(0).mean()).sqrt() * torch.eye(x.shape[1], dtype=x.dtype)
    found = torch.zeros_like(old)
    for i, row in enumerate(old):
        left = torch.cat([moved / root, small])[:, kept[i]]
        found[i, kept[i]] = torch.linalg.lstsq(left, torch.cat([x @ row / root, small @ row])[:, None]).solution[:, 0]
    return found


@pytest.mark.parametrize("pattern", [*PATTERNS, NofM(2, 4)], ids=str)
def test_each_layer_fits_the_outputs_before_on_the_inputs_that_it_then_has(pattern):
    dense = exact()
    result = pruned(dense, pattern)
    so_far = copy.deepcopy(dense)
    for stage in (("q", "k"), ("out",)):
        x, moved = inputs(dense, stage[0]), inputs(so_far, stage[0])
        for name in stage:
            old, new = whole(dense.get_submodule(name)), whole(result.get_submodule(name))
            expected = fitted(old, x, moved, new.ne(0))
            torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-8)
            getattr(so_far, name).load_state_dict(result.get_submodule(name).state_dict())
        if stage == ("out",):
            assert float((x - moved).abs().max()) > 0.05  # there was something to make up for
            error, before = ((x @ old.T - moved @ w.T).square().mean() for w in (new, fitted(old, x, x, new.ne(0))))
            assert float(error) < float(before)


@pytest.mark.parametrize("pattern", [PATTERNS[0], PATTERNS[1], NofM(2, 4)], ids=str)
def test_units_are_chosen_on_the_inputs_that_moved(pattern):
    dense = exact()
    result = pruned(dense, pattern, OBS(sequential=True, rounds=[1.0]))
    so_far = copy.deepcopy(result)
    so_far.get_submodule("out").load_state_dict(dense.get_submodule("out").state_dict())
    x, moved = inputs(dense, "out"), inputs(so_far, "out")
    old, gone = whole(dense.get_submodule("out")), result.get_parameter("out.weight") == 0
    h = moved.T @ moved / len(moved)
    h += 0.01 * h.diagonal().mean() * torch.eye(9, dtype=h.dtype)
    target = fitted(old, x, moved, torch.ones_like(old, dtype=torch.bool))
    if isinstance(pattern, NofM):
        assert torch.equal(gone, in_order(target, h, 2, 4))
        return
    fisher = collect(Calibration(dense, batches(), loss_of(dense)), matrix_weights(dense)).fisher["out.weight"]
    each = fisher[:, None] * target[:, :8] ** 2 / torch.linalg.inv(h).diagonal()[:8]
    costs = each.view(-1, pattern.rows, 8).sum(1)
    lost = gone.view(-1, pattern.rows, 8)[:, 0]
    assert 0 < int(lost.sum()) < lost.numel()
    assert float(costs[lost].max()) < float(costs[~lost].min())


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_how_much_each_layer_loses_is_decided_for_all_together(pattern):
    one, other = (matrix_weights(pruned(exact(), pattern, OBS(sequential=each))) for each in (True, False))
    zeros = {name: int((p == 0).sum()) for name, p in one.items()}
    assert zeros == {name: int((p == 0).sum()) for name, p in other.items()}
    size = pattern.unit_size(torch.Size([8, 8]))
    assert sum(zeros.values()) == round(pattern.target * 192 / size) * size
    assert all(pattern.violations(p.detach()) == 0 for p in one.values())
    assert not torch.equal(one["out.weight"], other["out.weight"])


def test_a_single_layer_is_pruned_as_without_sequence():
    model = exact(nn.Sequential(nn.Linear(8, 8)))
    one, other = (pruned(model, PATTERNS[0], OBS(sequential=each)).state_dict() for each in (True, False))
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-9, atol=1e-12)


class Twice(nn.Module):
    """A convolution, then one layer that runs twice, then another; padding is left out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.taps = nn.Conv1d(8, 8, 3, padding=1)
        self.again = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.taps(x.T[None])[0].T)
        return self.out(torch.tanh(self.again(torch.tanh(self.again(x)))))


def test_padding_does_not_count_and_a_layer_that_runs_twice_fits_both():
    dense = exact(Twice())
    real = torch.arange(16) < 11
    result = copy.deepcopy(dense)
    plan = Plan(matrix_weights(result), Block(1, 1, target_sparsity=0.5))
    obs(result, plan, batches(), loss_of(result), tokens=lambda _: real, criterion=SEQUENTIAL)
    so_far = copy.deepcopy(dense)
    so_far.get_submodule("taps").load_state_dict(result.get_submodule("taps").state_dict())
    x, moved = (inputs(model, "again").view(-1, 16, 9)[:, real].flatten(0, 1) for model in (dense, so_far))
    new = whole(result.again)  # type: ignore[arg-type]
    expected = fitted(whole(dense.again), x, moved, new != 0)  # type: ignore[arg-type]
    torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-8)


def test_the_model_runs_no_further_than_the_layer_whose_inputs_are_collected():
    model, runs = exact(), {"q": 0, "out": 0, "loss": 0}
    for name in ("q", "out"):
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: runs.update({name: runs[name] + 1}))
    loss = loss_of(model)

    def counted(batch: Tensor, chance: torch.Generator) -> Tensor:
        value = loss(batch, chance)
        runs["loss"] += 1
        return value

    obs(model, Plan(matrix_weights(model), PATTERNS[0]), batches(4), counted, criterion=SEQUENTIAL)
    # once for the dense Hessians; then two inputs in two models each, and q is before the second only
    assert runs == {"loss": 4, "out": 4, "q": 4 + 8}


class Spoiled(list):
    """Batches that are not a number from the n-th time on that they are read."""

    def __init__(self, good: int) -> None:
        super().__init__(batches())
        self.good = good

    def __iter__(self) -> Iterator[Tensor]:
        self.good -= 1
        yield from (batch if self.good >= 0 else batch * torch.nan for batch in super().__iter__())


@pytest.mark.parametrize("pattern", [PATTERNS[0], NofM(2, 4)], ids=str)
def test_a_failure_on_the_way_changes_nothing(pattern):
    model = exact()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    calibration = Calibration(model, Spoiled(2), loss_of(model))
    pruner = Pruner(Plan(matrix_weights(model), pattern), OneShot("0"), TrainingLength(0), SEQUENTIAL,
                    calibration=calibration)  # fmt: skip
    with pytest.raises(PruningError, match=r"out\.weight.*not finite"):
        pruner.update_now()
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
    assert pruner.sparsity == 0
    assert not any(layer.zeros for layer in pruner.report())
    assert pruner.history == []


def test_batches_that_can_be_read_once_are_refused():
    with pytest.raises(PruningError, match=r"batches have to be the same each time"):
        pruned(exact(), PATTERNS[0], given=iter(batches()))


def gradual(model: nn.Module, criterion: OBS) -> Pruner:
    schedule = Gradual(decay="cubic", start="2", frequency="2", end="8")
    plan, calibration = Plan(matrix_weights(model), PATTERNS[0]), Calibration(model, data(), loss_of(model))
    return Pruner(plan, schedule, TrainingLength(10), criterion, calibration=calibration)


@pytest.mark.parametrize("pattern", [PATTERNS[0], NofM(2, 4)], ids=str)
@pytest.mark.parametrize("keeps_zeros", [False, True], ids=["dense", "some zeros"])
def test_masks_never_grow_back_and_a_resume_is_bit_for_bit(pattern, keeps_zeros):
    model = Attention()
    if keeps_zeros:
        with torch.no_grad():
            model.q.weight[2] = 0.0
            model.out.weight[:, 3] = 0.0
            model.k.weight[1, 5] = 0.0
    seen: list[Tensor] = []

    def each() -> None:
        zeros = torch.cat([(p == 0).flatten() for p in matrix_weights(model).values()])
        assert not seen or bool((seen[-1] <= zeros).all())
        seen.append(zeros)

    check_resume(model, pattern, each, keeps_zeros, SEQUENTIAL)
    assert len({int(zeros.sum()) for zeros in seen}) >= 3


def test_a_resume_with_another_order_is_refused():
    for one, other in ((True, False), (False, True)):
        pruner, resumed = (gradual(Attention(), OBS(sequential=each)) for each in (one, other))
        with pytest.raises(PruningError, match=r"the saved pruner differs in its criterion: .*in sequence"):
            resumed.load_state_dict(*pruner.state_dict())


def test_layers_of_another_criterion_are_pruned_before_inputs_are_collected():
    dense = exact()
    result = copy.deepcopy(dense)
    layers = {"q": LayerOverride(criterion="magnitude", target=0.5)}
    plan = Plan(matrix_weights(result), Block(1, 1, target_sparsity=0.5), Global(layers=layers))
    obs(result, plan, batches(), loss_of(result), criterion=SEQUENTIAL)
    assert torch.equal(result.q.weight, dense.q.weight * (result.q.weight != 0))  # type: ignore[operator, union-attr]
    so_far = copy.deepcopy(result)
    so_far.out = dense.out
    new = whole(result.out)  # type: ignore[arg-type]
    expected = fitted(whole(dense.out), inputs(dense, "out"), inputs(so_far, "out"), new != 0)  # type: ignore[arg-type]
    torch.testing.assert_close(new, expected, rtol=1e-6, atol=1e-8)


def prune_on_one_rank(rank: int) -> list[dict[str, Tensor]]:
    """Each rank runs its part of the batches."""
    return [pruned(exact(), pattern).state_dict() for pattern in (PATTERNS[0], NofM(2, 4))]


@pytest.mark.slow
def test_two_processes_prune_as_one(tmp_path, monkeypatch):
    left, right = on_two_ranks(prune_on_one_rank, tmp_path, monkeypatch)
    for one, other, pattern in zip(left, right, (PATTERNS[0], NofM(2, 4)), strict=True):
        alone = pruned(exact(), pattern).state_dict()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, alone[name], rtol=1e-4, atol=1e-5)
