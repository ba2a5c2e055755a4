"""What runner logs by example gives in results the metric that it logged: the sides do not import each other."""

import numpy as np
import pytest

from results.bootstrap import FROM_MEANS
from runner.data.classification_scores import METRICS, OF_NUMBERS, STATISTICS
from runner.data.tagging_scores import counts, scores


def drawn(name: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    count = int(chance.integers(2, 40))
    if name in OF_NUMBERS:
        gold = chance.normal(3, 1, count)
        return (gold + chance.normal(0, 1, count)).round(1), gold.round(1)
    kinds = int(chance.integers(2, 5))
    return chance.integers(0, kinds, count), chance.integers(0, kinds, count)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("name", METRICS)
def test_the_metric_follows_from_the_means(name: str, seed: int) -> None:
    predictions, references = drawn(name, seed)
    of, rows = STATISTICS[name]
    numbers = rows(predictions, references)
    assert numbers.shape[0] == len(references)
    assert float(FROM_MEANS[of](numbers.mean(0))) == pytest.approx(METRICS[name](predictions, references), abs=1e-9)
    stacked = np.stack([numbers.mean(0), numbers[: len(numbers) // 2 + 1].mean(0)])
    assert FROM_MEANS[of](stacked).shape == (2,)
    assert FROM_MEANS[of](stacked)[0] == FROM_MEANS[of](numbers.mean(0))


@pytest.mark.parametrize("name", sorted(METRICS.keys() - {"spearmanr"}))  # whose ranks are those of the whole set
def test_so_does_that_of_examples_drawn_again(name: str) -> None:
    predictions, references = drawn(name, 99)
    of, rows = STATISTICS[name]
    numbers = rows(predictions, references)
    for seed in range(10):
        again = np.random.default_rng(seed).integers(0, len(references), len(references))
        expected = METRICS[name](predictions[again], references[again])
        assert float(FROM_MEANS[of](numbers[again].mean(0))) == pytest.approx(expected, abs=1e-9)


def test_entities_too() -> None:
    chance = np.random.default_rng(0)
    names = np.array(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])
    pairs = [tuple(names[chance.integers(0, 5, 6)].tolist() for _ in range(2)) for _ in range(30)]
    numbers = np.array([counts(predicted, gold) for predicted, gold in pairs], dtype=float)
    for name in ("f1", "precision", "recall"):
        assert float(FROM_MEANS[f"entity_{name}"](numbers.mean(0))) == pytest.approx(scores(pairs)[name])


def test_nothing_is_zero_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    for name, of in FROM_MEANS.items():
        assert float(of(np.zeros({"mean": 1, "pearson": 5, "matthews_correlation": 5}.get(name, 3)))) == 0, name
    assert not recwarn.list
    assert len(FROM_MEANS) == 9
