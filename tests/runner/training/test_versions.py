"""A stage whose result changes must have its number in `runner.system.versions` raised: else the cache gives what the
old algorithm made, and runs of both are taken for the same.

Each stage is run small and compared with `frozen.json`: whole numbers, texts and hashes exactly, floats to a
thousandth, which another CPU keeps and another algorithm does not. After VERSIONS[stage] was raised, renew the file:

    python -m tests.runner.test_versions --renew

It replaces what belongs to a raised version, adds what is new, and refuses to change anything else.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import pruning.distillation
import runner.data.question_answering
import runner.data.spans
import runner.training.trainer
from pruning import (
    Block,
    Criterion,
    DiagonalFisher,
    Gradient,
    Gradual,
    GroupLasso,
    Logits,
    Magnitude,
    Movement,
    NoDistillation,
    NofM,
    Pattern,
    Plan,
    Platon,
    Pruner,
    Random,
    Regularizer,
    SimKD,
    Snip,
    SnipMomentum,
    TrainingLength,
    Uniform,
)
from runner import models
from runner.config.training import Training
from runner.data.question_answering import Span
from runner.system.device import Precision
from runner.system.versions import VERSIONS
from runner.training import inference, teacher_logits
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.training import train

FILE = Path(__file__).parent / "frozen.json"
RENEW = "python -m tests.runner.test_versions --renew"
TOLERANCE = 1e-3
"""Of the largest number of a list."""
FLOOR = 1e-6
"""Below this, numbers are equal."""
SEED = 3

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Frozen:
    """What a stage makes."""

    exact: dict[str, Any]
    close: dict[str, list[float]]


# --- what the stages are run on: written here, so that nothing but an algorithm can change a result ----------


TEXTS = (
    ("The mill of Ardun stands by the river, and its keeper Olva sells flour to the seven villages of the valley.",
     "  Who keeps the mill?", "Olva"),
    ("In the year 1482 a flood took the old bridge. Two masons, Bren and Tallow, built the new one of grey stone.",
     "When did the flood come?", "1482"),
    ("Cafés lined the square; the Élan, the oldest, was opened by a baker who had come over the mountains on foot.",
     "Which was the oldest?", "Élan"),
    ("A comet was seen for nine nights. On the last of them the tower's bell, which nobody had rung, rang twice.",
     "How often did the bell ring?", "twice"),
    ("Short text.", "Which text?", "Short"),
    ("The lake is fed by three brooks, of which the Sirn is the longest; it rises below the Horn and is cold all year.",
     "What is the longest brook?", "Sirn"),
)  # fmt: skip


def examples():
    """Six questions in SQuAD's format."""
    import datasets

    return datasets.Dataset.from_list(
        [
            {"id": f"q{i}", "context": context, "question": question,
             "answers": {"text": [answer], "answer_start": [context.index(answer)]}}
            for i, (context, question, answer) in enumerate(TEXTS)
        ]
    )  # fmt: skip


def tokenizer():
    """WordPiece whose pieces are single characters."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *".,;?'"]
    made = Tokenizer(WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()  # type: ignore[assignment]
    made.post_processor = TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


def task() -> Span:
    return Span(path="fixed", max_seq_length=64, doc_stride=16)


def lesson() -> TrainingData:
    return TrainingData(task(), task().features(examples(), tokenizer(), None, labels=True), tokenizer())


def network(seed: int, noise: float = 0.0):
    """A BERT of 2 layers, H=16, without dropout. Its weights are drawn by numpy, whose old streams never change.

    Args:
        noise: each weight is off by about this fraction of itself.
    """
    from transformers import AutoModelForQuestionAnswering, BertConfig

    config = BertConfig(vocab_size=len(tokenizer()), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64, hidden_dropout_prob=0.0,
                        attention_probs_dropout_prob=0.0)  # fmt: skip
    model = AutoModelForQuestionAnswering.from_config(config, attn_implementation="sdpa")
    chance, rounding = np.random.RandomState(seed), np.random.RandomState(seed + 1000)
    for name, p in sorted(model.named_parameters()):
        value = 0.3 * chance.standard_normal(tuple(p.shape))
        if name.endswith("LayerNorm.weight"):
            value += 1
        value *= 1 + noise * rounding.standard_normal(tuple(p.shape))
        p.data.copy_(torch.from_numpy(value))
    return model


def settings(**changes: Any) -> Training:
    """Twelve steps. With this epsilon no step rests on the sign of a gradient that is nearly zero."""
    values = {"per_device_train_batch_size": 4, "max_steps": 12, "learning_rate": 1e-2, "adam_epsilon": 1e-3,
              "weight_decay": 0.05, "logging_steps": 1, "precision": Precision.float32}  # fmt: skip
    return Training(**{**values, **changes})


# --- what is kept of a result -------------------------------------------------------------------------------


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def signature(*tensors: torch.Tensor) -> list[float]:
    """The norm of all these numbers as one vector, and its products with four fixed unit vectors."""
    vector = torch.cat([tensor.detach().flatten().double().cpu() for tensor in tensors])
    place = torch.arange(len(vector), dtype=torch.float64)
    waves = [torch.cos(place * speed) for speed in (1.0, 0.37, 0.013, 2.9)]
    return [float(vector.norm()), *(float(vector @ wave / wave.norm()) for wave in waves)]


def recorder() -> tuple[dict[str, list[float]], Callable[[int, Any], None]]:
    """Courses by name, and a log that fills them."""
    courses: dict[str, list[float]] = {}

    def log(step: int, values: Any) -> None:
        for name, value in values.items():
            courses.setdefault(name, []).append(float(value))

    return courses, log


# --- the stages ---------------------------------------------------------------------------------------------


def prepare(folder: Path, noise: float) -> Frozen:
    """The tokenised features."""
    exact: dict[str, Any] = {}
    for labels in (True, False):
        features = task().features(examples(), tokenizer(), None, labels=labels)
        kind = "train" if labels else "evaluation"
        exact |= {f"{kind}/{name}": digest(list(features[name])) for name in sorted(features.column_names)}
        exact[f"{kind} features"] = len(features)
    return Frozen(exact, {})


def finetune(folder: Path, noise: float) -> Frozen:
    """A training with the labels alone."""
    model, before = network(1, noise), network(1)
    courses, log = recorder()
    train(model, lesson(), settings(), Supervision(NoDistillation()), None, SEED, folder / "finetune", "t", log)
    moved = [p - q for p, q in zip(model.parameters(), before.parameters(), strict=True)]
    return Frozen({"steps": len(courses["loss"])}, {**courses, "weights": signature(*moved)})


def taught(folder: Path, noise: float) -> Frozen:
    """The teacher's logits."""
    kept = kept_logits(folder, noise)
    exact = {"features": len(kept.counts), "choices": kept.counts.tolist(), "type": str(kept.heads[0].dtype)}
    return Frozen(exact, {f"head {i}": signature(head) for i, head in enumerate(kept.heads)})


def kept_logits(folder: Path, noise: float = 0.0) -> teacher_logits.CachedLogits:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        network(0, noise).save_pretrained(place)
        found = models.find(place, "model.path", models.Model(path=place))
        learnt = lesson()
        return teacher_logits.teacher_logits(
            found, learnt.tokenizer, learnt.task, learnt.features, Precision.float32, Path(place) / "cache"
        )


def prune(folder: Path, noise: float) -> Frozen:
    """Trainings with mask updates at steps 2 to 8, of each criterion and of both kinds of pattern."""
    whole = Frozen({}, {})
    kept = kept_logits(folder)
    logits = Supervision(Logits(label_weight=0.5), logits=kept)
    hidden = Supervision(SimKD(), network(0))
    block, two_of_four = Block(4, 1, target_sparsity=0.8), NofM(2, 4)
    cases: list[tuple[str, Pattern, Criterion, Any, Regularizer, Supervision]] = [
        ("4x1", block, SnipMomentum(), None, Regularizer(), logits),
        ("2:4", two_of_four, SnipMomentum(), None, Regularizer(), logits),
        ("4x1 uniform", block, SnipMomentum(), Uniform(), Regularizer(), logits),
        ("4x1 group lasso", block, SnipMomentum(), None, GroupLasso(weight=1e-2), logits),
        ("4x1 simkd", block, SnipMomentum(), None, Regularizer(), hidden),
    ]
    others = (Magnitude(), Gradient(), Snip(), Movement(), Platon(), DiagonalFisher(), Random())
    cases += [(f"4x1 {type(other).__name__}", block, other, None, Regularizer(), logits) for other in others]
    for name, pattern, criterion, allocation, regularizer, teaching in cases:
        model = network(1, noise)  # away from its teacher: else there is nothing to learn without dropout
        schedule = Gradual(start="2", decay="cubic", end="8", frequency="2")
        weights = models.prunable_parameters(model, models.Model(path="fixed"))
        pruner = Pruner(Plan(weights, pattern, allocation), schedule, TrainingLength(12), criterion, regularizer)
        courses, log = recorder()
        place = folder / name.replace(":", "of").replace(" ", "-")
        train(model, lesson(), settings(), teaching, pruner, SEED, place, "t", log)
        whole.exact[f"{name}: zeros"] = {row.name: row.zeros for row in pruner.report()}
        whole.close |= {f"{name}: {course}": values for course, values in courses.items()}
        whole.close[f"{name}: weights"] = signature(*model.parameters())
    return whole


def scored(folder: Path, noise: float) -> Frozen:
    """Metrics and predictions from given logits; a model's logits over features of unequal length."""
    given, features = examples(), task().features(examples(), tokenizer(), None, labels=False)
    chance = np.random.RandomState(5)
    shape = (len(features), max(features["length"]))
    logits = [chance.standard_normal(shape).astype(np.float32) for _ in range(2)]
    exact: dict[str, Any] = {}
    short = Span(path="fixed", max_seq_length=64, doc_stride=16, n_best=3, max_answer_length=4)
    for name, by in (("20 best", task()), ("3 best", short)):
        scores = by.score(given, features, logits)
        exact |= {f"{name}: predictions": scores.predictions}
        exact |= {f"{name}: {metric}": round(value, 12) for metric, value in scores.metrics.items()}
    starts = [TEXTS[i][0].index(TEXTS[i][2]) for i in features["example"]]  # an answer that is right in part
    for head, side, off in ((logits[0], "start_character", 0), (logits[1], "end_character", 3)):
        for row, (characters, start) in enumerate(zip(features[side], starts, strict=True)):
            near = [i for i, c in enumerate(characters) if c >= start + off]
            head[row, near[:1]] += 9
    right = task().score(given, features, logits)
    exact |= {f"near: {metric}": round(value, 12) for metric, value in right.metrics.items()}
    computed = inference.logits(network(0, noise), tokenizer(), task(), features, "t")
    lowest = np.finfo(np.float32).min
    exact["padding"] = [int((head == lowest).sum()) for head in computed]
    close = {f"head {i}": signature(torch.from_numpy(head[head > lowest])) for i, head in enumerate(computed)}
    return Frozen(exact, close)


STAGES: dict[str, Callable[[Path, float], Frozen]] = {
    "prepare": prepare,
    "finetune": finetune,
    "teacher": taught,
    "prune": prune,
    "evaluate": scored,
}


# --- comparing and renewing ---------------------------------------------------------------------------------


def differences(stored: dict[str, Any], now: Frozen) -> list[str]:
    """Names of what was stored and is not the same now."""
    out = [name for name, value in stored["exact"].items() if name not in now.exact or now.exact[name] != value]
    return out + [name for name, values in stored["close"].items() if not near(values, now.close.get(name, []))]


def near(stored: list[float], now: list[float]) -> bool:
    """Whether two lists of floats are the same but for rounding."""
    if len(stored) != len(now):
        return False
    allowed = max(FLOOR, TOLERANCE * max(map(abs, stored), default=0.0))
    return all(abs(a - b) <= allowed for a, b in zip(stored, now, strict=True))  # false for NaN


def problem(stage: str, stored: dict[str, Any] | None, now: Frozen) -> str | None:
    """What is to be done about a stage, or None."""
    if stored is None:
        return f"nothing is stored of the stage {stage}: {RENEW}"
    if VERSIONS[stage] != stored["version"]:
        return (
            f"VERSIONS[{stage!r}] is {VERSIONS[stage]}, and frozen.json holds version {stored['version']}: renew it "
            f"with {RENEW}"
        )
    changed = differences(stored, now)
    if changed:
        return (
            f"the result of the stage {stage} changed ({', '.join(changed[:4])}{', ...' if len(changed) > 4 else ''}), "
            f"but its version did not: undo the change, or raise VERSIONS[{stage!r}] in runner/system/versions.py and "
            f"renew frozen.json with {RENEW}"
        )
    added = sorted((now.exact.keys() - stored["exact"].keys()) | (now.close.keys() - stored["close"].keys()))
    return f"{', '.join(added)} of the stage {stage} is not stored: {RENEW}" if added else None


def renewed(stored: dict[str, Any], now: dict[str, Frozen]) -> dict[str, Any]:
    """What the file is to hold.

    Raises:
        SystemExit: a stage's values changed while its version did not, or its version was lowered.
    """
    out = {}
    for stage, result in now.items():
        before = stored.get(stage)
        entry = {"version": VERSIONS[stage], "exact": result.exact, "close": rounded(result.close)}
        if before is not None and before["version"] > VERSIONS[stage]:
            raise SystemExit(f"VERSIONS[{stage!r}] was lowered from {before['version']} to {VERSIONS[stage]}")
        if before is not None and before["version"] == VERSIONS[stage]:
            if differences(before, result):
                raise SystemExit(problem(stage, before, result))
            entry = {"version": before["version"], **{k: entry[k] | before[k] for k in ("exact", "close")}}
        out[stage] = entry
    return out


def rounded(courses: dict[str, list[float]]) -> dict[str, list[float]]:
    """To six digits: far below the tolerance, and a file that can be read."""
    return {name: [float(f"{value:.6g}") for value in values] for name, values in courses.items()}


def stored() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def renew() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        now = {stage: make(Path(folder), 0.0) for stage, make in STAGES.items()}
    FILE.write_text(json.dumps(renewed(stored(), now), indent=1) + "\n", encoding="utf-8")


# --- the tests ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_makes_what_its_version_made(stage: str, tmp_path: Path) -> None:
    wrong = problem(stage, stored().get(stage), STAGES[stage](tmp_path, 0.0))
    if wrong is not None:
        pytest.fail(wrong, pytrace=False)


def test_every_version_is_held() -> None:
    assert set(STAGES) == set(VERSIONS)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["finetune", "teacher", "prune", "evaluate"])
def test_rounding_is_not_noticed(stage: str, tmp_path: Path) -> None:
    """Weights off by several times float32's rounding stand for another CPU's order of additions."""
    assert differences(stored()[stage], STAGES[stage](tmp_path, 3e-7)) == []


Patch = Callable[[pytest.MonkeyPatch], None]


def constant_rate(patch: pytest.MonkeyPatch) -> None:
    real = Training.options
    patch.setattr(Training, "options", lambda self: real(self) | {"lr_scheduler_type": "constant_with_warmup"})


def decayed_biases(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(runner.training.trainer.Trainer, "get_decay_parameter_names", lambda self, model: [
        name for name, _ in model.named_parameters()])  # fmt: skip


def sum_over_heads(patch: pytest.MonkeyPatch) -> None:
    real = runner.training.trainer.label_loss
    patch.setattr(
        runner.training.trainer, "label_loss", lambda student, labels, labelled: real(student, labels) * len(labels)
    )


def padding_in_the_softmax(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pruning.Prediction, "answers", lambda self: tuple(logits.float() for logits in self.logits))


def other_batches(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("runner.training.batches.BUCKET", 32)


def less_momentum(patch: pytest.MonkeyPatch) -> None:
    def accumulate(self: SnipMomentum, state: dict[str, torch.Tensor], pooled: torch.Tensor) -> None:
        state["score"] = pooled + 0.8 * state["score"] if "score" in state else pooled

    patch.setattr(SnipMomentum, "accumulate", accumulate)


def weaker_distillation(patch: pytest.MonkeyPatch) -> None:
    real = Logits.loss
    patch.setattr(Logits, "loss", lambda self, student, teacher: real(self, student, teacher) / self.temperature)


def other_schedule(patch: pytest.MonkeyPatch) -> None:
    real = Gradual.sparsity
    patch.setattr(Gradual, "sparsity", lambda self, progress, target: real(self, progress**1.1, target))


def padding_among_the_choices(patch: pytest.MonkeyPatch) -> None:
    real = Span.prediction

    def prediction(self: Span, outputs: Any, inputs: Any) -> Any:
        found = real(self, outputs, inputs)
        found.choices = torch.ones_like(found.tokens)
        return found

    patch.setattr(Span, "prediction", prediction)


def attention_to_padding(patch: pytest.MonkeyPatch) -> None:
    from transformers import BertForQuestionAnswering

    real: Any = BertForQuestionAnswering.forward
    patch.setattr(BertForQuestionAnswering, "forward", lambda self, **given: real(
        self, **{**given, "attention_mask": torch.ones_like(given["attention_mask"])}))  # fmt: skip


def float32_logits(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(torch.Tensor, "half", torch.Tensor.float)


def leading_blanks(patch: pytest.MonkeyPatch) -> None:
    real = Span.tokenized
    patch.setattr(Span, "tokenized", lambda self, batch, *others: real(
        self, {**batch, "question": [f"?{question}" for question in batch["question"]]}, *others))  # fmt: skip


def answers_to_the_left(patch: pytest.MonkeyPatch) -> None:
    real = runner.data.question_answering.answer_tokens

    def shifted(*given: Any) -> list[tuple[int, int] | None]:
        return [(span[0], max(span[0], span[1] - 1)) if span else None for span in real(*given)]

    patch.setattr(runner.data.question_answering, "answer_tokens", shifted)


def longer_answers(patch: pytest.MonkeyPatch) -> None:
    real = runner.data.spans._best_spans
    patch.setattr(runner.data.spans, "_best_spans", lambda start, end, allowed, n, length: real(
        start, end, allowed, n, length + 1))  # fmt: skip


def fewer_best(patch: pytest.MonkeyPatch) -> None:
    real = runner.data.spans.highest
    patch.setattr(runner.data.spans, "highest", lambda values, count: real(values, count - 1))


NOTICED: list[tuple[Patch, str]] = [
    (leading_blanks, "prepare"),
    (answers_to_the_left, "prepare"),
    (constant_rate, "finetune"),
    (decayed_biases, "finetune"),
    (sum_over_heads, "finetune"),
    (padding_in_the_softmax, "finetune"),
    (weaker_distillation, "prune"),
    (attention_to_padding, "finetune"),
    (attention_to_padding, "teacher"),
    (attention_to_padding, "evaluate"),
    (other_batches, "finetune"),
    (padding_among_the_choices, "teacher"),
    (float32_logits, "teacher"),
    (less_momentum, "prune"),
    (other_schedule, "prune"),
    (longer_answers, "evaluate"),
    (fewer_best, "evaluate"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("patch", "stage"), NOTICED, ids=lambda value: getattr(value, "__name__", value))
def test_another_algorithm_is_noticed(
    patch: Patch, stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch(monkeypatch)
    wrong = problem(stage, stored()[stage], STAGES[stage](tmp_path, 0.0))
    assert wrong is not None
    assert f"raise VERSIONS[{stage!r}] in runner/system/versions.py" in wrong


def test_what_a_stage_does_not_do_does_not_change_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less_momentum(monkeypatch)
    assert differences(stored()["finetune"], finetune(tmp_path, 0.0)) == []


def test_only_a_raised_version_changes_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"teacher": {"version": 1, "exact": {"n": 2}, "close": {"loss": [1.0, 0.5]}}}
    same, other = Frozen({"n": 2}, {"loss": [1.0, 0.5004]}), Frozen({"n": 2}, {"loss": [1.0, 0.502]})
    more = Frozen({"n": 2, "new": 3}, {"loss": [1.0, 0.5]})
    monkeypatch.setitem(VERSIONS, "teacher", 1)
    assert renewed(held, {"teacher": same}) == held
    assert problem("teacher", held["teacher"], same) is None
    assert "new of the stage teacher is not stored" in str(problem("teacher", held["teacher"], more))
    assert renewed(held, {"teacher": more})["teacher"]["exact"] == {"n": 2, "new": 3}
    for changed in (other, Frozen({"n": 3}, same.close), Frozen({}, same.close), Frozen({"n": 2}, {"loss": [1.0]})):
        with pytest.raises(SystemExit, match=r"raise VERSIONS\['teacher'\]"):
            renewed(held, {"teacher": changed})
    monkeypatch.setitem(VERSIONS, "teacher", 2)
    assert "frozen.json holds version 1: renew it" in str(problem("teacher", held["teacher"], same))
    assert renewed(held, {"teacher": other})["teacher"] == {"version": 2, "exact": {"n": 2}, "close": other.close}
    monkeypatch.setitem(VERSIONS, "teacher", 0)
    with pytest.raises(SystemExit, match="was lowered"):
        renewed(held, {"teacher": same})


if __name__ == "__main__":
    if sys.argv[1:] != ["--renew"]:
        raise SystemExit(f"usage: {RENEW}")
    renew()
