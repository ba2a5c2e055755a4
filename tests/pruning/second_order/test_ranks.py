"""What one rank refuses in its own batches, all refuse: none waits for sums that never come."""

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pruning import (
    OBS,
    Block,
    CalibratedSnip,
    Calibration,
    OneShot,
    Plan,
    Pruner,
    PruningError,
    TrainingLength,
    matrix_weights,
)
from pruning.criteria import Criterion
from tests.pruning.second_order.test_obs import Attention, data, loss_of

ODD = data()[1]
"""The second batch, which the second of two ranks runs."""


def is_odd(x: Tensor) -> bool:
    return torch.equal(x, ODD)


class OtherInputs(Attention):
    """q and k share their input in all batches but one."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.q(x) * self.k(x.clone() if is_odd(x) else x)))


class OtherOncePruned(Attention):
    """The last layer reads fewer tokens in one batch, once q has zeros."""

    def forward(self, x: Tensor) -> Tensor:
        short = is_odd(x) and not bool(self.q.weight.all())
        return self.out(torch.tanh(self.q(x) * self.k(x))[: len(x) - short])


class Fails(Attention):
    """One batch fails by an error of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if is_odd(x):
            raise RuntimeError("out of memory")
        return super().forward(x)


SHARED = "PruningError: the input of k.weight is shared with other layers in some calibration batches only"
MOVED = (
    "PruningError: calibration of out.weight: the pruned model does not run its layers as before: it cannot be pruned "
    "in sequence"
)
FAILED = ("PruningError: rank 1 failed: RuntimeError: out of memory", "RuntimeError: out of memory")
CASES: list[tuple[Callable[[], nn.Module], Criterion, tuple[str, str]]] = [
    (OtherInputs, OBS(), (SHARED, SHARED)),
    (OtherOncePruned, OBS(sequential=True), (MOVED, MOVED)),
    (Fails, OBS(), FAILED),
    (Fails, CalibratedSnip(), FAILED),
]


def refusal(model: nn.Module, criterion: Criterion) -> str:
    """The error of a pruning that fails, which leaves the weights as they were."""
    plan = Plan(matrix_weights(model), Block(4, 1, target_sparsity=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pruner = Pruner(
        plan,
        OneShot("0"),
        TrainingLength(0),
        criterion,
        calibration=Calibration(model, data(), loss_of(model)),
    )
    with pytest.raises((PruningError, RuntimeError)) as raised:
        pruner.update_now()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return f"{raised.type.__name__}: {raised.value}"


def refuse_on_one_rank(rank: int, folder: str) -> None:
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    texts = [refusal(model(), criterion) for model, criterion, _ in CASES]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(texts))
    distributed.destroy_process_group()


@pytest.mark.slow
def test_what_one_rank_refuses_all_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(refuse_on_one_rank, (str(tmp_path),), nprocs=2)  # type: ignore[attr-defined]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert list(zip(first, second, strict=True)) == [texts for _, _, texts in CASES]


@pytest.mark.parametrize(("model", "criterion", "texts"), CASES)
def test_one_process_refuses_by_its_own_error(model: Callable[[], nn.Module], criterion: Criterion, texts) -> None:
    assert refusal(model(), criterion) == texts[1]
