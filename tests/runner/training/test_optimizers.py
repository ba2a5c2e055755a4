"""Every optimizer that can be chosen: zeros, resume, identity, and what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.training_args import OptimizerNames

from pruning.masks import Masks
from runner.config import optimizers
from runner.config.optimizers import Optimizer
from runner.system.errors import UserError
from runner.training import checkpoints
from runner.training.training_data import TrainingData
from tests.conftest import Refused
from tests.runner.training.test_average import LABELS, new_pruner, settings, student, weights
from tests.training import quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")
LIBRARY = {Optimizer.stable_adamw: "optimi"} | dict.fromkeys(
    (Optimizer.adamw_bnb_8bit, Optimizer.lion_32bit, Optimizer.lion_8bit, Optimizer.ademamix, Optimizer.ademamix_8bit),
    "bitsandbytes",
)


class Interrupt(Exception):
    """What ends a training in the middle."""


@pytest.mark.parametrize("optimizer", list(Optimizer), ids=lambda o: o.value)
def test_zeros_stay_and_a_resumed_training_ends_with_the_same_bits(
    tmp_path: Path, lesson: TrainingData, optimizer: Optimizer
) -> None:
    if optimizer in LIBRARY:
        pytest.importorskip(LIBRARY[optimizer])
    how = settings(None, optimizer=optimizer, learning_rate=1e-3 if optimizer is not Optimizer.sgd else 0.1,
                   weight_decay=0.01, save_steps=5, lr_rewind=0.5)  # fmt: skip
    ends: dict[str, dict[str, torch.Tensor]] = {}
    checked = []
    for name in ("whole", "interrupted"):
        for stops in (False,) if name == "whole" else (True, False):
            torch.manual_seed(5)
            model = student(tmp_path / "model")
            pruner = new_pruner(model)
            start = weights(model)

            def look(step: int, values: Any, pruner=pruner, model=model, stops=stops) -> None:
                for layer, mask in pruner.masks.items():
                    zeros = model.get_parameter(layer)[~mask.repeat_interleave(4, 0)]
                    assert not zeros.detach().view(torch.int32).any(), (step, layer)  # +0.0 exactly
                    checked.append(zeros.numel())
                if stops and step == 7:  # between two updates
                    raise Interrupt

            try:
                train(model, lesson, how, LABELS, pruner, 5, tmp_path / name, "t", look)
            except Interrupt:
                assert checkpoints.newest(tmp_path / name) == tmp_path / name / "checkpoint-5"
            assert any(not torch.equal(p, start[layer]) for layer, p in weights(model).items())
        assert pruner.sparsity == pytest.approx(0.8, abs=0.01)
        ends[name] = weights(model)
    assert sum(checked) > 0
    assert all(torch.equal(p, ends["interrupted"][name]) for name, p in ends["whole"].items())


@pytest.mark.parametrize("optimizer", [o for o in Optimizer if o.state_bytes], ids=lambda o: o.value)
def test_the_state_has_as_many_bytes_as_said_and_nothing_for_pruned_weights(
    tmp_path: Path, lesson: TrainingData, optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if optimizer in LIBRARY:
        pytest.importorskip(LIBRARY[optimizer])
    found: list[torch.optim.Optimizer] = []
    enforce = Masks.enforce
    monkeypatch.setattr(Masks, "enforce", lambda self, optimizer: (found.append(optimizer), enforce(self, optimizer)))
    model = student(tmp_path / "model")
    pruner = new_pruner(model)
    train(model, lesson, settings(None, optimizer=optimizer), LABELS, pruner, 5, tmp_path / "run", "t", quiet)
    name = max((name for name, _ in pruner.masks.items()), key=lambda name: model.get_parameter(name).numel())
    p = model.get_parameter(name)
    state = [t for t in found[-1].state[p].values() if isinstance(t, torch.Tensor) and t.numel() >= p.numel()]
    size = sum(t.numel() * t.element_size() for t in state)
    if not optimizer.value.endswith("8bit"):  # bitsandbytes stores small weights, as here, in 32 bits
        assert size == optimizer.state_bytes * p.numel()
    assert size
    zeros = dict(pruner.masks.items())[name].repeat_interleave(4, 0).logical_not()
    for moment in (t for t in state if t.is_floating_point()):
        for single in moment if moment.dim() > p.dim() else [moment]:
            assert not single[zeros].any()
            assert single[~zeros].any()


def test_names_are_those_of_transformers_and_the_first_is_its_default() -> None:
    from transformers import TrainingArguments

    assert {o.value for o in Optimizer} <= {name.value for name in OptimizerNames}
    assert TrainingArguments.default_optim == settings(None).options()["optim"] == "adamw_torch_fused"
    assert settings(None, optimizer=Optimizer.sgd).options()["optim"] == "sgd"


def test_the_default_is_not_in_the_identity() -> None:
    assert "optimizer" not in settings(None).determinants()
    assert settings(None, optimizer=Optimizer.adafactor).determinants()["optimizer"] == "adafactor"


@pytest.mark.parametrize("optimizer", [Optimizer.stable_adamw, Optimizer.lion_32bit])
def test_an_optimizer_whose_library_is_missing_is_refused(
    monkeypatch: pytest.MonkeyPatch, optimizer: Optimizer
) -> None:
    monkeypatch.setattr(optimizers, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"optimizer={optimizer.value} .*not installed: .*pip install .*adafactor"):
        settings(None, optimizer=optimizer).resolved()
    settings(None, optimizer=Optimizer.adafactor).resolved()


@pytest.mark.skipif(find_spec("optimi") is not None, reason="torch-optimi is installed")
def test_the_command_line_refuses_it_before_anything_is_read(refused: Refused) -> None:
    given = ("model=hub", "model.path=nowhere/nothing", "dataset=demo", "dry_run=true")
    text = refused(*given, "finetune.optimizer=stable_adamw")
    assert "optimizer=stable_adamw in train or finetune needs a library that is not installed" in text
    assert "pip install torch-optimi" in text
