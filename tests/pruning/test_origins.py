"""Distillation of a student made of some of the teacher's layers: each imitates the one that it comes from."""

import pytest
import torch

from pruning import HiddenStates, Logits, LogitsHidden, SimKD
from pruning.distillation import squared_error
from pruning.prediction import Prediction

KEPT = [0, 2, 3]


def prediction(layers: int, seed: int) -> Prediction:
    chance = torch.Generator().manual_seed(seed)
    hidden = tuple(torch.randn(2, 5, 8, generator=chance) for _ in range(layers + 1))
    logits = torch.randn(2, 5, generator=chance)
    return Prediction((logits,), torch.ones(2, 5, dtype=torch.bool), torch.ones(2, 5, dtype=torch.bool), hidden)


def test_each_layer_imitates_its_origin_and_embeddings_the_embeddings() -> None:
    assert HiddenStates().with_origins(KEPT).layers == {0: 0, 1: 1, 2: 3, 3: 4}
    assert LogitsHidden().with_origins(KEPT).layers == {1: 1, 2: 3, 3: 4}  # without the embeddings, as by default
    assert HiddenStates().mapped(3, 6) == {0: 0, 1: 2, 2: 4, 3: 6}  # what another teacher's layers are mapped to


def test_a_mapping_that_was_asked_for_stays() -> None:
    for how in (HiddenStates(layers={3: 6}), LogitsHidden(layers={3: 6})):
        assert how.with_origins(KEPT) is how


@pytest.mark.parametrize("how", [Logits(), SimKD()])
def test_losses_without_a_mapping_stay(how) -> None:  # type: ignore[no-untyped-def]
    assert how.with_origins(KEPT) is how


def test_the_loss_compares_the_states_after_these_layers() -> None:
    student, teacher = prediction(3, 0), prediction(6, 1)
    loss = HiddenStates(logits_weight=0, label_weight=1).with_origins(KEPT).loss(student, teacher)
    pairs = [(0, 0), (1, 1), (2, 3), (3, 4)]
    each = [squared_error(student.hidden[s], teacher.hidden[t], student.tokens) for s, t in pairs]
    assert loss.item() == pytest.approx(sum(e.item() for e in each) / 4)
    evenly = HiddenStates(logits_weight=0, label_weight=1).loss(student, teacher)
    assert loss.item() != pytest.approx(evenly.item())
