"""SQuAD's F1 and exact match, against an implementation of its own, known cases and published predictions."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.squad_metric import SquadMetric
from runner.data.squad_scores import exact_match, f1, normalize

PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


# --- naively, character by character and word by word -------------------------------------------------------


def naive_words(text: str) -> list[str]:
    """The words that count: lower case, no ASCII punctuation, and no article that stands alone."""
    characters = [character for character in text.lower() if character not in PUNCTUATION]
    # An article is a maximal run of letters, digits and underscores; it is replaced by a blank.
    run, written = "", ""
    for character in [*characters, None]:
        if character is not None and (character.isalnum() or character == "_"):
            run += character
            continue
        written += " " if run in ("a", "an", "the") else run
        run = ""
        written += character or ""
    return [*written.split()]


def naive_f1(prediction: str, answer: str) -> float:
    predicted, expected = naive_words(prediction), naive_words(answer)
    left, common = list(expected), 0
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def naive_scores(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    exact = words = 0.0
    for id, answers in references.items():
        if id in predictions:
            exact += any(naive_words(predictions[id]) == naive_words(answer) for answer in answers)
            words += max(naive_f1(predictions[id], answer) for answer in answers)
    return {"exact_match": 100 * exact / len(references), "f1": 100 * words / len(references)}


def compute(predictions: dict[str, str], references: dict[str, list[str]]) -> dict[str, float]:
    computed = SquadMetric().compute(
        predictions=[{"id": id, "prediction_text": text} for id, text in predictions.items()],
        references=[{"id": id, "answers": {"text": texts}} for id, texts in references.items()],
    )
    assert computed is not None
    return computed


# --- properties ---------------------------------------------------------------------------------------------

# Few words, so that answers overlap; whatever text, so that nothing is left out. Combining marks are no part of
# Python's \\w but change what isalnum says, so letters come from common scripts.
words = st.sampled_from(["the", "The", "a", "an", "cat", "Cat's", "cats", "in", "an-", "1,000", "é", "ß", "«oh»", "--"])
sentences = st.lists(words, max_size=6).map(" ".join)
anything = st.text(st.characters(codec="utf-8", categories=("L", "Nd", "P", "Z", "Sm")), max_size=20)
texts = sentences | anything


@given(texts)
def test_normalised_text_has_the_words_of_the_naive_reading(text: str) -> None:
    assert normalize(text) == " ".join(naive_words(text))


@given(texts, texts)
def test_scores_of_a_pair_are_those_of_the_naive_reading(prediction: str, answer: str) -> None:
    assert f1(prediction, answer) == pytest.approx(naive_f1(prediction, answer), abs=1e-12)
    assert exact_match(prediction, answer) == float(naive_words(prediction) == naive_words(answer))


@given(texts, texts)
def test_scores_are_fractions_and_symmetric(one: str, other: str) -> None:
    assert 0 <= f1(one, other) <= 1
    assert f1(one, other) == f1(other, one)
    assert exact_match(one, one) == 1
    assert f1(one, one) == float(bool(normalize(one)))


@given(st.dictionaries(st.text("abc", min_size=1), st.tuples(texts, st.lists(texts, min_size=1, max_size=3))))
@settings(max_examples=12, deadline=None)
def test_the_metric_is_the_mean_of_the_best(drawn: dict[str, tuple[str, list[str]]]) -> None:
    drawn["always"] = ("the cat", ["cat", "dog"])
    predictions = {id: text for id, (text, _) in drawn.items()}
    references = {id: answers for id, (_, answers) in drawn.items()}
    assert compute(predictions, references) == pytest.approx(naive_scores(predictions, references), abs=1e-9)


# --- known cases --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prediction", "answer", "exact", "score"), [
    ("the Cat", "cat", 1, 1),                       # articles and case do not count
    ("a cat and an owl", "cat and the owl", 1, 1),
    ("theatre", "atre", 0, 0),                      # an article inside a word stays
    ("U.S.A.", "usa", 1, 1),                        # punctuation goes, and leaves no blank
    ("1,000", "1000", 1, 1),
    ("well-known", "well known", 0, 0),
    ("in 1999", "1999", 0, 2 / 3),
    ("cat cat", "cat", 0, 2 / 3),                   # bags of words, not sets
    ("cat cat dog", "cat dog dog", 0, 2 / 3),
    ("dog cat", "cat dog", 0, 1),                   # order counts for the exact match alone
    (" cat \n\t dog ", "cat dog", 1, 1),
    ("Beyoncé", "beyoncé", 1, 1),
    ("Beyonce", "Beyoncé", 0, 0),
    ("“cat”", "cat", 0, 0),                         # only ASCII punctuation goes, as in the official script
    ("ÉCOLE", "école", 1, 1),
    ("", "cat", 0, 0),
    ("", "", 1, 0),
    ("the", "", 1, 0),                              # nothing is left of it
    ("the", "a", 1, 0),
    ("...", "!", 1, 0),
])  # fmt: skip
def test_known_cases(prediction: str, answer: str, exact: float, score: float) -> None:
    assert exact_match(prediction, answer) == exact
    assert f1(prediction, answer) == pytest.approx(score)


def test_the_best_answer_counts_for_each_score_by_itself() -> None:
    scores = compute({"q": "cat dog"}, {"q": ["dog cat", "cat dog bird", "nothing"]})
    assert scores == {"exact_match": 0, "f1": 100}


def test_scores_are_from_0_to_100_as_in_the_official_script() -> None:
    assert compute({"1": "cat", "2": "dog"}, {"1": ["cat"], "2": ["bird"]}) == {"exact_match": 50, "f1": 50}


def test_references_are_found_by_id_and_not_by_place() -> None:
    assert compute({"2": "dog", "1": "cat"}, {"1": ["cat"], "2": ["dog"]})["f1"] == 100


def test_an_unanswered_question_counts_as_wrong() -> None:
    metric = SquadMetric()
    references = [{"id": id, "answers": {"text": ["cat"]}} for id in ("1", "2", "3", "4")]
    assert metric._compute([{"id": "1", "prediction_text": "cat"}], references) == {"exact_match": 25, "f1": 25}
    assert metric._compute([], references) == {"exact_match": 0, "f1": 0}
    unanswered = {"1": "cat", "2": "", "3": "", "4": ""}
    assert compute(unanswered, {id: ["cat"] for id in unanswered})["f1"] == 25


def test_it_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"a connection: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert compute({"q": "cat"}, {"q": ["cat"]}) == {"exact_match": 100, "f1": 100}


# --- published predictions ----------------------------------------------------------------------------------


def published() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Published predictions for SQuAD's dev set, and its answers, both next to the prepared hub."""
    hub = os.environ.get("PRUNE_DISTILL_HUB")
    if not hub:
        pytest.skip("PRUNE_DISTILL_HUB is not set: no folder with SQuAD's dev set")
    file = Path(hub).parent / "reference" / "squad-dev-predictions.json"
    dev = sorted((Path(hub) / "datasets/rajpurkar/squad/plain_text").glob("validation-*.parquet"))
    for needed in (file, *(dev or [Path(hub) / "datasets/rajpurkar/squad/plain_text/validation-*.parquet"])):
        if not needed.is_file():
            pytest.skip(f"{needed} is not there")
    import pyarrow.parquet

    table = pyarrow.parquet.ParquetDataset([str(path) for path in dev]).read(columns=["id", "answers"]).to_pydict()
    predictions = json.loads(file.read_text(encoding="utf-8"))
    return predictions, {id: a["text"] for id, a in zip(table["id"], table["answers"], strict=True)}


def test_published_predictions_get_their_published_scores() -> None:
    predictions, references = published()
    assert len(references) == 10_570
    expected = {"exact_match": 77.34153, "f1": 85.41516}
    assert compute(predictions, references) == pytest.approx(expected, abs=5e-6)
    assert naive_scores(predictions, references) == pytest.approx(expected, abs=5e-6)
