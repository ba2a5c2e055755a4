"""Questions that have no answer, as in SQuAD v2.0: reading, windows, the threshold, and a run from end to end."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from results import columns
from runner import evaluate
from runner.config.compose import compose_experiment
from runner.config.experiment import Experiment
from runner.data.question_answering import Span
from runner.data.spans import best_of_questions, no_answer_scores
from runner.data.squad_metric import SquadV2Metric
from runner.data.windows import null_token
from runner.demo.text import examples as generated
from runner.records import runs
from runner.records.error_analysis import diagnose
from runner.records.identity import Contents, identify
from runner.system.errors import UserError
from runner.tracking import Tracking
from tests.conftest import Cli
from tests.runner.data.test_span import LONG, dev_set, json_lines, peaked, refused, row, table, words_as_tokens
from tests.tools.pretrain_tiny import build_tokenizer

TOKENIZER = build_tokenizer()
EMPTY: dict[str, list] = {"text": [], "answer_start": []}


def without_answers(content: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every third question is asked of the paragraph after its own, which does not hold the answer, as long as that
    is no word of it."""
    made = []
    for i, one in enumerate(content):
        other = content[(i + 1) % len(content)]["context"]
        moved = i % 3 == 0 and one["answers"]["text"][0].lower() not in other.lower()
        made.append({**one, "context": other, "answers": EMPTY} if moved else dict(one))
    return made


SOME = without_answers([dict(example) for example in generated(60, seed=9)])


def plain(data: datasets.Dataset) -> list[dict[str, Any]]:
    return data.to_list()


def null_logits(made: datasets.Dataset, value: float) -> list[np.ndarray]:
    """This at [CLS], and 0 everywhere else."""
    sides = [np.zeros((len(made), max(made["length"])), np.float32) for _ in range(2)]
    for side in sides:
        side[:, 0] = value
    return sides


def v2_json(content: Sequence[dict[str, Any]]) -> str:
    """Content of an official file, with a plausible answer where there is none."""
    paragraphs = []
    for one in content:
        answers = [{"text": t, "answer_start": s} for t, s in zip(*one["answers"].values(), strict=True)]
        qa = {"id": one["id"], "question": one["question"], "answers": answers, "is_impossible": not answers}
        if not answers:
            qa["plausible_answers"] = [{"text": one["context"][:3], "answer_start": 0}]
        paragraphs.append({"context": one["context"], "qas": [qa]})
    return json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": paragraphs}]})


# --- the threshold, against the rules of the usual post-processing ------------------------------------------


def postprocessed(
    data: datasets.Dataset,
    made: datasets.Dataset,
    logits: list[np.ndarray],
    task: Span,
) -> tuple[list[str], list[float]]:
    """Answers and score differences by the rules of transformers' run_qa (postprocess_qa_predictions with
    version_2_with_negative), but for [CLS], which may stand anywhere."""
    texts: list[str] = []
    differences: list[float] = []
    windows = plain(made)
    for i, context in enumerate(data["context"][:]):
        candidates: list[tuple[Any, int, int]] = []
        null = None
        for w, window in enumerate(windows):
            if window["example"] != i:
                continue
            start, end = (list(side[w]) for side in logits)
            score = start[window["null_token"]] + end[window["null_token"]]
            if null is None or null > score:
                null = score
            begins, ends = window["start_character"], window["end_character"]
            firsts, lasts = (sorted(range(len(s)), key=lambda t: -s[t])[: task.n_best] for s in (start, end))
            for first in firsts:
                for last in lasts:
                    if first >= len(begins) or last >= len(begins) or begins[first] < 0 or begins[last] < 0:
                        continue
                    if last < first or last - first + 1 > task.max_answer_length:
                        continue
                    candidates.append((start[first] + end[last], begins[first], ends[last]))
        assert null is not None
        if not candidates:
            texts.append("")
            differences.append(math.inf)
            continue
        best = sorted(candidates, key=lambda one: one[0], reverse=True)[0]
        differences.append(float(null) - float(best[0]))
        texts.append("" if differences[-1] > task.null_threshold else context[best[1] : best[2]])
    return texts, differences


def held(task: Span, data: datasets.Dataset, made: datasets.Dataset, logits: list[np.ndarray]) -> list[str]:
    """Compare all that is scored with the plain rules and with the metric. The answers."""
    texts, differences = postprocessed(data, made, logits, task)
    scores = task.score(data, made, logits)
    assert list(scores.predictions.values()) == texts
    assert list(scores.predictions) == data["id"][:]
    best_spans = best_of_questions(made, logits, task.n_best, task.max_answer_length)
    computed = no_answer_scores(made, logits, best_spans, len(data))
    for ours, theirs in zip(computed, differences, strict=True):
        assert ours > 3e38 if theirs == math.inf else ours == theirs
    everything = Span(path="x", unanswerable=True, n_best=task.n_best, max_answer_length=task.max_answer_length,
                      null_threshold=3.3e38)  # fmt: skip
    spans = everything.score(data, made, logits).predictions
    metric = SquadV2Metric().compute(
        predictions=[
            {"id": id, "prediction_text": spans[id], "no_answer_score": score}
            for id, score in zip(data["id"], computed, strict=True)
        ],
        references=[{"id": one["id"], "answers": {"text": one["answers"]["text"]}} for one in plain(data)],
        no_answer_threshold=task.null_threshold,
    )
    assert metric is not None
    named = {"exact": "exact_match", "f1": "f1"}
    expected = {ours: metric[theirs] / 100 for theirs, ours in named.items()}
    for theirs, prefix in (("HasAns_", "has_answer_"), ("NoAns_", "no_answer_")):
        expected |= {f"{prefix}{o}": metric[f"{theirs}{t}"] / 100 for t, o in named.items() if f"{theirs}{t}" in metric}
    assert scores.metrics == pytest.approx(expected, abs=1e-12)
    assert scores.metrics.keys() == expected.keys()
    best = {"best_f1": metric["best_f1"] / 100, "best_f1_threshold": metric["best_f1_thresh"]}
    assert scores.choosing == pytest.approx(best, abs=1e-12)
    assert sum(scores.by_example.values()) / len(data) == pytest.approx(scores.metrics["f1"])
    return texts


@st.composite
def asked(draw: st.DrawFn) -> tuple[datasets.Dataset, datasets.Dataset, list[np.ndarray]]:
    """Questions, windows of one-letter words with the null token before or behind them, and logits with many ties."""
    questions, windows = [], []
    for i in range(draw(st.integers(1, 4))):
        answers = {"text": ["d e"], "answer_start": [4]} if draw(st.booleans()) else EMPTY
        questions.append({"id": f"q{i}", "context": "b c d e f g h i j k", "question": "?", "answers": answers})
        for _ in range(draw(st.integers(1, 3))):
            begin, count = draw(st.integers(0, 4)), draw(st.integers(1, 6))
            at_end, between = draw(st.booleans()), draw(st.integers(0, 2))
            inside = [2 * word for word in range(begin, begin + count)]
            outside = [-1] * (1 + between)
            starts = [*inside, *outside] if at_end else [*outside, *inside]
            windows.append({
                "example": i, "start_character": starts, "end_character": [s + 1 if s >= 0 else -1 for s in starts],
                "null_token": len(starts) - 1 if at_end else 0,
            })  # fmt: skip
    width = max(len(window["start_character"]) for window in windows)
    count = len(windows) * width
    sides = [draw(st.lists(st.integers(-6, 6), min_size=count, max_size=count)) for _ in range(2)]
    shape = datasets.Features({
        "id": datasets.Value("string"), "context": datasets.Value("string"), "question": datasets.Value("string"),
        "answers": {"text": datasets.List(datasets.Value("string")),
                    "answer_start": datasets.List(datasets.Value("int64"))},
    })  # fmt: skip
    logits = [np.array(side, np.float32).reshape(len(windows), width) for side in sides]
    return datasets.Dataset.from_list(questions, features=shape), table(windows), logits


@given(asked(), st.integers(1, 5), st.integers(1, 4), st.integers(-12, 3).map(float))
@settings(deadline=None, max_examples=80)
def test_answers_and_scores_are_those_of_the_plain_rules(drawn, n_best: int, longest: int, threshold: float) -> None:
    data, made, logits = drawn
    task = Span(path="x", unanswerable=True, n_best=n_best, max_answer_length=longest, null_threshold=threshold)
    held(task, data, made, logits)


def test_squads_own_paragraphs_are_answered_by_the_plain_rules(tmp_path: Path) -> None:
    content = plain(dev_set().select(range(0, 10_570, 30)))
    data = table(without_answers(content))
    task = Span(path="x", unanswerable=True, max_seq_length=160, doc_stride=48, null_threshold=-1.5)
    made = task.features(data, words_as_tokens(), tmp_path, labels=False)
    assert len(made) > len(data) == 353
    logits = peaked(made["length"][:], max(made["length"]), None)
    draw = np.random.default_rng(1)
    for side in logits:
        side[:, 0] = draw.normal(5, 3, len(made))
    # Every other question that has an answer is answered right.
    labelled = task.features(data, words_as_tokens(), tmp_path, labels=True)
    for side, name in zip(logits, task.label_names, strict=True):
        found = np.array(labelled[name][:])
        right = (found > 0) & (np.array(made["example"][:]) % 2 == 0)
        side[right, found[right]] = 9
    assert 90 < sum(not one["answers"]["text"] for one in plain(data)) < 119
    texts = held(task, data, made, logits)
    assert 50 < sum(not text for text in texts) < 300  # both happen
    scores = task.score(data, made, logits)
    assert 0.2 < scores.metrics["has_answer_f1"] < 0.8
    assert scores.choosing["best_f1"] > scores.metrics["f1"] + 0.01
    best = Span(path="x", unanswerable=True, null_threshold=scores.choosing["best_f1_threshold"])
    assert best.score(data, made, logits).metrics["f1"] == pytest.approx(scores.choosing["best_f1"], abs=1e-12)
    lower = held(Span(path="x", unanswerable=True, null_threshold=-4), data, made, logits)
    assert sum(not text for text in lower) > sum(not text for text in texts)
    assert all(not one for one, other in zip(lower, texts, strict=True) if not other)


def test_a_model_that_diverged_answers_nothing_and_its_scores_are_numbers() -> None:
    task = Span(path="x", unanswerable=True)
    data = table(SOME[:4])
    made = task.features(data, TOKENIZER, None, labels=False)
    scores = task.score(data, made, [np.full((len(made), max(made["length"])), np.nan, np.float32)] * 2)
    assert set(scores.predictions.values()) == {""}
    assert scores.metrics["no_answer_f1"] == 1
    assert scores.metrics["has_answer_f1"] == 0
    json.dumps(scores.choosing, allow_nan=False)


def test_only_kinds_of_questions_that_are_there_are_scored() -> None:
    task = Span(path="x", unanswerable=True)
    for wanted, prefix in ((True, "has_answer_"), (False, "no_answer_")):
        data = table([one for one in SOME if bool(one["answers"]["text"]) is wanted])
        made = task.features(data, TOKENIZER, None, labels=False)
        found = task.score(data, made, null_logits(made, 0)).metrics
        assert found.keys() == {"exact_match", "f1", f"{prefix}exact_match", f"{prefix}f1"}


def test_questions_that_all_have_answers_have_no_further_scores() -> None:
    data = table([one for one in SOME if one["answers"]["text"]])
    made = Span(path="x").features(data, TOKENIZER, None, labels=False)
    scores = Span(path="x").score(data, made, null_logits(made, 0))
    assert (scores.metrics.keys(), scores.choosing) == ({"exact_match", "f1"}, {})


def test_each_evaluation_split_has_its_scores_and_the_first_one_counts(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(v2_json(SOME))
    (tmp_path / "dev.json").write_text(v2_json(SOME[:20]))
    (tmp_path / "other.json").write_text(v2_json(SOME[20:30]))
    task = Span(path=str(tmp_path), unanswerable=True, evaluation_splits=["dev", "other"])
    read = task.read(train=False).evaluation
    made = task.features(read, TOKENIZER, None, labels=False)
    logits = peaked(made["length"][:], max(made["length"]), None)
    scores = task.score(read, made, logits)
    assert len(scores.predictions) == 30
    assert list(scores.by_example) == [f"dev-{one['id']}" for one in SOME[:20]]
    for rows, suffix in ((range(20), ""), (range(20, 30), "_other")):
        alone, windows = read.select(rows).remove_columns("split"), [w for w in plain(made) if w["example"] in rows]
        at = [w for w, example in enumerate(made["example"]) if example in rows]
        moved = table([{**window, "example": window["example"] - rows.start} for window in windows])
        expected = task.score(alone, moved, [side[at] for side in logits])
        assert {f"{k}{suffix}": v for k, v in expected.metrics.items()}.items() <= scores.metrics.items()
        assert suffix or expected.choosing == scores.choosing
    assert len(scores.metrics) == 12


# --- windows and labels -------------------------------------------------------------------------------------


def cls_at_the_end() -> PreTrainedTokenizerBase:
    """XLNet has [CLS] at the end."""
    tokenizer = build_tokenizer()
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(  # type: ignore[attr-defined]
        single="$A [SEP] [CLS]:2", pair="$A [SEP] $B:1 [SEP]:1 [CLS]:2", special_tokens=special
    )
    return tokenizer


@pytest.mark.parametrize("at_the_end", [False, True])
def test_what_has_no_answer_points_at_cls_wherever_it_is(at_the_end: bool) -> None:
    tokenizer = cls_at_the_end() if at_the_end else TOKENIZER
    task = Span(path="x", unanswerable=True, max_seq_length=64, doc_stride=20)
    content = [*LONG[:10], {**LONG[11], "answers": EMPTY}]
    data = table(content)
    train, evaluation = (plain(task.features(data, tokenizer, None, labels=labels)) for labels in (True, False))
    without = 0
    for one, other in zip(train, evaluation, strict=True):
        null = one["length"] - 1 if at_the_end else 0
        assert one["input_ids"][null] == tokenizer.cls_token_id
        assert other["null_token"] == null
        assert other["start_character"][null] == -1
        span = one["start_positions"], one["end_positions"]
        if other["start_character"][span[0]] < 0:
            assert span == (null, null)
            without += 1
        else:
            example = content[other["example"]]
            found = example["context"][other["start_character"][span[0]] : other["end_character"][span[1]]]
            assert found == example["answers"]["text"][0]
    assert without > 3
    assert {one["example"] for one in evaluation} == set(range(11))


def test_a_tokenizer_without_cls_takes_the_beginning() -> None:
    tokenizer = build_tokenizer()
    cls: Any = tokenizer.cls_token_id
    word = 50
    assert null_token([word, cls, word, cls], tokenizer) == 1
    assert null_token([word, word], tokenizer) == 0
    tokenizer.cls_token = None
    tokenizer.bos_token = "[SEP]"
    begin: Any = tokenizer.bos_token_id
    assert null_token([word, word, begin], tokenizer) == 2


def test_perfect_logits_are_scored_as_perfect_with_and_without_answers() -> None:
    task = Span(path="x", unanswerable=True, max_seq_length=64, doc_stride=20)
    data = table(SOME)
    train, evaluation = (task.features(data, TOKENIZER, None, labels=labels) for labels in (True, False))
    logits = [np.zeros((len(train), max(train["length"])), np.float32) for _ in range(2)]
    for side, name in zip(logits, task.label_names, strict=True):
        side[np.arange(len(train)), train[name][:]] = 5
    scores = task.score(data, evaluation, logits)
    assert len(scores.metrics) == 6
    assert set(scores.metrics.values()) == {1.0}
    assert scores.choosing["best_f1"] == 1
    assert scores.choosing["best_f1_threshold"] < 0 == task.null_threshold  # the lowest that is as good


# --- reading ------------------------------------------------------------------------------------------------


def test_all_formats_give_the_same_questions(tmp_path: Path) -> None:
    lines, official, rows = (tmp_path / name for name in ("lines", "official", "rows"))
    for folder in (lines, official, rows):
        folder.mkdir()
    (lines / "dev.jsonl").write_text(json_lines(SOME))
    (official / "dev-v2.0.json").write_text(v2_json(SOME))
    cells = [
        [
            one["id"],
            one["context"],
            one["question"],
            *(str(each[0]) if each else "" for each in one["answers"].values()),
        ]
        for one in SOME
    ]
    (rows / "dev.tsv").write_text(
        "\n".join("\t".join(r) for r in [["id", "context", "question", "text", "at"], *cells])
    )
    both = {"answer_text": "text", "answer_start": "at"}
    read = [
        Span(path=str(folder), unanswerable=True, **more).read(train=False)  # type: ignore[arg-type]
        for folder, more in ((lines, {}), (official, {}), (rows, both))
    ]
    assert [one.evaluation["id"][:] for one in read] == [[one["id"] for one in SOME]] * 3
    assert [one["answers"] for one in plain(read[1].evaluation)] == [one["answers"] for one in SOME]
    assert 15 < sum(not one["answers"]["text"] for one in SOME) <= 20
    assert len({one.evaluation_fingerprint for one in read}) == 1


def test_where_questions_must_have_answers_the_error_names_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text(v2_json(SOME))
    (tmp_path / "dev.json").write_text(v2_json(SOME))
    without = sum(not one["answers"]["text"] for one in SOME)
    text = refused(tmp_path)
    assert f"{without} of 60 questions have no answer" in text
    assert f"if {without} of them are meant to have no answer, dataset.unanswerable=true" in text
    left = Span(path=str(tmp_path), drop_misaligned=True).read(train=False)
    assert len(left.evaluation) == 60 - without
    (tmp_path / "train.json").write_text(json_lines([{**SOME[1], "answers": {"text": ["no"], "answer_start": [0]}}]))
    assert "dataset.unanswerable" not in refused(tmp_path)


@pytest.mark.parametrize("answers", [
    {"text": ["nowhere"], "answer_start": [0]},
    {"text": [], "answer_start": [0]},
    {"text": ["Ada"], "answer_start": []},
    {"text": None, "answer_start": None},
    None,
])  # fmt: skip
def test_what_is_misaligned_or_missing_is_refused_all_the_same(answers: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json_lines([*SOME, {**row("bad", "Ada ate", "Ada"), "answers": answers}]))
    text = refused(tmp_path, unanswerable=True, holdout=0.5)
    assert "1 of " in text
    assert "(ids bad)" in text
    assert "two empty lists" in text


def test_a_split_of_questions_without_answers_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "dev.json").write_text(v2_json([one for one in SOME if not one["answers"]["text"]]))
    task = Span(path=str(tmp_path), unanswerable=True)
    read = task.read(train=False).evaluation
    made = task.features(read, TOKENIZER, None, labels=False)
    assert task.score(read, made, null_logits(made, 1)).metrics["f1"] == 1
    assert set(task.features(read, TOKENIZER, None, labels=True)["start_positions"]) == {0}


@pytest.mark.parametrize(("impossible", "answers"), [(True, [{"text": "Ada", "answer_start": 0}]), (False, [])])
def test_a_file_that_contradicts_itself_is_refused(impossible: bool, answers: list, tmp_path: Path) -> None:
    qa = {"id": "q7", "question": "who", "is_impossible": impossible, "answers": answers}
    (tmp_path / "dev.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "Ada ate", "qas": [qa]}]}]}))
    text = refused(tmp_path, unanswerable=True)
    assert "dev.json: 1 questions have answers and is_impossible=true, or neither (such as q7)" in text


# --- settings -----------------------------------------------------------------------------------------------


def test_thresholds_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(UserError, match=r"null_threshold=1\.5 has no effect .*dataset\.unanswerable=true"):
        Span(path="x", null_threshold=1.5)
    for value in (math.nan, math.inf):
        with pytest.raises(UserError, match=r"null_threshold=\w+ must be a finite"):
            Span(path="x", unanswerable=True, null_threshold=value)


def composed(*overrides: str) -> Experiment:
    return compose_experiment(["model=bert-base", *overrides])[0]


def test_runs_on_questions_with_answers_are_still_the_same() -> None:
    assert "null_threshold" not in composed("dataset=squad").dataset.settings()
    assert len({
        identify(composed(*given), Contents("m", "d")).run
        for given in (["dataset=squad"], ["dataset=squad", "dataset.unanswerable=true"],
                      ["dataset=squad_v2", "dataset.null_threshold=-1"])
    }) == 3  # fmt: skip


def test_squad_v2_composes_with_the_defaults() -> None:
    experiment, origin = compose_experiment(["model=bert-base", "dataset=squad_v2", "pattern=4x1"])
    assert (origin.choices["recipe"], origin.labels["dataset"]) == ("best", "squad_v2")
    task = experiment.dataset
    assert isinstance(task, Span)
    assert (task.unanswerable, task.official_train, task.official_evaluation) == (True, 130_319, 11_873)


# --- from end to end ----------------------------------------------------------------------------------------


def test_a_run_is_scored_shown_and_its_threshold_chosen(
    cli: Cli, rows, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = without_answers([dict(example) for example in generated(240, seed=4)])
    (tmp_path / "train-v2.0.json").write_text(v2_json(content[:180]))
    (tmp_path / "dev-v2.0.json").write_text(v2_json(content[180:]))
    data = ("dataset=squad_v2", f"dataset.path={tmp_path}", "dataset.max_seq_length=128", "dataset.doc_stride=32",
            "dataset.official_train=null", "dataset.official_evaluation=null", "dataset.holdout=0.25")  # fmt: skip
    done = cli(
        "-m", "runner", "model=hub", f"model.path={small_model}", "pattern=2:4", *data, "schedule=short",
        "train.max_steps=10", "train.learning_rate=1e-2", "train.warmup_steps=2", "distill.label_weight=1",
        "finetune.max_steps=10", "finetune.learning_rate=1e-2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("outputs/*-s0-*/")
    result = json.loads((folder / "result.json").read_text())
    names = {f"{part}{name}" for part in ("", "has_answer_", "no_answer_") for name in ("f1", "exact_match")}
    assert result["dense"].keys() == result["sparse"].keys() == names
    answers = json.loads((folder / columns.PREDICTIONS).read_text())
    gold = {one["id"]: one["answers"]["text"] for one in content[:180]}
    none = [id for id in answers if not gold[id]]
    assert 5 < len(none) < len(answers) == 45
    assert result["sparse"]["no_answer_f1"] == sum(not answers[id] for id in none) / len(none)
    share = len(none) / 45
    mixed = share * result["sparse"]["no_answer_f1"] + (1 - share) * result["sparse"]["has_answer_f1"]
    assert result["sparse"]["f1"] == pytest.approx(mixed)

    (line,) = rows()
    assert line["sparse_max"] == pytest.approx(result["sparse"]["f1"])
    assert set(line["sparse_others"]) == names - {"f1"}  # and no threshold

    again = ("runner.evaluate", str(folder / "model"), *data)
    done = cli("-m", *again)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    chosen = printed.pop("if_chosen_on_these_examples")
    assert printed == {"model": str(folder / "model"), "examples": 45, **result["sparse"]}
    assert chosen.keys() == {"best_f1", "best_f1_threshold"}
    assert chosen["best_f1"] >= printed["f1"]
    monkeypatch.chdir(tmp_path)
    metrics = evaluate.main([*again[1:], f"dataset.null_threshold={chosen['best_f1_threshold']}"])
    assert metrics["f1"] == pytest.approx(chosen["best_f1"])

    run = runs.find(str(folder), Tracking())
    found = diagnose(run, runs.restored(run, {}).experiment.dataset, 100, 100)
    assert {kind.name: kind.examples for kind in found.slices["Answerable"]} == {"no": len(none), "yes": 45 - len(none)}
    lengths = {kind.name: kind.examples for kind in found.slices["Length of the answer"]}
    assert lengths["no answer"] == len(none)
    for example in (*found.most_lost, *found.most_won):
        assert example.shown["Gold answers"] == (" | ".join(gold[example.id]) or "(no answer)")


def test_a_question_without_an_answer_is_shown_with_the_beginning_of_its_paragraph() -> None:
    task = Span(path="x", unanswerable=True)
    one = {"id": "q", "context": "Ada lives in Rome. " * 30, "question": "where does Bob live", "answers": EMPTY}
    shown = task.shown(one)
    assert shown["Paragraph"].startswith("Ada lives in Rome.")
    assert shown["Paragraph"].endswith(" …")
    assert shown["Gold answers"] == "(no answer)"
    assert task.kinds(one)["Answerable"] == "no"
    assert task.kinds(row("r", "Ada ate", "Ada"))["Answerable"] == "yes"
    assert "Answerable" not in Span(path="x").kinds(row("r", "Ada ate", "Ada"))
