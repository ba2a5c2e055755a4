"""Files in columns (CoNLL-2003, CoNLL-U) and schemes of tags: comments are no data, and a tag that cannot be read is
refused by its name."""

import itertools
import logging
import random
from pathlib import Path

import numpy as np
import pytest

from runner.data.conll import read_columns
from runner.data.tagging import Tag
from runner.data.tagging_scores import chunks, in_iobes, scheme, scores
from runner.system.errors import UserError
from tests.runner.data.test_tag import TOKENIZERS


def row(number: str, given: str, before: str, after: str) -> pytest.MarkDecorator:
    return pytest.mark.bad_input(number, given, before=before, after=after)


def words_and_tags(file: Path, tags: str = "ner_tags") -> list[tuple[str, str]]:
    return [
        (word, tag)
        for sentence in read_columns(file, words="tokens", tags=tags)
        for word, tag in zip(sentence["tokens"], sentence[tags], strict=True)
    ]


PAIRS = [("Ada", "B-PER"), ("lives", "O")]
AS_DATA = 'a word # with a tag, or refused: "has 4 columns"'
COMMENTS = {
    "# id 1 in a file of blanks": "# id 1\nAda B-PER\nlives O\n",
    "# id in a file of two columns": "# id\nAda B-PER\nlives O\n",
    "# text = ... of as many fields": "# text = O\nAda NNP B-NP B-PER\nlives VBZ B-VP O\n",
    "# newdoc before -DOCSTART-": "# newdoc\n-DOCSTART- O\n\n# sent_id = 1\nAda B-PER\nlives O\n",
    "# id uuid domain=en (MultiCoNER)": "# id 7a5e\tdomain=en\nAda _ _ B-PER\nlives _ _ O\n",
    "#begin document (x); part 000": "#begin document (x); part 000\nAda NNP B-PER\nlives VBZ O\n\n#end document\n",
    "# Ada lives, in a file of tabs": "# Ada lives\nAda\tB-PER\nlives\tO\n",
    "two comments in a row": "# sent_id = 1\n# text = Ada lives\nAda\tNNP\tB-PER\nlives\tVBZ\tO\n",
}


@pytest.mark.parametrize("text", [
    pytest.param(text, id=given, marks=row("A5", f"CoNLL: {given}", AS_DATA, "it is no data, and the log counts it"))
    for given, text in COMMENTS.items()
])  # fmt: skip
def test_comments_are_no_data(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dev.conll").write_text(text)
    with caplog.at_level(logging.INFO, "runner"):
        assert words_and_tags(tmp_path / "dev.conll") == PAIRS
    (line,) = [record.getMessage() for record in caplog.records]
    assert f"{sum(line.startswith('#') for line in text.splitlines())} comment lines are no data" in line
    assert next(line for line in text.splitlines() if line.startswith("#")) in line


@pytest.mark.bad_input("A5", "CoNLL: the words # and #Rome", before="read", after="read")
@pytest.mark.parametrize("text", [
    "#\tO\nRome\tB-LOC\n", "# O\nRome B-LOC\n", "Rome B-LOC\n\n# O\n", "# # O\nRome NNP B-LOC\n", "#\t#\nRome\tNNP\n",
    "# #\nRome NNP\n", "#Rome B-HASHTAG\nRome B-LOC\n", "#Rome HT\n", "Rome B-LOC\n# B-X\n", "#\tB-X\nRome\tO\n",
])  # fmt: skip
def test_a_word_that_begins_with_a_number_sign_is_data(text: str, tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text(text)
    fields = [line.split() for line in text.splitlines() if line]
    assert words_and_tags(tmp_path / "dev.conll") == [(line[0], line[-1]) for line in fields]


CONLL_U = """# newdoc id = weblog
# sent_id = 1
# text = Er geht zum Arzt
1\tEr\ter\tPRON\tPPER\t_\t2\tnsubj\t_\tNER=O
2\tgeht\tgehen\tVERB\tVVFIN\t_\t0\troot\t_\t_
3-4\tzum\t_\t_\t_\t_\t_\t_\t_\t_
3\tzu\tzu\tADP\tAPPR\t_\t5\tcase\t_\t_
4\tdem\tder\tDET\tART\t_\t5\tdet\t_\t_
5\tNew York\tArzt\tNOUN\tNN\t_\t2\tobl\t_\t_
5.1\tgeht\t_\tVERB\t_\t_\t_\t_\t_\t_

# text = !
1\t!\t!\tPUNCT\t$.\t_\t0\troot\t_\t_
"""


@pytest.mark.bad_input(
    "A5", "CoNLL-U: numbers, ranges 3-4, empty nodes 5.1, comments", before="the words were 1, 2, 3, their tags _",
    after="the words and the column of dataset.tags",
)  # fmt: skip
@pytest.mark.parametrize("ending", ["conllu", "conll", "txt"])
def test_conll_u_is_read_by_its_columns(ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"dev.{ending}"
    file.write_text(CONLL_U)
    upos = ["PRON", "VERB", "ADP", "DET", "NOUN", "PUNCT"]
    assert words_and_tags(file, "upos") == list(zip(["Er", "geht", "zu", "dem", "New York", "!"], upos, strict=True))
    assert [tag for _, tag in words_and_tags(file, "XPOS")][:2] == ["PPER", "VVFIN"]
    task = Tag(path=str(tmp_path), tags="upos", metric="accuracy")
    assert task.rows(task.read(train=False).evaluation)[0]["tokens"] == ["Er", "geht", "zu", "dem", "New York"]


@pytest.mark.bad_input("A5", "CoNLL-U Plus with a column of entities", before="the words were 1, 2", after="read")
def test_columns_that_a_file_names_are_read(tmp_path: Path) -> None:
    text = "# global.columns = ID FORM NER\n# text = Ada lives\n1\tAda\tB-PER\n2\tlives\tO\n"
    (tmp_path / "dev.conllu").write_text(text)
    assert words_and_tags(tmp_path / "dev.conllu", "ner") == PAIRS


@pytest.mark.bad_input(
    "A5", "CoNLL-U without dataset.tags", before="the tags were those of the last column",
    after="refused: it names the columns",
)  # fmt: skip
def test_conll_u_needs_the_name_of_a_column(tmp_path: Path) -> None:
    (tmp_path / "dev.conllu").write_text(CONLL_U)
    with pytest.raises(
        UserError, match=r"dataset.tags=ner_tags: .*dev.conllu is CoNLL-U, .* such as dataset.tags=upos"
    ):
        Tag(path=str(tmp_path)).read(train=False)


@pytest.mark.bad_input(
    "A5", "GermEval: the first column counts the words", before="the words were 1, 2, 3",
    after="refused: remove this column",
)  # fmt: skip
@pytest.mark.parametrize("first", [0, 1])
def test_a_first_column_that_counts_is_no_word(first: int, tmp_path: Path) -> None:
    text = f"# n-tv.de\n{first}\tAda\tB-PER\tO\n{first + 1}\tlives\tO\tO\n\n{first}\tYes\tO\tO\n"
    (tmp_path / "dev.conll").write_text(text)
    with pytest.raises(UserError, match=r"dev.conll: its first column counts the words of each sentence; remove it"):
        Tag(path=str(tmp_path)).read(train=False)


# --- schemes of tags ----------------------------------------------------------------------------------------

LETTERS = {"IOB2": "BIIB", "IOBES": "BIES", "BILOU": "BILU", "BMES": "BMES", "BMEWO": "BMEW"}
"""Letters of the first, inner and last words of an entity, and of the only word."""
STYLES = {"B-PER": "{0}-{1}", "B_PER": "{0}_{1}", "PER-B": "{1}-{0}", "PER_B": "{1}_{0}"}


def written(entities: list[tuple[int, str]], letters: str, style: str) -> list[str]:
    """Tags of consecutive entities of (length, type), with a word outside behind each."""
    first, inner, last, only = letters
    tags: list[str] = []
    for length, kind in entities:
        places = only if length == 1 else first + inner * (length - 2) + last
        tags += [*(style.format(place, kind) for place in places), "O"]
    return tags


SCHEMES = list(itertools.product(LETTERS, STYLES))


@pytest.mark.parametrize(("letters", "style"), [
    pytest.param(letters, style, id=f"{letters} {style}", marks=row(
        "A5", f"tags as {letters}, written {style}",
        "read" if (letters, style) in (("IOB2", "B-PER"), ("IOBES", "B-PER")) else 'refused: "set metric=accuracy"',
        "read, and named in the log" if (letters, style) != ("IOB2", "B-PER") else "read",
    )) for letters, style in SCHEMES
])  # fmt: skip
def test_entities_are_the_same_in_every_scheme(
    letters: str, style: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(0)
    kinds = ("PER", "MISC-OTHER", "WORK_OF_ART")
    sentences = [
        [(length, chance.choice(kinds)) for length in (1, 2, 3, 4)[: chance.randint(1, 4)]] for _ in range(30)
    ] + [[(n, kind) for kind in kinds for n in (1, 4)]]
    plain = [written(entities, LETTERS["IOB2"], "{0}-{1}") for entities in sentences]
    tags = [written(entities, LETTERS[letters], STYLES[style]) for entities in sentences]
    iobes = in_iobes(itertools.chain(*tags))
    assert iobes is not None
    assert [chunks([iobes[tag] for tag in each]) for each in tags] == [chunks(each) for each in plain]
    text = "\n".join("".join(f"w{i} {tag}\n" for i, tag in enumerate(each)) for each in tags)
    (tmp_path / "dev.conll").write_text(text)
    with caplog.at_level(logging.INFO, "runner"):
        task = Tag(path=str(tmp_path))
        examples = task.read(train=False).evaluation
    announced = [r.getMessage() for r in caplog.records if "scheme" in r.getMessage()]
    if (letters, style) == ("IOB2", "B-PER"):
        assert announced == []
    else:
        (line,) = announced
        assert f"column ner_tags of {tmp_path}" in line
        assert letters in line
        assert ("written as" in line) == (style != "B-PER")
    made = task.features(examples, TOKENIZERS["words"], None, labels=False)
    logits = np.zeros((len(made), max(made["length"]), len(examples.features["tags"].feature.names)), np.float32)
    for values, feature in zip(logits, made.to_list(), strict=True):
        for at, word in enumerate(feature["word"]):
            if word >= 0:
                values[at, examples["tags"][feature["example"]][word]] = 1
    found = task.score(examples, made, [logits])
    assert found.metrics["f1"] == found.metrics["accuracy"] == 1
    assert list(found.predictions.values()) == tags  # as the data write them
    assert sum(values[2] for values in (found.statistics or {}).values()) == sum(map(len, sentences))
    (first, *_) = task.rows(examples)
    assert {kind for _, kind in sentences[0]} == set(task.kinds(first)["Entities"].split("+"))


@pytest.mark.bad_input("A5", "tags as IOB1", before="read, without a word", after="read, and named in the log")
def test_entities_that_begin_inside_are_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dev.conll").write_text("Ada I-PER\nBob B-PER\nlives O\nin O\nRome I-LOC\n")
    with caplog.at_level(logging.INFO, "runner"):
        Tag(path=str(tmp_path)).read(train=False)
    assert [r.getMessage() for r in caplog.records if "IOB1: 2 entities begin with I" in r.getMessage()] != []


@pytest.mark.parametrize(("tag", "remedy"), [
    pytest.param(tag, remedy, id=tag, marks=row(
        "A5", f"the tag {tag}", '"name the tags in dataset.labels"', "refused by its name, with the schemes"
    )) for tag, remedy in (("PER", "rewrite it"), ("b-PER", "rewrite it"), ("X-PER", "rewrite it"),
                           ("3", "name the tags in dataset.labels"), ("o", "rewrite it"), ("PER-X", "rewrite it"))
])  # fmt: skip
def test_a_tag_of_no_scheme_is_named(tag: str, remedy: str, tmp_path: Path) -> None:
    (tmp_path / "dev.conll").write_text(f"Ada B-PER\nlives O\nhere {tag}\n")
    with pytest.raises(UserError) as caught:
        Tag(path=str(tmp_path)).read(train=False)
    text = str(caught.value)
    assert f"has the tag {tag}, which is not O" in text
    assert remedy in text
    assert "BILOU" in text


def test_schemes_do_not_mix_places_of_the_letter() -> None:
    assert in_iobes(["B-PER", "PER-B"]) is None
    assert in_iobes(["O"]) == {"O": "O"}
    assert in_iobes(["E-mail-B", "E-mail-I", "PER-B"]) == {
        "O": "O", "E-mail-B": "B-E-mail", "E-mail-I": "I-E-mail", "PER-B": "B-PER",
    }  # fmt: skip
    assert in_iobes(["NOUN", "VERB"]) is None
    assert scheme(["O", "B-PER", "I-PER"], 0) is None
    assert scheme(["O", "B", "I"], 0) is None


def test_scores_do_not_depend_on_the_scheme() -> None:
    """With mistakes: the same entities, predicted and gold, have the same scores."""
    chance = np.random.default_rng(0)
    of_scheme = []
    for letters, style in SCHEMES:
        chance = np.random.default_rng(0)
        pairs = []
        for _ in range(50):
            lengths = chance.integers(1, 5, 3)
            gold = [(int(n), ("PER", "LOC")[chance.integers(2)]) for n in lengths]
            guess = [(int(n), ("PER", "LOC")[chance.integers(2)]) for n in lengths]
            tags = [written(each, LETTERS[letters], STYLES[style]) for each in (guess, gold)]
            iobes = in_iobes(itertools.chain(*tags))
            assert iobes is not None
            pairs.append(tuple([iobes[tag] for tag in each] for each in tags))
        of_scheme.append(scores(pairs))
    assert 0 < of_scheme[0]["f1"] < 1
    assert all(each == of_scheme[0] for each in of_scheme)
