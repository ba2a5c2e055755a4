"""Entities as conlleval counts them, against a transcription of its rules, and published values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.data.tagging_scores import chunks, counts, scores

PROPERTY = settings(deadline=None, derandomize=True, max_examples=300)


def split(tag: str) -> tuple[str, str]:
    prefix, _, kind = tag.partition("-")
    return prefix, kind


def starts(before: str, now: str, type_before: str, kind: str) -> bool:
    """startOfChunk of conlleval.pl, rule by rule."""
    start = before == "B" and now == "B"
    start |= before == "I" and now == "B"
    start |= before == "O" and now == "B"
    start |= before == "O" and now == "I"
    start |= before == "E" and now == "E"
    start |= before == "E" and now == "I"
    start |= before == "O" and now == "E"
    start |= before == "O" and now == "I"
    start |= now not in ("O", ".") and type_before != kind
    return start


def ends(before: str, now: str, type_before: str, kind: str) -> bool:
    """endOfChunk of conlleval.pl, rule by rule."""
    end = before == "B" and now == "B"
    end |= before == "B" and now == "O"
    end |= before == "I" and now == "B"
    end |= before == "I" and now == "O"
    end |= before == "E" and now == "E"
    end |= before == "E" and now == "I"
    end |= before == "E" and now == "O"
    end |= before not in ("O", ".") and type_before != kind
    return end


def conlleval(sentence: list[tuple[str, str]]) -> tuple[int, int, int]:
    """Right, predicted and gold entities, by the main loop of conlleval.pl: pairs of a predicted and a gold tag."""
    right = predicted = gold = 0
    inside = False
    last = [("O", ""), ("O", "")]
    for pair in [*sentence, ("O", "O")]:
        now = [split(tag) for tag in pair]
        ended = [ends(b, n, tb, tn) for (b, tb), (n, tn) in zip(last, now, strict=True)]
        started = [starts(b, n, tb, tn) for (b, tb), (n, tn) in zip(last, now, strict=True)]
        if inside:
            if all(ended) and last[0][1] == last[1][1]:
                inside = False
                right += 1
            elif ended[0] != ended[1] or now[0][1] != now[1][1]:
                inside = False
        if all(started) and now[0][1] == now[1][1]:
            inside = True
        predicted, gold = predicted + started[0], gold + started[1]
        last = now
    return right, predicted, gold


def tags(prefixes: str) -> st.SearchStrategy[str]:
    return st.sampled_from(["O", *(f"{p}-{kind}" for p in prefixes for kind in ("PER", "LOC"))])


@pytest.mark.parametrize("prefixes", ["BI", "I", "IE"])
@PROPERTY
@given(data=st.data())
def test_counts_are_those_of_conlleval(prefixes: str, data: st.DataObject) -> None:
    one = tags(prefixes)
    sentence = data.draw(st.lists(st.tuples(one, one), min_size=1, max_size=8))
    predicted, gold = ([pair[side] for pair in sentence] for side in (0, 1))
    assert counts(predicted, gold) == conlleval(sentence)


@pytest.mark.parametrize(
    ("sentence", "found"),
    [
        ("B-PER I-PER O", {(0, 2, "PER")}),
        ("I-PER I-PER B-PER", {(0, 2, "PER"), (2, 3, "PER")}),  # IOB1
        ("B-PER I-LOC", {(0, 1, "PER"), (1, 2, "LOC")}),
        ("O I-LOC O", {(1, 2, "LOC")}),
        ("S-PER S-PER B-LOC I-LOC E-LOC", {(0, 1, "PER"), (1, 2, "PER"), (2, 5, "LOC")}),  # IOBES
        ("O O", set()),
        ("", set()),
    ],
)
def test_entities_of_a_sentence(sentence: str, found: set) -> None:
    assert chunks(sentence.split()) == found


def test_the_example_of_seqeval() -> None:
    """The README of seqeval: F1 0.50 (one of two entities of each side)."""
    gold = [["O", "O", "O", "B-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    predicted = [["O", "O", "B-MISC", "I-MISC", "I-MISC", "I-MISC", "O"], ["B-PER", "I-PER", "O"]]
    found = scores(zip(predicted, gold, strict=True))
    assert found == {
        "f1": 0.5,
        "precision": 0.5,
        "recall": 0.5,
        "accuracy": pytest.approx(0.80, abs=0.005),
    }


def test_the_numbers_that_conllevals_documentation_prints_follow_from_its_counts() -> None:
    """processed 961 tokens with 459 phrases; found: 539 phrases; correct: 371: 68.83 %, 80.83 %, FB1 74.35."""
    right = [(["B-X"], ["B-X"])] * 371
    wrong = [(["B-X"], ["O"])] * (539 - 371) + [(["O"], ["B-X"])] * (459 - 371)
    found = scores(right + wrong)
    assert [round(100 * found[name], 2) for name in ("precision", "recall", "f1")] == [68.83, 80.83, 74.35]


def test_nothing_to_find_is_no_error() -> None:
    assert scores([(["O"], ["O"])]) == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}
    with pytest.raises(ValueError, match="1 tags for 2 words"):
        scores([(["O"], ["O", "O"])])
