import csv
import io
import json
import re
from dataclasses import replace

import pytest

from results import table
from results.collect import Row

PUBLISHED = Row(
    **{"model": "bert-mini", "dataset": "squad", "pattern": "4x1", "seeds": [0, 1], "ratio": 0.7993},
    **{"dense_mean": 0.7662, "dense_max": 0.7687, "sparse_mean": 0.7617, "sparse_max": 0.7627},
    **{"drop_max": -0.0060 / 0.7687, "drop_mean": -0.0045 / 0.7662},
    **{"metric": "f1", "differs": {}, "runs": ["r0", "r1"]},
)
GAIN = replace(
    PUBLISHED,
    **{"model": "distilbert", "pattern": "2:4", "seeds": [7], "ratio": 0.5, "runs": ["r7"]},
    **{"dense_mean": 0.8690, "dense_max": 0.8690, "sparse_mean": 0.8731, "sparse_max": 0.8750},
    **{"drop_max": 0.0060 / 0.8690, "drop_mean": 0.0041 / 0.8690},
)
HEADERS = [
    *["Model", "Dataset", "Sparsity pattern", "Element-wise/matmul, Gemm, conv ratio", "Dense F1 (mean/max)"],
    *["Sparse F1 (mean/max)", "Relative drop", "Relative drop of means", "Seeds"],
]
CELLS = [
    ["bert-mini", "squad", "4x1", "0.7993", "0.7662/0.7687", "0.7617/0.7627", "-0.78%", "-0.59%", "0, 1"],
    ["distilbert", "squad", "2:4", "0.5000", "0.8690", "0.8731/0.8750", "+0.69%", "+0.47%", "7"],
]
NASTY = replace(PUBLISHED, model="a|b\\|c & 100%_#$ {x} ~^ <y> `z` *", differs={"lr": "1|2", "glob": "[a-z]"})
FIELDS = [
    *["model", "dataset", "pattern", "seeds", "ratio", "dense_mean", "dense_max", "sparse_mean", "sparse_max"],
    *["drop_max", "drop_mean", "metric", "differs"],
]


def markdown_cells(line):
    """The cells of a line of a Markdown table, as GitHub splits and unescapes it."""
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", line)
    assert cells[0] == cells[-1] == ""
    return [re.sub(r"\\([\\|*`<])", r"\1", cell.strip()) for cell in cells[1:-1]]


def test_markdown_is_the_published_table():
    header, rule, *body = table.markdown([PUBLISHED, GAIN]).splitlines()
    assert markdown_cells(header) == HEADERS
    assert [markdown_cells(line) for line in body] == CELLS
    assert len(markdown_cells(rule)) == len(HEADERS)
    assert set(rule) <= set("|-: ")


def test_markdown_escapes():
    lines = table.markdown([NASTY]).splitlines()
    assert {len(markdown_cells(line)) for line in lines} == {len(HEADERS) + 1}
    cells = markdown_cells(lines[2])
    assert cells[0] == NASTY.model
    assert cells[-1] == "lr=1|2, glob=[a-z]"


def test_terminal_sets_a_row_on_a_line_when_nobody_says_how_wide():
    rows = [PUBLISHED, replace(GAIN, model="m" * 60, differs={"key": "v" * 200})]
    header, _, *body = table.terminal(rows).splitlines()
    assert re.split(r"  +", header.strip()) == [*HEADERS, "Differs"]
    assert re.split(r"  +", body[0].strip()) == CELLS[0]
    assert "m" * 60 in body[1]
    assert "v" * 200 in body[1]
    assert len(body) == 2


@pytest.mark.parametrize("width", [20, 80, 120, 300])
def test_terminal_breaks_headers_but_no_number(width):
    rows = [PUBLISHED, replace(GAIN, differs={"learning_rate": "0.1", "epochs": "10", "schedule": "cubic"})]
    text = table.terminal(rows, width)
    assert all(cell in text for cell in ("0.7662/0.7687", "0.7617/0.7627", "-0.78%", "+0.69%", "distilbert"))
    assert max(map(len, text.splitlines())) <= max(width, 125)


def test_terminal_cuts_nothing_off():
    row = replace(PUBLISHED, seeds=list(range(12)), differs={"key": "Z" * 50})
    text = table.terminal([row], 20)
    assert text.count("Z") == 50
    assert "11" in text


def test_terminal_prints_labels_as_they_are():
    text = table.terminal([replace(PUBLISHED, model="glob([a-z])[bold]", pattern=":smile:")])
    assert "glob([a-z])[bold]" in text
    assert ":smile:" in text


def test_csv_reads_back():
    text = table.comma_separated([NASTY, replace(GAIN, drop_max=None, ratio=None)])
    reader = csv.DictReader(io.StringIO(text))
    first, second = reader
    assert reader.fieldnames == FIELDS
    assert first["model"] == NASTY.model
    assert first["seeds"] == "0 1"
    assert first["differs"] == "lr=1|2, glob=[a-z]"
    for name in FIELDS[4:11]:
        assert float(first[name]) == getattr(NASTY, name)  # all digits
    assert second["drop_max"] == second["ratio"] == second["differs"] == ""


def test_json_reads_back():
    first, second = json.loads(table.as_json([NASTY, replace(GAIN, drop_max=None)]))
    assert list(first) == [*FIELDS, "runs"]
    assert Row(**first) == NASTY
    assert second["drop_max"] is None
    assert table.as_json([]) == "[]"


def test_latex_escapes_and_counts():
    lines = table.latex([NASTY, PUBLISHED]).splitlines()
    assert lines[1] == r"\begin{tabular}{lllrrrrrll}"
    assert lines[-1] == r"\end{tabular}"
    assert lines[2] == r"\toprule"
    assert lines[4] == r"\midrule"
    assert lines[-2] == r"\bottomrule"
    for line in (lines[3], *lines[5:-2]):
        assert len(re.findall(r"(?<!\\)&", line)) == len(HEADERS)
        assert line.endswith(r" \\")
    escaped = r"a\textbar{}b\textbackslash{}\textbar{}c \& 100\%\_\#\$ \{x\} \textasciitilde{}\textasciicircum{} "
    assert lines[5].startswith(escaped + r"\textless{}y\textgreater{}")
    assert r"-0.78\%" in lines[6]


def test_differs_is_left_out_where_empty():
    assert "Differs" not in table.markdown([PUBLISHED]) + table.terminal([PUBLISHED]) + table.latex([PUBLISHED])
    assert "Differs" in table.comma_separated([PUBLISHED]).title()


def test_several_metrics_get_a_column():
    header, _, *body = table.markdown([PUBLISHED, replace(GAIN, metric="exact_match")]).splitlines()
    assert markdown_cells(header)[3] == "Metric"
    assert "Dense score (mean/max)" in header
    assert "Sparse score (mean/max)" in header
    assert "F1" not in header
    assert [markdown_cells(line)[3] for line in body] == ["F1", "Exact match"]


@pytest.mark.parametrize(("metric", "label"), [("f1", "F1"), ("exact_match", "Exact match"), ("accuracy", "Accuracy")])
def test_headers_name_the_metric(metric, label):
    assert f"| Dense {label} (mean/max) | Sparse {label} (mean/max) |" in table.markdown(
        [replace(PUBLISHED, metric=metric)]
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0060 / 0.7687, "-0.78%"),
        (0.0098, "+0.98%"),
        (-0.000001, "+0.00%"),
        (0.0, "+0.00%"),
        (None, "-"),
        (-1, "-100.00%"),
    ],
)
def test_percent(value, text):
    assert table.percent(value) == text


def test_one_number_where_mean_and_maximum_print_the_same():
    assert table.mean_max(0.8690, 0.8690) == "0.8690"
    assert table.mean_max(0.86901, 0.86904) == "0.8690"
    assert table.mean_max(0.86894, 0.86904) == "0.8689/0.8690"


def test_undefined_is_a_dash():
    row = replace(PUBLISHED, ratio=None, drop_max=None, drop_mean=None)
    cells = markdown_cells(table.markdown([row]).splitlines()[2])
    assert (cells[3], cells[6], cells[7]) == ("-", "-", "-")


@pytest.mark.parametrize(
    ("left_out", "notes"),
    [
        ({}, []),
        ({"failed": 1}, ["1 failed run is not shown."]),
        ({"killed": 2}, ["2 killed runs are not shown."]),
        (
            {"unverified": 1, "failed": 1, "unfinished": 2},
            ["2 unfinished, 1 failed and 1 unverified runs are not shown."],
        ),
        ({"failed": 1, "incomplete": 1}, ["1 failed and 1 incomplete runs are not shown."]),
        ({"repeated": 1}, ["1 repeat was left out: the newest run counts."]),
        ({"repeated": 2}, ["2 repeats were left out: the newest run counts."]),
    ],
)
def test_footnotes_count_what_is_not_shown(left_out, notes):
    assert table.footnotes([PUBLISHED], left_out) == notes
    assert table.footnotes([], left_out)[1:] == notes
    assert "Nothing" in table.footnotes([], left_out)[0]


def test_footnote_on_rows_that_nothing_tells_apart():
    twin = replace(PUBLISHED, dense_max=0.9)
    (note,) = table.footnotes([PUBLISHED, twin, GAIN], {})
    assert note == "2 rows of bert-mini squad 4x1 differ in something that was not logged as a param."
    assert not table.footnotes([replace(PUBLISHED, differs={"lr": "1"}), replace(twin, differs={"lr": "2"})], {})


def test_no_format_fails_on_no_rows():
    assert len(table.FORMATS) == 5
    assert all(isinstance(form([]), str) for form in table.FORMATS.values())
