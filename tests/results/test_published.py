from pathlib import Path

import pytest

from results import published
from results.rows import Row

REFERENCE = """
bert-mini squad 4x1 0.7993 0.7662/0.7687 0.7617/0.7627 -0.78
bert-mini squad 2:4 0.4795 0.7662/0.7687 0.7733/0.7762 +0.98
distilbert squad 4x1 0.7986 0.8690 0.8615 -0.86
distilbert squad 2:4 0.5000 0.8690 0.8731/0.8750 +0.69
bert-base squad 4x1 0.7986 0.8859 0.8778 -0.92
bert-base squad 2:4 0.5000 0.8859 0.8924/0.8940 +0.91
bert-large squad 4x1 0.7988 0.9123 0.9091 -0.35
bert-large squad 2:4 0.5002 0.9123 0.9167 +0.48
bert-mini mrpc 4x1 0.8804 0.8619/0.8752 0.8610/0.8722 -0.34
bert-mini mrpc 2:4 0.4795 0.8619/0.8752 0.8666/0.8689 -0.72
distilbert mrpc 4x1 0.8992 0.9026 0.8985 -0.46
distilbert mrpc 2:4 0.5000 0.9026 0.9088 +0.69
bert-mini sst2 4x1 0.8815 0.8660/0.8761 0.8651/0.8692 -0.79
bert-mini sst2 2:4 0.4795 0.8660/0.8761 0.8731/0.8773 +0.14
"""


def ours(**change):
    fields = {"model": "bert-mini", "dataset": "squad", "pattern": "2:4", "seeds": [0], "ratio": 0.5, "metric": "f1"}
    fields |= {"dense_mean": 0.7, "dense_max": 0.7, "sparse_mean": 0.6, "sparse_max": 0.6, "runs": ["r"]}
    fields |= {"drop_max": -0.1, "drop_mean": -0.1, "differs": {}}
    return Row(**(fields | change))


def scores(text):
    """Mean and maximum; a single score is the maximum."""
    *mean, maximum = map(float, text.split("/"))
    return (mean[0] if mean else None, maximum)


def test_the_file_is_the_published_table():
    found = published.rows()
    lines = [line.split() for line in REFERENCE.strip().splitlines()]
    assert len(lines) == len(found) == 14
    for model, dataset, pattern, ratio, dense, sparse, drop in lines:
        entry = found[model, dataset, pattern]
        assert entry.ratio == float(ratio)
        assert (entry.dense_mean, entry.dense_max) == scores(dense)
        assert (entry.sparse_mean, entry.sparse_max) == scores(sparse)
        assert entry.drop == pytest.approx(float(drop) / 100)
        assert entry.source.startswith("Intel Neural Compressor")


def test_published_drops_are_of_the_maxima():
    for entry in published.rows().values():
        assert entry.dense_max and entry.sparse_max and entry.drop  # noqa: PT018
        assert entry.drop == pytest.approx(entry.sparse_max / entry.dense_max - 1, abs=1.05e-4)


def test_labels_are_our_options():
    conf = Path(__file__).parents[2] / "conf"
    models = {model for model, _, _ in published.rows()}
    assert models == {"bert-mini", "distilbert", "bert-base", "bert-large"}
    assert [model for model in models if not (conf / "model" / f"{model}.yaml").is_file()] == []
    assert (conf / "dataset" / "squad.yaml").is_file()
    assert {pattern for _, _, pattern in published.rows()} == {"4x1", "2:4"}


def test_ours_have_the_published_ones_beside_them():
    twins = [ours(differs={"lr": "1"}), ours(differs={"lr": "2"})]
    rows = published.compare([*twins, ours(pattern="8x1"), ours(model="tiny")])
    assert len(rows) == 4 + 13
    have = [row for row in rows if row.runs]
    assert [row.published is not None for row in have] == [row.pattern == "2:4" and row.model != "tiny" for row in have]
    assert [row.published.sparse_max for row in have if row.published] == [0.7762, 0.7762]
    assert [row.published.difference for row in have if row.published] == [pytest.approx(-0.1 - 0.0098)] * 2
    lacking = [row for row in rows if not row.runs]
    assert {row.published.difference for row in lacking if row.published} == {None}
    assert {(row.dense_mean, row.sparse_max, row.ratio, row.drop_max) for row in lacking} == {(None,) * 4}
    assert all(row.published for row in lacking)


def test_another_metric_is_not_compared():
    rows = published.compare([ours(metric="accuracy")], lambda *labels: labels == ("bert-mini", "squad", "2:4"))
    assert [(row.metric, bool(row.runs), row.published is not None) for row in rows] == [
        ("accuracy", True, False),
        ("f1", False, True),
    ]


def test_only_wanted_rows_are_listed():
    rows = published.compare([ours()], lambda model, dataset, pattern: pattern == "4x1" and dataset == "squad")
    assert [(row.model, row.pattern) for row in rows] == [
        *[("bert-base", "4x1"), ("bert-large", "4x1"), ("bert-mini", "2:4"), ("bert-mini", "4x1")],
        ("distilbert", "4x1"),
    ]
