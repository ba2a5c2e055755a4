"""The report page, parsed as a browser would: what it says, that it needs nothing else, and that labels stay text."""

import base64
import json
from html.parser import HTMLParser

import pytest
from mlflow.entities import Metric

from results import columns, report
from results.__main__ import main
from results.load import load
from results.table import footnotes

HOSTILE = "<script>alert(1)</script>&amp;\"'"


class Page(HTMLParser):
    """Collects elements with their attributes, and the text outside of style."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.inside = [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.inside = tag

    def handle_data(self, data):
        if self.inside != "style":
            self.texts.append(data)

    def of(self, tag):
        return [attributes for found, attributes in self.elements if found == tag]


def log(experiment, **given):
    run = experiment.log(**given)
    experiment.client.log_text(run, f"seed: {given.get('seed', 0)}\nname: {HOSTILE}\n", columns.CONFIG)
    experiment.client.log_text(run, f"pattern=4x1\nmodel.path={HOSTILE} x\n", columns.OVERRIDES)
    layer = {"name": f"layer.0.{HOSTILE}.weight", "shape": [4, 4], "zeros": 8, "skipped": None, "sparsity": 0.5}
    experiment.client.log_text(run, json.dumps([layer]), columns.LAYERS)
    experiment.client.log_batch(run, [Metric(columns.seconds("train"), 1800.0, 0, 0)])
    return run


@pytest.fixture
def page(experiment):
    for seed in (0, 1):
        log(experiment, seed=seed, model=HOSTILE, sparse=0.7 + seed / 100)
    rows, left_out = load(experiment.client, experiment.name)
    return rows, Page(report.page(experiment.client, rows, footnotes(rows, left_out), HOSTILE))


def test_it_needs_nothing_else_and_runs_nothing(page):
    _, found = page
    assert not {tag for tag, _ in found.elements} & {"script", "link", "iframe", "object", "form", "b"}
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in found.of("img"))
    assert not any(name.startswith("on") for _, attributes in found.elements for name in attributes)
    assert {"http-equiv": "Content-Security-Policy",
            "content": "default-src 'none'; img-src data:; style-src 'unsafe-inline'"} in found.of("meta")  # fmt: skip


def test_what_comes_from_runs_is_shown_as_it_is(page):
    _, found = page
    text = "\n".join(found.texts)
    assert text.count(f"name: {HOSTILE}") == 2  # the configurations
    assert HOSTILE in text.split("name:")[0]  # title and table
    assert "python -m runner pattern=4x1 " in text
    for image in found.of("img"):
        assert "<script" not in base64.b64decode(image["src"].split(",")[1]).decode()
    assert len(found.of("img")) == 3  # one comparison, and each run's layers


def test_each_row_leads_to_its_runs(page, experiment):
    rows, found = page
    (row,) = rows
    targets = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert [link["href"] for link in found.of("a")] == [f"#{targets[0]}"]
    assert len(targets) == 1
    for run_id in row.runs:
        assert run_id in found.texts
    summaries = [text for text in found.texts if ": dense 0.8000, sparse 0.7" in text]
    assert [text[-6:] for text in summaries] == ["0.7000", "0.7100"]
    assert "1.00" in found.texts  # hours of two runs of half an hour


def test_runs_of_a_server_are_linked():
    assert report.address("sqlite:///runs.db", "7", "abc") is None
    linked = "http://127.0.0.1:5000/#/experiments/7/runs/abc"
    assert report.address("http://127.0.0.1:5000/", "7", "abc") == linked
    assert report.address("http://me:secret@127.0.0.1:5000", "7", "abc") == linked


def test_runs_without_artifacts_are_reported_too(experiment):
    experiment.log()
    rows, left_out = load(experiment.client, experiment.name)
    found = Page(report.page(experiment.client, rows, footnotes(rows, left_out), "title"))
    assert "not logged" in found.texts
    assert "python -m runner" in found.texts


def test_the_command_line_writes_it_whole_or_not_at_all(experiment, tmp_path, capsys):
    log(experiment)
    out = tmp_path / "page.html"
    given = ["report", "--tracking-uri", experiment.uri, "--experiment", experiment.name, "--output"]
    assert main([*given, str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 1 rows, ")
    assert out.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [out]
    assert main([*given, str(tmp_path / "none" / "page.html")]) == 1
    assert f"--output {tmp_path}/none/page.html: No such file" in capsys.readouterr().err


def test_there_is_no_report_of_nothing(experiment, tmp_path, capsys):
    experiment.log(status="FAILED")
    out = tmp_path / "page.html"
    assert (
        main(["report", "--tracking-uri", experiment.uri, "--experiment", experiment.name, "--output", str(out)]) == 1
    )
    assert "there is nothing to report" in capsys.readouterr().err
    assert not out.exists()


def test_the_answer_comes_first_and_everything_in_the_order_of_the_rows(experiment):
    for group, model, dataset in (("a", "zeta", "mrpc"), ("b", "alpha", "squad"), ("c", "alpha", "sst2")):
        log(experiment, group=group, model=model, dataset=dataset)
    rows, left_out = load(experiment.client, experiment.name)
    text = report.page(experiment.client, rows, footnotes(rows, left_out), "title")
    found = Page(text)
    joined = "\n".join(found.texts)
    places = [joined.index(f"{model} on {dataset}: 4x1 at 80 % costs 10.0 points of F1")
            for model, dataset in (("zeta", "mrpc"), ("alpha", "squad"), ("alpha", "sst2"))]  # fmt: skip
    assert places == sorted(places)
    assert places[-1] < joined.index("Date") < joined.index("Commit") < joined.index("Machine") < joined.index("Zeros")
    order = ["zeta on mrpc", "alpha on squad", "alpha on sst2"]
    captions = [image["alt"] for image in found.of("img") if "against" in image["alt"]]
    assert captions == [f"{name}: F1 against sparsity" for name in order]
    assert [text for text in found.texts if text in [f"{name}, 4x1" for name in order]] == [
        f"{name}, 4x1" for name in order
    ]
    assert [link["href"] for link in found.of("a")] == [f"#{report.anchor(row)}" for row in rows]
    assert text.count("{{") == text.count("{%") == 0


def test_many_sentences_are_on_demand(experiment, monkeypatch):
    monkeypatch.setattr(report, "_FIRST", 1)
    for group in "abc":
        log(experiment, group=group, model=group)
    rows, left_out = load(experiment.client, experiment.name)
    found = Page(report.page(experiment.client, rows, footnotes(rows, left_out), "title", limit=0))
    assert "2 more sentences" in found.texts
    assert sum("costs 10.0 points" in text for text in found.texts) == 3


def test_the_limit_shows_the_first_seed_of_each_row_in_full(experiment, tmp_path, capsys):
    for group in "ab":
        for seed in (0, 1):
            log(experiment, group=group, model=group, seed=seed)
    out = tmp_path / "page.html"
    given = ["report", "--tracking-uri", experiment.uri, "--experiment", experiment.name, "--output", str(out)]
    assert main([*given, "--limit", "2"]) == 0
    found = Page(out.read_text())
    configurations = [text.splitlines()[0] for text in found.texts if text.startswith("seed: ")]
    assert configurations == ["seed: 0", "seed: 0"]
    assert sum(": dense 0.8000, sparse 0.7000" in text for text in found.texts) == 4
    assert any("those of 2 of 4 runs, the first seeds of each row (--limit)" in text for text in found.texts)
    assert len([image for image in found.of("img") if image["alt"] == "Sparsity by layer"]) == 2
    assert main(given) == 0
    assert "--limit" not in out.read_text()
    with pytest.raises(SystemExit):
        main([*given, "--limit", "-1"])
    assert "'-1' is no whole number from 0" in capsys.readouterr().err


def test_an_interval_is_apart_from_its_number_and_other_brackets_are_not(experiment):
    log(experiment, params={"glob": "a [b]"}, scores=([0.5, 0.7], [0.4, 0.6]))
    log(experiment, params={"glob": "c [d]"}, group="h")
    rows, left_out = load(experiment.client, experiment.name)
    found = Page(report.page(experiment.client, rows, footnotes(rows, left_out), "title"))
    assert "glob=a [b]" in found.texts
    assert rows[0].drop_interval is not None
    low, high = (100 * bound for bound in rows[0].drop_interval)
    assert f"[{low:+.1f}, {high:+.1f}]" in found.texts


def test_artifacts_at_a_server_that_only_the_store_names_are_not_asked_for(experiment, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(type(experiment.client), "list_artifacts", lambda *given: pytest.fail("asked"))
    monkeypatch.setattr(type(experiment.client), "download_artifacts", lambda *given: pytest.fail("asked"))
    elsewhere = experiment.client.create_experiment(f"{experiment.name}-elsewhere", "http://127.0.0.1:9/x")
    experiment.id, experiment.name = elsewhere, f"{experiment.name}-elsewhere"
    experiment.log()
    given = ["--tracking-uri", experiment.uri, "--experiment", experiment.name]
    assert main(given) == 0
    assert "no interval: scores.json is missing or cannot be fetched" in capsys.readouterr().out
    assert main(["report", *given, "--output", str(tmp_path / "page.html")]) == 1
    assert "a server that only this file names: it is not asked" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_reads_the_store_once(experiment, tmp_path, monkeypatch):
    for group in "ab":
        log(experiment, group=group, model=group)
    asked = []
    search = type(experiment.client).search_runs
    monkeypatch.setattr(type(experiment.client), "search_runs",
                        lambda *given, **named: asked.append(given) or search(*given, **named))  # fmt: skip
    given = ["report", "--tracking-uri", experiment.uri, "--experiment", experiment.name]
    assert main([*given, "--output", str(tmp_path / "page.html")]) == 0
    assert len(asked) == 1


def test_what_runs_share_is_on_the_page_once(experiment):
    for seed in range(4):
        run = log(experiment, seed=seed)
        tags = {"hardware": "a machine", "dataset.source": "a set", "version.torch": "2.0" if seed else "1.0"}
        for key, value in tags.items():
            experiment.client.set_tag(run, key, value)
    rows, left_out = load(experiment.client, experiment.name)
    pages = {limit: Page(report.page(experiment.client, rows, footnotes(rows, left_out), "title", limit=limit))
             for limit in (0, 4)}  # fmt: skip
    assert [pages[limit].texts.count("a set") for limit in (0, 4)] == [1, 4]
    assert [pages[0].texts.count(f"torch {version}") for version in ("2.0", "1.0")] == [1, 1]  # what differs stays
    assert "otherwise:" in next(text for text in pages[0].texts if "--limit" in text)


def test_a_further_run_takes_few_bytes(experiment):
    sizes = []
    for seeds in (range(2), range(2, 6)):
        for seed in seeds:
            run = experiment.log(seed=seed)
            experiment.client.set_tag(run, "version.torch", "2.0" * 100)
        rows, left_out = load(experiment.client, experiment.name, with_intervals=False)
        notes = footnotes(rows, left_out)
        sizes.append(len(report.page(experiment.client, rows, notes, "title", limit=0).encode()))
    assert (sizes[1] - sizes[0]) / 4 < 400
