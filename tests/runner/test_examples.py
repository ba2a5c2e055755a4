"""`python -m runner.examples`: what was lost and won, recounted from the predictions with the official formula."""

import json
import re
import shutil
import string
from collections import Counter, defaultdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from results import columns
from runner.data.demo import Demo
from runner.data.question_answering import Span
from runner.data.readable import excerpt, length_range, question_word
from runner.data.task import Dataset
from runner.demo.text import examples as generated
from runner.examples import parse
from runner.records import runs
from runner.records.error_analysis import Compared, Diagnosis, Slice, diagnose, slices
from runner.records.error_tables import text_of
from runner.system import files
from runner.system.errors import UserError
from runner.tracking import Tracking
from tests.conftest import cli_in, copy_run

EVALUATED = 60
EXAMPLES = ("-m", "runner.examples")


@pytest.fixture(scope="module")
def original(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run in `outputs/`."""
    return copy_run(finished_run, tmp_path_factory.mktemp("original"))


def run_in(place: Path) -> Path:
    (folder,) = place.glob("outputs/*-s0-*/")
    return folder


def diagnosed(place: Path, lost: int = 1000, won: int = 1000) -> Diagnosis:
    run = runs.find(str(run_in(place)), Tracking())
    return diagnose(run, runs.restored(run, {}).experiment.dataset, lost, won)


# --- the official formula, as the script of SQuAD v1.1 has it -----------------------------------------------


def normalize_answer(text: str) -> str:
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1_score(prediction: str, truth: str) -> float:
    ours, theirs = normalize_answer(prediction).split(), normalize_answer(truth).split()
    same = sum((Counter(ours) & Counter(theirs)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)


def recounted(place: Path) -> dict[str, tuple[float, float]]:
    """Both scores of each question."""
    answers = {row["id"]: row["answers"]["text"] for row in generated(EVALUATED, seed=1)}
    both = [json.loads((run_in(place) / n).read_text()) for n in (columns.DENSE_PREDICTIONS, columns.PREDICTIONS)]
    dense, sparse = ({i: max(f1_score(p[i], gold) for gold in golds) for i, golds in answers.items()} for p in both)
    return {i: (dense[i], sparse[i]) for i in answers}


# --- the numbers --------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_official_formula(original: Path) -> None:
    found, both = diagnosed(original), recounted(original)
    change = {i: sparse - dense for i, (dense, sparse) in both.items()}
    assert found.examples == len(both) == EVALUATED
    assert found.lost == sum(1 for c in change.values() if c < -1e-12) == len(found.most_lost) > 0
    assert found.won == sum(1 for c in change.values() if c > 1e-12) == len(found.most_won) > 0
    assert found.both_wrong == sum(1 for pair in both.values() if pair == (0, 0)) > 0
    assert found.lost + found.won + found.same + found.both_wrong == EVALUATED
    for example in (*found.most_lost, *found.most_won):
        assert (example.dense, example.sparse) == pytest.approx(both[example.id])
        assert example.change == pytest.approx(change[example.id])
    # The changes sum up to the difference of the two scores that the run ended with.
    result = json.loads((run_in(original) / "result.json").read_text())
    assert sum(change.values()) / EVALUATED == pytest.approx(result["sparse"]["f1"] - result["dense"]["f1"])
    assert found.change == pytest.approx(sum(change.values()) / EVALUATED)
    assert sum(e.change for e in (*found.most_lost, *found.most_won)) / EVALUATED == pytest.approx(found.change)


def test_each_slice_has_the_mean_of_its_members(original: Path) -> None:
    found, both = diagnosed(original), recounted(original)
    assert list(found.slices) == ["Question word", "Length of the answer", "Length of the paragraph"]
    for members in found.slices.values():
        assert sum(kind.examples for kind in members) == EVALUATED
        assert sum(kind.part for kind in members) == pytest.approx(found.change)
    naive: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for row in generated(EVALUATED, seed=1):
        question = row["question"].lower().rstrip("?").replace("whom", "who").replace("whose", "who").split()
        asking = [word for word in question if word in ("how", "what", "when", "where", "which", "who")]
        naive[asking[0]].append(both[row["id"]])
    words = found.slices["Question word"]
    assert [kind.name for kind in words] == sorted(naive)  # nothing is counted in the demo: no "how many"
    assert len(words) >= 3
    for kind in words:
        dense, sparse = (sum(column) / len(naive[kind.name]) for column in zip(*naive[kind.name], strict=True))
        assert (kind.examples, kind.dense, kind.sparse) == (
            len(naive[kind.name]), pytest.approx(dense), pytest.approx(sparse)
        )  # fmt: skip
        assert kind.change == pytest.approx(sparse - dense)
        assert kind.part == pytest.approx((sparse - dense) * kind.examples / EVALUATED)


def test_the_largest_changes_come_first_and_no_more_than_asked_for(original: Path) -> None:
    found = diagnosed(original)
    for members, sign in ((found.most_lost, -1), (found.most_won, 1)):
        assert all(sign * e.change > 0 for e in members)
        assert members == sorted(members, key=lambda e: (-abs(e.change), e.id))
    few = diagnosed(original, lost=1, won=0)
    assert (few.most_lost, few.most_won, few.lost) == (found.most_lost[:1], [], found.lost)


def test_what_is_shown_of_a_question(original: Path) -> None:
    rows = {row["id"]: row for row in generated(EVALUATED, seed=1)}
    dense = json.loads((run_in(original) / columns.DENSE_PREDICTIONS).read_text())
    sparse = json.loads((run_in(original) / columns.PREDICTIONS).read_text())
    for example in diagnosed(original).most_lost:
        row = rows[example.id]
        assert list(example.shown) == ["Question", "Paragraph", "Gold answers"]
        assert example.shown["Question"] == row["question"]
        assert row["answers"]["text"][0] in example.shown["Paragraph"]
        assert example.shown["Gold answers"].split(" | ")[0] == row["answers"]["text"][0]
        assert (example.dense_answer, example.sparse_answer) == (dense[example.id], sparse[example.id])


# --- the command line ---------------------------------------------------------------------------------------


def test_the_command_line_shows_it_and_adds_it_to_the_run(original: Path) -> None:
    run = json.loads((run_in(original) / "result.json").read_text())
    done = cli_in(original)(*EXAMPLES, run["mlflow_run"], "--format", "json", "--lost", "2", "--won", "1")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["lost"] == diagnosed(original).lost
    assert (len(told["most_lost"]), len(told["most_won"])) == (min(2, told["lost"]), 1)
    (page,) = original.glob(f"mlartifacts/**/{run['mlflow_run']}/artifacts/{columns.EXAMPLES_HTML}")
    (values,) = original.glob(f"mlartifacts/**/{run['mlflow_run']}/artifacts/{columns.EXAMPLES_JSON}")
    assert json.loads(values.read_text()) == told
    assert "<h2>By question word</h2>" in page.read_text()
    assert told["most_lost"][0]["shown"]["Question"] in page.read_text()

    page.unlink()
    done = cli_in(original)(*EXAMPLES, str(run_in(original)), "--no-log", "--output", "new/told.txt")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not page.exists()
    text = (original / "new" / "told.txt").read_text()
    assert f"{EVALUATED} examples: {told['lost']} lost, {told['won']} won, " in text
    assert "Part of the whole change" in text


def test_without_its_store_it_is_shown_all_the_same(original: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(run_in(original), tmp_path / "run"))
    done = cli_in(tmp_path)(*EXAMPLES, str(folder), "--format", "markdown")
    assert done.returncode == 0
    assert done.stdout.startswith("small-model on demo, 4x1, seed 0")
    assert "| Question word | Examples |" in done.stdout
    assert done.stderr == (
        "not added to the run in MLflow: tracking.uri=sqlite:///mlflow.db: there is no such database\n"
    )
    assert not (tmp_path / "mlflow.db").exists()


def test_options_that_are_no_numbers() -> None:
    assert parse(["run", "--lost", "3"]).lost == 3
    for wrong in ("-1", "x", "1.5"):
        with pytest.raises(SystemExit):
            parse(["run", f"--lost={wrong}"])


def test_what_cannot_be_compared(original: Path, tmp_path: Path) -> None:
    shutil.copytree(original / "outputs", tmp_path / "outputs")
    folder = run_in(tmp_path)
    result = files.read_json(folder / "result.json")
    assert result is not None
    scores = json.loads((folder / columns.SCORES).read_text())

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            diagnosed(tmp_path)

    files.write_json(folder / "result.json", {**result, "sparse": None})
    refused("with prune=false there is no sparse model")
    files.write_json(folder / "result.json", {**result, "made_by": {**result["made_by"], "evaluation": "others"}})
    refused("dataset.path=generated: these are not the examples that the run was scored on; add dataset.path=PLACE")
    files.write_json(folder / "result.json", {**result, "made_by": {}})
    refused("was made by another version of the runner")
    files.write_json(folder / "result.json", result)
    (folder / columns.SCORES).write_text(json.dumps({**scores, "sparse": [0.0] * EVALUATED}))
    refused("scores.json: its mean, 0.000000, is not the sparse f1 of the run")
    (folder / columns.SCORES).write_text(json.dumps({"id": [], "dense": [], "sparse": []}))
    refused("f1 knows no right and wrong answers")
    (folder / columns.SCORES).unlink()
    refused("scores.json cannot be read")
    (folder / columns.SCORES).write_text(json.dumps(scores))
    predictions = json.loads((folder / columns.PREDICTIONS).read_text())
    (folder / columns.PREDICTIONS).write_text(json.dumps({**predictions, "another": ""}))
    refused("predictions.json: its examples are not those of the run")
    (folder / columns.PREDICTIONS).write_text(json.dumps(predictions))
    assert diagnosed(tmp_path).examples == EVALUATED
    (folder / "result.json").unlink()
    refused("there is no result.json")


# --- formats ------------------------------------------------------------------------------------------------

HOSTILE = "<script>alert('a|b & \"c\"')</script> [x](y) *z* [bold]b[/bold] `d`"


def hostile() -> Diagnosis:
    example = Compared("1", {HOSTILE: HOSTILE}, HOSTILE, HOSTILE, 1.0, 0.0, -1.0)
    kind = Slice(HOSTILE, 1, 1.0, 0.0, -1.0, -1.0)
    return Diagnosis("f", HOSTILE, "d", "4x1", 0, "f1", 1.0, 0.0, -1.0, 1, 1, 0, 0, 0, {HOSTILE: [kind]}, [example], [])


class Page(HTMLParser):
    """The texts of cells, and all tags."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.inside = ""
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        self.inside = tag

    def handle_data(self, data: str) -> None:
        if self.inside in ("td", "th"):
            self.cells[-1] += data

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""


def test_a_page_holds_texts_and_no_tags_of_theirs() -> None:
    page = Page()
    page.feed(text_of(hostile(), "html"))
    assert page.tags == {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "table", "thead", "tbody",
                         "tr", "th", "td"}  # fmt: skip
    assert page.cells.count(HOSTILE) == 6  # title and name of the slice, title and text shown, two answers


def test_markdown_keeps_its_columns() -> None:
    rows = [line for line in text_of(hostile(), "markdown").splitlines() if line.startswith("|")]
    assert len(rows) == 6  # two tables with a header, a rule and a row
    assert [len(re.findall(r"(?<!\\)\|", line)) - 1 for line in rows] == [6, 6, 6, 5, 5, 5]
    assert not re.search(r"(?<!\\)[<*`\[]", "".join(rows))


def test_a_terminal_shows_texts_as_they_are() -> None:
    told = text_of(hostile(), "table")
    assert "[bold]b[/bold]" in "".join(told.split("\n"))
    assert max(map(len, told.splitlines())) <= 160
    assert json.loads(text_of(hostile(), "json"))["most_lost"][0]["dense_answer"] == HOSTILE


# --- slices -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("question", "word"), [
    ("What is it?", "what"), ("In what year?", "what"), ("Whose dog?", "who"), ("To whom?", "who"),
    ("How many are there?", "how many"), ("How much?", "how many"), ("how?", "how"), ("Name it.", "other"),
    ("The whatever of which", "which"), ("", "other"),
])  # fmt: skip
def test_question_words(question: str, word: str) -> None:
    assert question_word(question) == word


def test_lengths_are_ranges_without_gaps() -> None:
    assert [length_range(n, (1, 2, 4)) for n in range(1, 7)] == [
        "1 word", "2 words", "3 to 4 words", "3 to 4 words", "5 words or more", "5 words or more"
    ]  # fmt: skip
    assert [length_range(n, (50, 100)) for n in (1, 50, 51, 100, 101)] == [
        "1 to 50 words", "1 to 50 words", "51 to 100 words", "51 to 100 words", "101 words or more"
    ]  # fmt: skip


def test_ranges_come_in_their_order() -> None:
    every = [Compared(str(n), {}, "", "", 0.0, 0.0, 0.0) for n in (250, 120, 60, 7)]
    of_each = {e.id: {"Length": length_range(int(e.id), (50, 100, 200))} for e in every}
    names = [kind.name for kind in slices(every, of_each)["Length"]]
    assert names == ["1 to 50 words", "51 to 100 words", "101 to 200 words", "201 words or more"]


def test_an_excerpt_holds_the_answer_in_whole_words() -> None:
    text = " ".join(f"word{n}" for n in range(200))
    start = text.index("word90")
    part = excerpt(text, start, start + len("word90"))
    assert part.startswith("… word")
    assert part.endswith(" …")
    assert set(part.strip("… ").split()) <= set(text.split())
    assert 150 < len(part) < 220
    assert excerpt("a\n b", 0, 1) == "a b"
    joined = "x" * 500
    assert excerpt(joined, 200, 210) == f"… {'x' * 10} …"  # nowhere to cut but at the answer itself


def test_any_task_can_be_shown() -> None:
    row = {"id": "1", "text": "good", "label": 1}
    assert Dataset("x").shown(row) == {"Text": "good", "Label": "1"}
    assert Dataset("x").kinds(row) == {}
    assert Demo.shown is Span.shown
