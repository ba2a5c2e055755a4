"""Batches: each feature once an epoch, little padding, and the same data whatever the number of ranks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.training.batches import BUCKET, Batches

LENGTHS = st.lists(st.integers(1, 384), min_size=1, max_size=200)


def squad_like(count: int) -> np.ndarray:
    """Lengths as SQuAD's features have them: 170 tokens on average, some windows cut at 384."""
    return np.random.default_rng(0).lognormal(5.05, 0.38, count).astype(int).clip(30, 384)


@given(LENGTHS, st.integers(1, 20), st.booleans(), st.integers(0, 3), st.integers(1, 4))
def test_every_feature_comes_once_in_an_epoch(
    lengths: list[int], size: int, by_length: bool, epoch: int, parts: int
) -> None:
    batches = Batches(np.array(lengths), size, 7, by_length, parts=parts)
    batches.set_epoch(epoch)
    seen = list(batches)
    assert len(seen) == len(batches) == batches.steps * parts
    assert all(1 <= len(batch) <= size for batch in seen)
    assert {i for batch in seen for i in batch} == set(range(len(lengths)))
    twice = sum(map(len, seen)) - len(lengths)  # only where a last batch has fewer features than parts
    assert 0 <= twice < parts
    assert batches.steps == -(-len(lengths) // (size * parts))


@given(LENGTHS, st.integers(384, 4000), st.integers(1, 3), st.sampled_from([1, 8, 64]))
def test_a_budget_of_tokens_is_kept(lengths: list[int], tokens: int, parts: int, multiple: int) -> None:
    batches = Batches(np.array(lengths), 1, 0, tokens=tokens, parts=parts, multiple=multiple)
    counts = set()
    for epoch in range(3):
        batches.set_epoch(epoch)
        seen = list(batches)
        counts.add(len(seen))
        assert {i for batch in seen for i in batch} == set(range(len(lengths)))
        for batch in seen:
            longest = max(lengths[i] for i in batch)
            assert len(batch) * -(-longest // multiple) * multiple <= max(tokens, -(-longest // multiple) * multiple)
    assert counts == {len(batches)}  # or Trainer would count the steps wrongly


def test_a_budget_is_used() -> None:
    lengths = squad_like(2000)
    seen = [int(lengths[batch].max()) * len(batch) for batch in Batches(lengths, 1, 0, tokens=4096)]
    assert np.median(seen) > 0.93 * 4096


def test_a_feature_longer_than_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a feature of 300 tokens does not fit into a batch of 299"):
        Batches(np.array([10, 300]), 1, 0, tokens=299)


def test_the_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int, by_length: bool = True) -> list[list[int]]:
        batches = Batches(squad_like(500), 16, seed, by_length)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 1) == order(0, 1)
    assert order(0, 0) != order(0, 1) != order(1, 1)
    assert order(0, 0, False) != order(0, 1, False)
    # Not only the order of the batches changes, but also who shares one.
    assert {frozenset(batch) for batch in order(0, 0)} != {frozenset(batch) for batch in order(0, 1)}


@pytest.mark.parametrize("by_length", [True, False])
def test_an_optimizer_step_sees_the_same_whatever_the_ranks_and_the_accumulation(by_length: bool) -> None:
    lengths = squad_like(333)
    whole = [set(batch) for batch in Batches(lengths, 16, 3, by_length)]
    for parts in (2, 4):
        dealt = list(Batches(lengths, 16 // parts, 3, by_length, parts=parts))
        steps = [set().union(*dealt[i : i + parts]) for i in range(0, len(dealt), parts)]
        assert steps == whole


def test_padding_is_what_padding_the_batches_gives() -> None:
    lengths = squad_like(4000)
    for multiple in (1, 8):
        batches = Batches(lengths, 16, 0, multiple=multiple)
        padded = [[-(-max(lengths[i] for i in batch) // multiple) * multiple] * len(batch) for batch in batches]
        naive = 1 - lengths.sum() / sum(map(sum, padded))
        assert batches.padding() == pytest.approx(naive)
        assert naive < 0.03
    assert Batches(lengths, 16, 0, by_length=False).padding() > 0.35
    assert Batches(lengths, 16, 0).padding() < (BUCKET - 1) / lengths.min()
