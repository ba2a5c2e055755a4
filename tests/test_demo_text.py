"""The generator of the demo: reproducible, well-formed, and not to be answered without reading the question."""

import hashlib
import itertools
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from runner.demo.text import LAYOUTS, draw_paragraph, examples
from tests.tools.demo_words import vocabulary

ROOT = Path(__file__).parents[1]
TINY = ROOT / "runner" / "demo" / "tiny"
COUNT = 1000


def _digest(count: int, seed: int) -> str:
    return hashlib.sha256(json.dumps(list(examples(count, seed))).encode()).hexdigest()


def test_same_seed_same_examples() -> None:
    assert list(examples(50, seed=3)) == list(examples(50, seed=3))
    assert list(examples(50, seed=3)) == list(itertools.islice(examples(80, seed=3), 50))
    assert list(examples(50, seed=3)) != list(examples(50, seed=4))


@pytest.mark.parametrize("hash_seed", ["0", "1"])
def test_same_examples_in_another_process(hash_seed: str) -> None:
    program = (
        "import hashlib, json; from runner.demo.text import examples; "
        "print(hashlib.sha256(json.dumps(list(examples(200, 7))).encode()).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == _digest(200, 7)


def test_fields_are_those_of_squad() -> None:
    generated = list(examples(COUNT, seed=1))
    assert len(generated) == COUNT
    assert len({example["id"] for example in generated}) == COUNT
    for example in generated:
        assert list(example) == ["id", "title", "context", "question", "answers"]
        assert list(example["answers"]) == ["text", "answer_start"]
        assert len(example["answers"]["text"]) == len(example["answers"]["answer_start"]) == 1


def test_answer_stands_at_its_offset_as_whole_words() -> None:
    for example in examples(COUNT, seed=1):
        context, answer = example["context"], example["answers"]["text"][0]
        start = example["answers"]["answer_start"][0]
        end = start + len(answer)
        assert context[start:end] == answer
        assert not context[start - 1 : start].isalnum()
        assert not context[end : end + 1].isalnum()


def test_answer_is_the_only_one() -> None:
    """No value is given twice in a paragraph, and no subject has a relation twice: each question has one answer."""
    draw = random.Random(5)
    for _ in range(COUNT):
        paragraph = draw_paragraph(draw)
        assert (
            tuple(
                sorted(
                    Counter(fact.relation.values[0] + fact.relation.statements[0] for fact in paragraph.facts).values(),
                    reverse=True,
                )
            )
            in LAYOUTS
        )
        assert len({fact.value for fact in paragraph.facts}) == len(paragraph.facts)
        assert len({(fact.subject, fact.relation) for fact in paragraph.facts}) == len(paragraph.facts)
        subjects = {fact.subject for fact in paragraph.facts}
        assert not subjects & {fact.value for fact in paragraph.facts}
        asked = paragraph.facts[paragraph.asked]
        rivals = [fact for fact in paragraph.facts if fact.relation is asked.relation]
        assert len(rivals) >= 3
        # A value occurs once in the text; a subject may have other sentences, but only one that states this fact.
        assert len(re.findall(rf"\b{asked.value}\b", paragraph.text, re.IGNORECASE)) == 1
        stated = [s for s in paragraph.sentences if asked.subject in s and asked.value.lower() in s.lower()]
        assert stated == [paragraph.sentences[paragraph.asked]]


def _blind_answers() -> tuple[list[str], dict[str, list[str]]]:
    """The right answers of some paragraphs, and what readers who know only the relation asked for would say."""
    draw = random.Random(6)
    right, guesses = [], {"first": [], "last": [], "middle": [], "most frequent subject": []}
    for _ in range(COUNT):
        paragraph = draw_paragraph(draw)
        asked = paragraph.facts[paragraph.asked]
        candidates = [fact for fact in paragraph.facts if fact.relation is asked.relation]
        frequency = Counter(fact.subject for fact in paragraph.facts)
        right.append(asked.value)
        guesses["first"].append(candidates[0].value)
        guesses["last"].append(candidates[-1].value)
        guesses["middle"].append(candidates[len(candidates) // 2].value)
        guesses["most frequent subject"].append(max(candidates, key=lambda fact: frequency[fact.subject]).value)
    return right, guesses


def test_blind_to_the_subject_is_right_one_time_in_three_at_most() -> None:
    right, guesses = _blind_answers()
    shares = {name: sum(map(str.__eq__, right, given)) / len(right) for name, given in guesses.items()}
    assert len(shares) == 4
    assert all(0.15 < share < 0.38 for share in shares.values()), shares


def test_no_place_holds_the_answer() -> None:
    """The sentence that answers is no likelier to be one than another."""
    draw = random.Random(8)
    places = Counter(paragraph.asked for paragraph in (draw_paragraph(draw) for _ in range(4 * COUNT)))
    assert set(places) == set(range(max(map(sum, LAYOUTS))))
    assert max(places.values()) < 0.18 * 4 * COUNT


def test_seeds_share_no_paragraph() -> None:
    paragraphs = [{example["context"] for example in examples(3000, seed)} for seed in (1, 2, 3)]
    assert all(len(each) == 3000 for each in paragraphs)
    assert len(set.union(*paragraphs)) == 9000


def test_vocabulary_is_closed() -> None:
    words = vocabulary()
    assert words == sorted(set(words))
    text = " ".join(f"{example['context']} {example['question']}".lower() for example in examples(5000, seed=1))
    assert set(re.findall(r"\w+|[^\w\s]", text)) == set(words)


@pytest.mark.skipif(not (TINY / "tokenizer.json").exists(), reason="runner/demo/tiny has not been made")
def test_shipped_tokenizer_knows_every_word() -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(TINY)
    assert tokenizer.is_fast
    for word in vocabulary():
        assert tokenizer.tokenize(word) == [word]
    other = tokenizer("Zürich, 1872: an unforeseen (but short) journey!", return_offsets_mapping=True)
    assert tokenizer.unk_token_id not in other["input_ids"]
    example = next(examples(1, seed=1))
    answer, start = example["answers"]["text"][0], example["answers"]["answer_start"][0]
    encoded = tokenizer(example["question"], example["context"])
    first = encoded.char_to_token(start, sequence_index=1)
    last = encoded.char_to_token(start + len(answer) - 1, sequence_index=1)
    assert tokenizer.decode(encoded["input_ids"][first : last + 1]) == answer.lower()
    assert set(encoded["token_type_ids"]) == {0, 1}
