import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from results import formats, table
from results.controls import Control
from results.rows import Published, Row
from results.speed import Latency

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
    ["bert-mini", "squad", "4x1", "0.7993", "0.7662/0.7687", "0.7617/0.7627", "-0.78%", "-0.59%", "2 (0-1)"],
    ["distilbert", "squad", "2:4", "0.5000", "0.8690", "0.8731/0.8750", "+0.69%", "+0.47%", "1 (7)"],
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
    return [re.sub(r"\\([\\|*`<&\[_])", r"\1", cell.strip()) for cell in cells[1:-1]]


def test_markdown_is_the_published_table():
    header, rule, *body = formats.markdown([PUBLISHED, GAIN]).splitlines()
    assert markdown_cells(header) == HEADERS
    assert [markdown_cells(line) for line in body] == CELLS
    assert len(markdown_cells(rule)) == len(HEADERS)
    assert set(rule) <= set("|-: ")


def test_markdown_escapes():
    lines = formats.markdown([NASTY]).splitlines()
    assert {len(markdown_cells(line)) for line in lines} == {len(HEADERS) + 1}
    cells = markdown_cells(lines[2])
    assert cells[0] == NASTY.model
    assert cells[-1] == "lr=1|2, glob=[a-z]"


def test_terminal_sets_a_row_on_a_line_when_nobody_says_how_wide():
    rows = [PUBLISHED, replace(GAIN, model="m" * 60, differs={"key": "v" * 200})]
    header, _, *body = formats.terminal(rows).splitlines()
    assert re.split(r"  +", header.strip()) == [*HEADERS, "Differs"]
    assert re.split(r"  +", body[0].strip()) == CELLS[0]
    assert "m" * 60 in body[1]
    assert "v" * 200 in body[1]
    assert len(body) == 2


@pytest.mark.parametrize("width", [20, 80, 120, 300])
def test_terminal_breaks_headers_but_no_number(width):
    rows = [PUBLISHED, replace(GAIN, differs={"learning_rate": "0.1", "epochs": "10", "schedule": "cubic"})]
    text = formats.terminal(rows, width)
    assert all(cell in text for cell in ("0.7662/0.7687", "0.7617/0.7627", "-0.78%", "+0.69%", "distilbert"))
    assert max(map(len, text.splitlines())) <= max(width, 125)


def test_terminal_cuts_nothing_off():
    row = replace(PUBLISHED, seeds=list(range(12)), differs={"key": "Z" * 50})
    text = formats.terminal([row], 20)
    assert text.count("Z") == 50
    assert "11" in text


def test_terminal_prints_labels_as_they_are():
    text = formats.terminal([replace(PUBLISHED, model="glob([a-z])[bold]", pattern=":smile:")])
    assert "glob([a-z])[bold]" in text
    assert ":smile:" in text


def test_csv_reads_back():
    text = formats.comma_separated([NASTY, replace(GAIN, drop_max=None, ratio=None)])
    reader = csv.DictReader(io.StringIO(text))
    first, second = reader
    assert reader.fieldnames is not None
    assert list(reader.fieldnames)[: len(FIELDS)] == FIELDS
    assert first["model"] == NASTY.model
    assert first["seeds"] == "0 1"
    assert first["differs"] == "lr=1|2, glob=[a-z]"
    for name in FIELDS[4:11]:
        assert float(first[name]) == getattr(NASTY, name)  # all digits
    assert second["drop_max"] == second["ratio"] == second["differs"] == ""


def test_json_reads_back():
    first, second = json.loads(formats.as_json([NASTY, replace(GAIN, drop_max=None)]))
    assert list(first)[: len(FIELDS) + 1] == [*FIELDS, "runs"]
    assert Row(**first) == NASTY
    assert second["drop_max"] is None
    assert formats.as_json([]) == "[]"


def test_latex_escapes_and_counts():
    lines = formats.latex([NASTY, PUBLISHED]).splitlines()
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
    assert "Differs" not in formats.markdown([PUBLISHED]) + formats.terminal([PUBLISHED]) + formats.latex([PUBLISHED])
    assert "Differs" in formats.comma_separated([PUBLISHED]).title()


def test_several_metrics_get_a_column():
    header, _, *body = formats.markdown([PUBLISHED, replace(GAIN, metric="exact_match")]).splitlines()
    assert markdown_cells(header)[3] == "Metric"
    assert "Dense score (mean/max)" in header
    assert "Sparse score (mean/max)" in header
    assert "F1" not in header
    assert [markdown_cells(line)[3] for line in body] == ["F1", "Exact match"]


@pytest.mark.parametrize(("metric", "label"), [("f1", "F1"), ("exact_match", "exact match"), ("accuracy", "accuracy")])
def test_headers_name_the_metric(metric, label):
    assert f"| Dense {label} (mean/max) | Sparse {label} (mean/max) |" in formats.markdown(
        [replace(PUBLISHED, metric=metric)]
    )


def test_undefined_is_a_dash():
    row = replace(PUBLISHED, ratio=None, drop_max=None, drop_mean=None)
    cells = markdown_cells(formats.markdown([row]).splitlines()[2])
    assert (cells[3], cells[6], cells[7]) == ("-", "-", "-")


def test_no_format_fails_on_no_rows():
    assert len(formats.FORMATS) == 6
    assert all(isinstance(form([]), str) for form in formats.FORMATS.values())


CONTROL = Control(0.8, 0.81, -0.05, -0.04, [-0.06, -0.02], [0, 1], ["c0", "c1"])
FULL = replace(
    PUBLISHED,
    **{"drop_interval": [-0.0120, 0.00034], "control": CONTROL, "plain": replace(CONTROL, mean=0.79, interval=None)},
    **{"sparse_others": {"exact_match": 0.68}, "dense_others": {"exact_match": 0.7}},
    **{"size_bytes": 44.73e6, "compressed_bytes": 12e6, "macs_dense": 200.0, "macs_sparse": 83.0},
    **{"published": Published("f1", 0.7993, None, 0.7687, 0.7617, 0.7627, -0.0078, "A & B")},
    **{"notes": ["first", "second"]},
)
MORE = {
    "95% interval of the drop of means": "-1.20% to +0.03%",
    "Notes": "a, b",
    "Published ratio": "0.7993",
    "Published dense F1 (mean/max)": "0.7687",
    "Published sparse F1 (mean/max)": "0.7617/0.7627",
    "Published relative drop": "-0.78%",
    "Same-budget dense F1 (mean/max)": "0.8000/0.8100",
    "Drop of means against control": "-4.00%",
    "95% interval against control": "-6.00% to -2.00%",
    "Same-budget dense F1 without distillation (mean/max)": "0.7900/0.8100",
    "Drop of means against undistilled control": "-4.00%",
    "Sparse exact match (mean)": "0.6800",
    "Size on disk": "44.7 MB",
    "Sparse, compressed": "12.0 MB",
    "Multiply-accumulates left": "41.5%",
}


def test_columns_beside_the_published_ones():
    header, _, full, bare = formats.markdown([FULL, PUBLISHED]).splitlines()
    assert markdown_cells(header)[:8] == HEADERS[:8]
    found = dict(zip(markdown_cells(header), markdown_cells(full), strict=True))
    assert {name: found.get(name) for name in MORE} == MORE
    assert list(found) == [*HEADERS[:8], "95% interval of the drop of means", "Seeds", *list(MORE)[1:]]
    cells = dict(zip(markdown_cells(header), markdown_cells(bare), strict=True))
    assert {cells[name] for name in MORE if name != "Notes"} == {"-"}
    assert cells["Notes"] == ""


def test_the_terminal_leaves_sizes_out_unless_asked():
    narrow, wide = formats.terminal([FULL], wide=False), formats.terminal([FULL])
    assert "44.7 MB" in wide
    assert "44.7 MB" not in narrow
    assert "-6.00% to -2.00%" in wide
    assert "-4.00% [-6.00, -2.00]" in narrow
    assert "0.6800" in wide
    assert "0.6800" not in narrow


USUAL = replace(FULL, model="minilm-l6", published=None, notes=["one", "two", "three"])
TIMED = replace(USUAL, latency=Latency(4.0, 2.5, "sparse", "bfloat16", 1, 128, 1, "CPU", 2))
SHORT = {
    **{"Model": "minilm-l6", "Dataset": "squad", "Pattern": "4x1", "Zeros": "79.9%", "Dense F1": "0.7662"},
    **{"Sparse F1": "0.7617", "Drop of means [95%]": "-0.59% [-1.20, +0.03]"},
    **{
        "Against control [95%]": "-4.00% [-6.00, -2.00]",
        "Seeds": "2",
        "Latency ms": "4.00 (2.50x)",
        "Notes": "a, b, c",
    },
}


def test_the_default_table_is_what_a_row_costs():
    header, _, line = formats.terminal([TIMED], wide=False).splitlines()
    assert dict(zip(re.split(r"  +", header.strip()), re.split(r"  +", line.strip()), strict=True)) == SHORT
    usual = formats.terminal([USUAL, replace(USUAL, model="distilbert", pattern="dense", control=None)], wide=False)
    assert "Latency" not in usual
    assert max(map(len, usual.splitlines())) <= 120


def test_120_columns_hold_a_timed_row_with_its_control():
    text = formats.terminal([TIMED, GAIN], 120, wide=False)
    assert max(map(len, text.splitlines())) <= 120
    assert "\n\n" not in text  # one block
    assert all(part in text for cell in SHORT.values() for part in cell.split(" ["))
    assert "[-6.00, -2.00]" not in text.splitlines()[-3]  # below its number


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_blocks_hold_every_cell_once(width):
    text = formats.terminal([FULL, GAIN], width)
    assert max(map(len, text.splitlines())) <= width
    for cell in MORE.values():
        assert cell in text
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert text.count("bert-mini") == text.count("distilbert") == len(blocks)


def test_notes_are_told_once_with_the_rows_they_concern():
    rows = [FULL, replace(GAIN, notes=["second", "third"]), replace(GAIN, dataset="mrpc", notes=["second"])]
    *notes, source = table.footnotes(rows, {"failed": 1})
    assert notes == [
        "a: first (bert-mini squad 4x1).",
        "b: second (all rows).",
        "c: third (distilbert squad 2:4).",
        "1 failed run is not shown.",
    ]
    assert source.startswith("Published by A & B.")
    header, _, *lines = map(markdown_cells, formats.markdown(rows).splitlines())
    assert [line[header.index("Notes")] for line in lines] == ["a, b", "b, c", "b"]


def test_csv_has_all_of_what_is_known():
    text = formats.comma_separated([FULL, PUBLISHED])
    full, bare = csv.DictReader(io.StringIO(text))
    assert (full["drop_interval_low"], full["drop_interval_high"]) == ("-0.012", "0.00034")
    assert (full["control_mean"], full["control_interval_low"], full["control_seeds"]) == ("0.8", "-0.06", "0 1")
    assert (full["plain_mean"], full["plain_interval_low"]) == ("0.79", "")
    assert (full["sparse/exact_match"], full["dense/exact_match"]) == ("0.68", "0.7")
    assert (full["published_dense_mean"], full["published_source"]) == ("", "A & B")
    assert full["notes"] == "first; second"
    assert not [name for name in full if "runs" in name]
    assert not any(bare[name] for name in full if name not in [*FIELDS, "notes"])


def test_json_has_notes_and_records():
    (row,) = json.loads(formats.as_json([FULL]))
    assert row["notes"] == ["first", "second"]
    assert row["control"]["runs"] == ["c0", "c1"]
    assert row["published"]["source"] == "A & B"


class Page(HTMLParser):
    """Reads a table back: tags that came, and the text of each cell by line."""

    def __init__(self):
        super().__init__()
        self.tags, self.lines, self.opened = set(), [], False

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.opened = tag in ("td", "th")
        if tag == "tr":
            self.lines.append([])
        if self.opened:
            self.lines[-1].append("")

    def handle_endtag(self, tag):
        self.opened = False

    def handle_data(self, data):
        if self.opened:
            self.lines[-1][-1] += data


HOSTILE = ["<script>alert(1)</script>", "</td></table><img src=x onerror=y>", "&amp;", "'\"><b>", "a|b\\", "x\ny"]


@pytest.mark.parametrize("text", HOSTILE)
def test_html_escapes(text):
    row = replace(FULL, model=text, dataset=text, pattern=text, differs={text: text}, sparse_others={text: 0.5})
    page = Page()
    page.feed(formats.html_table([row]))
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    header, cells = page.lines
    assert len(header) == len(cells)
    assert cells[:3] == [text] * 3
    assert cells[-1] == f"{text}={text}"
    whole = Page()
    whole.feed(formats.html([replace(row, notes=[text])], [text]))
    assert whole.tags == page.tags | {"html", "head", "meta", "title", "style", "body", "p"}


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_escapes_headers_and_cells(text):
    row = replace(FULL, model=text, sparse_others={text: 0.5}, metric=f"x{text}")
    lines = formats.markdown([row]).splitlines()
    assert len(lines) == 3
    assert len({len(markdown_cells(line)) for line in lines}) == 1
    assert not [line for line in lines if re.search(r"(?<!\\)<", line)]


def test_latex_has_no_line_that_begins_with_an_option():
    lines = formats.latex([replace(PUBLISHED, model="[x]"), replace(PUBLISHED, model="*"), NASTY]).splitlines()
    assert [line.split(" & ")[0] for line in lines[5:7]] == ["{[}x{]}", "{*}"]
