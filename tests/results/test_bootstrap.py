import math
import random
from statistics import NormalDist, fmean

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results import bootstrap
from results.bootstrap import Sample, interval


def sample(scores, seeds=None):
    scores = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    return Sample(seeds or list(range(len(scores))), scores)


def naive(dense, sparse, paired, resamples, generator):
    """The same distribution, a loop in a loop: draws of indices instead of shares."""
    questions, drops = len(dense[0]), []
    for _ in range(resamples):
        drawn = generator.choices(range(questions), k=questions)
        sparse_seeds = generator.choices(range(len(sparse)), k=len(sparse))
        dense_seeds = sparse_seeds if paired else generator.choices(range(len(dense)), k=len(dense))
        above = fmean(sparse[s][q] for s in sparse_seeds for q in drawn)
        below = fmean(dense[s][q] for s in dense_seeds for q in drawn)
        drops.append((above - below) / below)
    drops.sort()
    return drops[round(0.025 * resamples)], drops[round(0.975 * resamples) - 1]


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("paired", [True, False])
def test_agrees_with_a_naive_bootstrap(seeds, paired):
    generator = np.random.default_rng(7)
    dense = np.clip(generator.normal(0.7, 0.2, (seeds, 60)) + generator.normal(0, 0.05, (seeds, 1)), 0, 1)
    sparse = np.clip(dense - 0.05 + generator.normal(0, 0.1, dense.shape), 0, 1)
    theirs = list(range(seeds)) if paired else list(range(10, 10 + seeds))
    found = interval(sample(dense, theirs), sample(sparse), resamples=6000)
    expected = naive(dense.tolist(), sparse.tolist(), paired, 6000, random.Random(3))
    width = expected[1] - expected[0]
    assert found == pytest.approx(expected, abs=0.06 * width)


def test_agrees_with_the_normal_approximation():
    generator = np.random.default_rng(5)
    dense = (generator.random(4000) < 0.8).astype(float)
    sparse = np.where(generator.random(4000) < 0.1, 1 - dense, dense)
    # Delta method for a ratio of means over pairs: the variance of (sparse - ratio * dense) / mean dense.
    ratio = sparse.mean() / dense.mean()
    error = (sparse - ratio * dense).std() / dense.mean() / math.sqrt(4000)
    half = NormalDist().inv_cdf(0.975) * error
    low, high = interval(sample(dense), sample(sparse))  # pyright: ignore[reportGeneralTypeIssues]
    assert (low, high) == pytest.approx((ratio - 1 - half, ratio - 1 + half), abs=0.1 * half)
    # Were the questions not paired, the interval would be more than twice as wide.
    unpaired = math.hypot(sparse.std() / dense.mean(), ratio * dense.std() / dense.mean()) / math.sqrt(4000)
    assert high - low < 0.75 * 2 * NormalDist().inv_cdf(0.975) * unpaired


@given(scores=arrays(np.float64, (2, 7), elements=st.floats(0.1, 1)))
@settings(max_examples=20, deadline=None)
def test_identical_scores_differ_by_nothing(scores):
    assert interval(sample(scores), sample(scores), resamples=200) == [0.0, 0.0]


@given(scores=arrays(np.float64, (3, 5), elements=st.floats(0.1, 1)), factor=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_a_drop_that_is_the_same_everywhere_is_certain(scores, factor):
    found = interval(sample(scores), sample(scores * factor), resamples=200)
    assert found == pytest.approx([factor - 1, factor - 1])


def test_seeds_that_all_differ_widen_the_interval():
    flat = np.full((4, 50), 0.5)
    apart = flat + np.array([[-0.1], [-0.03], [0.03], [0.1]])
    low, high = interval(sample(flat), sample(apart))  # pyright: ignore[reportGeneralTypeIssues]
    assert low < -0.05 < 0.05 < high
    # 4**4 draws: the lowest of them, all of the lowest seed, comes once in 256
    assert low > -0.2
    # The same seeds shift the dense model alike: nothing is left of the noise. Other seeds: all of it.
    assert interval(sample(apart), sample(apart)) == [0.0, 0.0]
    low, high = interval(sample(apart, [4, 5, 6, 7]), sample(apart))  # pyright: ignore[reportGeneralTypeIssues]
    assert low < -0.1 < 0.1 < high


def test_one_seed_against_several():
    found = interval(sample(np.full(9, 0.5), [0]), sample(np.full((3, 9), 0.4)), resamples=100)
    assert found == pytest.approx([-0.2, -0.2])


def test_the_interval_of_the_difference_agrees_with_the_normal_approximation():
    generator = np.random.default_rng(5)
    dense = (generator.random(4000) < 0.8).astype(float)
    sparse = np.where(generator.random(4000) < 0.1, 1 - dense, dense)
    change = sparse - dense
    half = NormalDist().inv_cdf(0.975) * change.std() / math.sqrt(4000)
    relative, (low, high) = bootstrap.intervals(sample(dense), sample(sparse))
    assert relative == interval(sample(dense), sample(sparse))
    assert (low, high) == pytest.approx((change.mean() - half, change.mean() + half), abs=0.1 * half)


def test_a_difference_is_defined_where_the_relative_drop_is_not():
    assert bootstrap.intervals(sample(np.zeros(3)), sample(np.ones(3))) == (None, [1.0, 1.0])


def test_sets_too_large_to_remember_have_the_same_interval(monkeypatch):
    scores = np.random.default_rng(0).random((2, 30))
    whole = interval(sample(scores), sample(scores**2), resamples=250)
    monkeypatch.setattr(bootstrap, "_REMEMBERED", 0)
    assert interval(sample(scores), sample(scores**2), resamples=250) == whole


def test_the_same_every_time():
    scores = np.random.default_rng(0).random((2, 30))
    assert interval(sample(scores), sample(scores**2)) == interval(sample(scores), sample(scores**2))


def test_undefined_where_the_dense_model_may_score_nothing():
    dense = np.zeros(3)
    dense[0] = 1
    assert interval(sample(dense), sample(np.ones(3))) is None


def test_questions_that_are_not_the_same_are_refused():
    with pytest.raises(ValueError, match="3 and 4 examples"):
        interval(sample(np.ones(3)), sample(np.ones(4)))


def test_chunks_are_seams_without_effect(monkeypatch):
    scores = np.random.default_rng(0).random((2, 30))
    whole = interval(sample(scores), sample(scores**2), resamples=250)
    monkeypatch.setattr(bootstrap, "_CHUNK", 7)
    assert interval(sample(scores), sample(scores**2), resamples=250) == pytest.approx(whole)
