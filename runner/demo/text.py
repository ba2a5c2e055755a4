"""Generated reading comprehension: short paragraphs of facts, each with one question, in the format of SQuAD.

It uses the standard library alone, so that `dataset=demo` runs anywhere. `python -m runner.demo.text` prints some.
A score on it says that the machinery works, and nothing about real text.

A paragraph states seven to ten facts about four people (or companies), in random order and phrasing. Four of the facts
are of the relation that is asked for, so there are as many candidates of the right type; the others are of other
relations about the same subjects. To answer, one must read the question's subject *and* its relation: the place in the
paragraph, the type of the answer and the frequency of a word give a quarter at best.
"""

import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_PEOPLE = _words(
    "Ada Amir Anna Boris Carla Chen Clara Daniel David Diego Elena Emma Erik Fatima Felix Greta Hana Hugo Ines Ivan "
    "Jakob Julia Karim Kofi Laura Leila Leo Lina Lucas Marco Maria Martin Mina Nadia Nina Noah Olga Omar Oscar Paul "
    "Petra Priya Rosa Ruth Samir Sara Simon Sofia Tariq Theo Tomas Vera Viktor Wanda Yara Yusuf"
)
_COMPANIES = _words(
    "Alphor Bexan Cortiva Dynara Elvanto Fintora Galvex Helioz Intrada Jorvik Kelvora Lumetra Mentix Nordal Optera "
    "Polaro Quantis Rivago Solvera Tekmar Unitra Vantis Westor Xenora Yotaro Zephyra"
)
_CITIES = _words(
    "Accra Athens Berlin Bogota Boston Cairo Chicago Dakar Delhi Denver Dublin Geneva Hanoi Havana Helsinki Jakarta "
    "Kyoto Lagos Lima Lisbon London Lyon Madrid Manila Milan Moscow Nairobi Naples Osaka Oslo Paris Porto Prague Quito "
    "Riga Rome Seoul Sydney Tokyo Toronto Tunis Turin Vienna Warsaw"
)
_JOBS = _words(
    "baker barber butcher carpenter chemist cook dancer dentist doctor driver farmer gardener guide judge lawyer "
    "librarian mechanic miner nurse painter pilot plumber poet porter printer sailor singer surgeon tailor teacher "
    "waiter writer"
)
_INSTRUMENTS = _words(
    "accordion banjo bassoon bugle cello clarinet cornet drums fiddle flute guitar harp horn lute lyre mandolin oboe "
    "organ piano trombone trumpet tuba viola violin xylophone zither"
)
_DISHES = _words(
    "beans bread cheese curry dumplings eggs figs grapes honey lentils mangoes mushrooms noodles olives onions "
    "pancakes peaches pears pizza plums rice salad salmon sausages shrimp soup spinach steak tofu waffles"
)
_PRODUCTS = _words(
    "bicycles boats books bottles bricks cameras candles carpets chairs clocks engines gloves guns hats knives lamps "
    "mirrors paints pens phones pumps radios robots shoes soaps tents tiles tools towels toys tractors tyres watches"
)
_COLOURS = _words("black blue brown golden green grey pink purple red silver white yellow")
_ANIMALS = _words("cat dog duck goat goose hamster horse lizard monkey mouse parrot pony rabbit snake spider turtle")
_VEHICLES = _words("bus car jeep minivan motorbike pickup scooter taxi tractor truck van wagon")
_YEARS = tuple(str(year) for year in range(1920, 2000))


def _pairs(adjectives: tuple[str, ...], nouns: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{adjective} {noun}" for adjective, noun in itertools.product(adjectives, nouns))


@dataclass(frozen=True)
class Relation:
    """A kind of fact, with ways to state it and to ask for either end: `S` is the subject, `V` the value."""

    values: tuple[str, ...]
    statements: tuple[str, ...]
    value_questions: tuple[str, ...]
    subject_questions: tuple[str, ...]


_PERSON_RELATIONS = (
    Relation(
        _CITIES,
        ("S lives in V", "the home of S is in V", "V is the city where S lives"),
        ("where does S live", "in which city is the home of S", "what is the city where S lives"),
        ("who lives in V", "whose home is in V"),
    ),
    Relation(
        _JOBS,
        ("S works as a V", "the job of S is that of a V", "S earns money as a V"),
        ("what is the job of S", "as what does S work", "how does S earn money"),
        ("who works as a V", "whose job is that of a V", "who earns money as a V"),
    ),
    Relation(
        _YEARS,
        ("S was born in V", "V is the year of birth of S", "the birth of S was in V"),
        ("when was S born", "in which year was S born", "what is the year of birth of S"),
        ("who was born in V", "whose year of birth is V"),
    ),
    Relation(
        _pairs(_COLOURS, _ANIMALS),
        ("S keeps a V", "the pet of S is a V", "a V is the pet of S"),
        ("what is the pet of S", "which animal does S keep", "what kind of pet does S keep"),
        ("who keeps a V", "whose pet is a V"),
    ),
    Relation(
        _INSTRUMENTS,
        ("S plays the V", "the instrument of S is the V", "the V is played by S"),
        ("what does S play", "which instrument is played by S", "what is the instrument of S"),
        ("who plays the V", "by whom is the V played", "whose instrument is the V"),
    ),
    Relation(
        _DISHES,
        ("S likes to eat V", "the favourite food of S is V", "V is what S likes to eat"),
        ("what does S like to eat", "what is the favourite food of S", "which food is the favourite of S"),
        ("who likes to eat V", "whose favourite food is V"),
    ),
    Relation(
        _pairs(_COLOURS, _VEHICLES),
        ("S drives a V", "the vehicle of S is a V", "a V belongs to S"),
        ("what does S drive", "which vehicle belongs to S", "what is the vehicle of S"),
        ("who drives a V", "whose vehicle is a V", "to whom does a V belong"),
    ),
)
_COMPANY_RELATIONS = (
    Relation(
        _CITIES,
        ("S has its office in V", "the office of S is in V", "V is the city where S has its office"),
        ("where is the office of S", "in which city does S have its office", "where does S have its office"),
        ("which company has its office in V", "which office is in V"),
    ),
    Relation(
        _YEARS,
        ("S was founded in V", "V is the year when S was founded", "the founding of S was in V"),
        ("when was S founded", "in which year was S founded", "what is the year of the founding of S"),
        ("which company was founded in V", "what was founded in V"),
    ),
    Relation(
        _PEOPLE,
        ("S is led by V", "V is the head of S", "the head of S is V"),
        ("who is the head of S", "by whom is S led", "who leads S"),
        ("which company is led by V", "of which company is V the head", "what does V lead"),
    ),
    Relation(
        _PRODUCTS,
        ("S makes V", "V are made by S", "the products of S are V"),
        ("what does S make", "what is made by S", "what are the products of S"),
        ("which company makes V", "by which company are V made"),
    ),
    Relation(
        _pairs(_COLOURS, _ANIMALS),
        ("the sign of S shows a V", "S has a V on its sign", "a V is on the sign of S"),
        ("what is on the sign of S", "which animal does the sign of S show", "what does the sign of S show"),
        ("which company has a V on its sign", "whose sign shows a V"),
    ),
)
THEMES = (("People", _PEOPLE, _PERSON_RELATIONS), ("Companies", _COMPANIES, _COMPANY_RELATIONS))
OPENINGS = ("as many know ,", "it is true that", "they say that", "today", "by the way ,", "in fact ,")
_OPENING_SHARE = 0.2
LAYOUTS = ((4, 3), (4, 4), (4, 3, 3), (4, 4, 2))
"""Facts for each relation of a paragraph. The relation asked for is the one with the most (three or more)."""
_SUBJECT_QUESTION_SHARE = 0.3


@dataclass(frozen=True)
class Fact:
    """A statement in a paragraph: `relation` holds between `subject` and `value`."""

    subject: str
    relation: Relation
    value: str

    def write(self, template: str) -> str:
        return " ".join({"S": self.subject, "V": self.value}.get(word, word) for word in template.split())


@dataclass(frozen=True)
class Paragraph:
    """Facts in the order and in the words of `text`; `asked` is the index of the fact that the question is about."""

    title: str
    facts: list[Fact]
    sentences: list[str]
    asked: int

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


def _sentence(words: str, mark: str) -> str:
    words = words.replace(" ,", ",")
    return words[0].upper() + words[1:] + mark


def _draw_facts(
    draw: random.Random, subjects: tuple[str, ...], relations: tuple[Relation, ...], layout: tuple[int, ...]
) -> list[Fact]:
    group = draw.sample(subjects, max(layout))
    # Two relations may share values, such as cities: the paragraph uses none of them twice.
    taken = set(group)
    facts = []
    for relation, count in zip(draw.sample(relations, len(layout)), layout, strict=True):
        for subject in draw.sample(group, count):
            value = draw.choice(relation.values)
            while value in taken:
                value = draw.choice(relation.values)
            taken.add(value)
            facts.append(Fact(subject, relation, value))
    draw.shuffle(facts)
    return facts


def draw_paragraph(draw: random.Random, layouts: tuple[tuple[int, ...], ...] = LAYOUTS) -> Paragraph:
    """One paragraph, with the fact to ask about: one of the relation that has the most facts, or as many as any."""
    title, subjects, relations = draw.choice(THEMES)
    facts = _draw_facts(draw, subjects, relations, draw.choice(layouts))
    sentences = []
    for fact in facts:
        opening = draw.choice(OPENINGS) + " " if draw.random() < _OPENING_SHARE else ""
        sentences.append(_sentence(opening + fact.write(draw.choice(fact.relation.statements)), "."))
    counts = [sum(other.relation is fact.relation for other in facts) for fact in facts]
    askable = [index for index, count in enumerate(counts) if count == max(counts)]
    return Paragraph(title, facts, sentences, draw.choice(askable))


class Answers(TypedDict):
    """The accepted answers, here always one, and the character where each begins in the context."""

    text: list[str]
    answer_start: list[int]


class Example(TypedDict):
    """A question with the fields of SQuAD."""

    id: str
    title: str
    context: str
    question: str
    answers: Answers


def _example(draw: random.Random, name: str) -> Example:
    paragraph = draw_paragraph(draw)
    fact = paragraph.facts[paragraph.asked]
    if draw.random() < _SUBJECT_QUESTION_SHARE:
        template, answer = draw.choice(fact.relation.subject_questions), fact.subject
    else:
        template, answer = draw.choice(fact.relation.value_questions), fact.value
    # A subject may occur in several sentences: the answer is its mention in the one that states the fact.
    sentence_start = sum(len(sentence) + 1 for sentence in paragraph.sentences[: paragraph.asked])
    sentence = paragraph.sentences[paragraph.asked]
    start = _find_words(answer, sentence)
    return {
        "id": name,
        "title": paragraph.title,
        "context": paragraph.text,
        "question": _sentence(fact.write(template), "?"),
        "answers": {"text": [sentence[start : start + len(answer)]], "answer_start": [sentence_start + start]},
    }


def _find_words(phrase: str, text: str) -> int:
    """The character where a phrase begins: whole words ("Leo" is not in "Leon"), in either case."""
    match = re.search(rf"\b{re.escape(phrase)}\b", text, re.IGNORECASE)
    if match is None:
        raise ValueError(f"{phrase!r} is not in {text!r}")
    return match.start()


def examples(count: int, seed: int) -> Iterator[Example]:
    """`count` examples with the fields of SQuAD: id, title, context, question, answers {text, answer_start}.

    The same seed gives the same examples; a larger count continues them. Paragraphs of different seeds coincide only by
    chance, which was never seen.
    """
    draw = random.Random(f"demo {seed}")  # seeded by a string: hashed with SHA-512, the same in every process
    for index in range(count):
        yield _example(draw, f"demo-{seed}-{index}")


if __name__ == "__main__":
    for example in examples(5, seed=0):
        print(example["context"], example["question"], example["answers"], sep="\n", end="\n\n")
