"""The teacher's logits, run once and kept: the same losses as from the live teacher, and never a wrong file."""

from pathlib import Path

import pytest
import torch

from pruning import Logits, Prediction, SimKD
from runner import models
from runner.config.training import Training
from runner.data.demo import Demo
from runner.models import Model
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.training import teacher_logits
from runner.training.supervision import Supervision
from runner.training.teacher_logits import CachedLogits, pack, unpack
from runner.training.training_data import TrainingData, collate
from tests.conftest import save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import train

ARCHITECTURE = "AutoModelForQuestionAnswering"


@pytest.fixture(scope="module")
def lesson() -> TrainingData:
    task = Demo(train_examples=60, eval_examples=4)
    examples, tokenizer = task.read(), build_tokenizer()
    assert examples.train is not None
    return TrainingData(task, task.features(examples.train, tokenizer, None, labels=True), tokenizer)


def checkpoint(folder: Path, **changes: object) -> models.Checkpoint:
    path = str(save_small_model(folder, **changes))  # type: ignore[arg-type]
    return models.find(path, "model.path", Model(path=path))


def taught(found: models.Checkpoint, lesson: TrainingData, cache: Path, precision: Precision = Precision.float32):
    return teacher_logits.teacher_logits(found, lesson.tokenizer, lesson.task, lesson.features, precision, cache)


def test_kept_logits_are_the_live_teachers_to_the_rounding_of_float16(
    tmp_path: Path, lesson: TrainingData, one_thread: None
) -> None:
    found = checkpoint(tmp_path / "model", initializer_range=0.5)
    kept = taught(found, lesson, tmp_path / "cache")
    live, student = models.load(ARCHITECTURE, found).eval(), models.load(ARCHITECTURE, found)
    student.get_parameter("qa_outputs.weight").data.mul_(-0.5)
    features = teacher_logits.WithTeacherLogits(lesson.features, kept)
    make = collate(lesson.tokenizer, lesson.task.label_names)
    how, losses = Logits(temperature=2.0), []
    for rows in ([0, 1, 2], [59, 7, 30, 11, 12], [5]):
        batch = make(list(features.__getitems__(rows)))
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        with torch.no_grad():
            said = lesson.task.prediction(live(**inputs), inputs)
            mine = lesson.task.prediction(student.eval()(**inputs), inputs)
        assert mine.choices is not None
        logits = unpack(batch[teacher_logits.LOGITS], mine.logits[0], mine.choices)
        for kept_head, live_head in zip(logits, said.logits, strict=True):
            error = (kept_head - live_head)[mine.choices].abs()
            # Half of float16's spacing, and what another batch's shape changes in float32.
            assert bool((error <= live_head[mine.choices].abs() * 2**-11 + 1e-5).all())
            assert bool((kept_head[~mine.choices] == 0).all())
        from_kept = float(how.loss(mine, Prediction(logits, mine.choices, mine.tokens)))
        losses.append((from_kept, float(how.loss(mine, said))))
    assert all(live_loss > 0.01 for _, live_loss in losses)
    assert all(kept_loss == pytest.approx(live_loss, rel=2e-3) for kept_loss, live_loss in losses)


def test_a_training_from_kept_logits_learns_what_one_beside_the_teacher_learns(
    tmp_path: Path, lesson: TrainingData, one_thread: None
) -> None:
    found = checkpoint(tmp_path / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    other = checkpoint(tmp_path / "student", seed=1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    kept = taught(found, lesson, tmp_path / "cache")
    how = Training(per_device_train_batch_size=12, num_train_epochs=2, learning_rate=1e-3, logging_steps=1,
                   precision=Precision.float32)  # fmt: skip
    losses: dict[str, list[float]] = {"kept": [], "live": []}
    for name in losses:
        student = models.load(ARCHITECTURE, other)
        teaching = (
            Supervision(Logits(), logits=kept)
            if name == "kept"
            else Supervision(Logits(), models.load(ARCHITECTURE, found))
        )
        work = train(student, lesson, how, teaching, None, 0, tmp_path / name, "t",
                     lambda step, values, name=name: losses[name].append(values["loss"]))  # fmt: skip
        assert work.steps == 10
        assert work.real_tokens == 2 * sum(lesson.features["length"])
        assert 0 <= 1 - work.real_tokens / work.tokens < 0.1
    assert len(losses["kept"]) == 10
    assert losses["kept"] == pytest.approx(losses["live"], rel=2e-3)


def test_choices_on_the_right_of_the_padding_are_found(one_thread: None) -> None:
    rows = [
        {teacher_logits.LOGITS: (torch.tensor([1.0, 2.0]),)},
        {teacher_logits.LOGITS: (torch.tensor([3.0, 4.0, 5.0]),)},
    ]
    left_padded = torch.tensor([[False, True, True], [True, True, True]])
    (head,) = unpack(pack(rows), torch.zeros(2, 3), left_padded)
    assert head.tolist() == [[0, 1, 2], [3, 4, 5]]
    (head,) = unpack([torch.arange(6.0)], torch.zeros(3, 2), None)  # classes: all are choices
    assert head.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_the_teacher_runs_once(tmp_path: Path, lesson: TrainingData, monkeypatch: pytest.MonkeyPatch) -> None:
    found, cache = checkpoint(tmp_path / "model"), tmp_path / "cache"
    first = taught(found, lesson, cache)
    assert sum(len(head) for head in first.heads) == 2 * sum(lesson.features["length"])
    (file,) = cache.glob("*.safetensors")
    real = teacher_logits._compute
    runs: list[int] = []
    monkeypatch.setattr(teacher_logits, "_compute", lambda *given: runs.append(1) or real(*given))
    again = taught(found, lesson, cache)
    assert not runs
    assert all(torch.equal(a, b) for a, b in zip(first.heads, again.heads, strict=True))
    # Another teacher, another precision and other features are other logits.
    keys = {teacher_logits.key(found, lesson.task, lesson.features, p) for p in (Precision.float32, Precision.bf16)}
    keys.add(
        teacher_logits.key(checkpoint(tmp_path / "other", seed=3), lesson.task, lesson.features, Precision.float32)
    )
    fewer = Demo(train_examples=30, eval_examples=4)
    examples = fewer.read().train
    assert examples is not None
    features = fewer.features(examples, lesson.tokenizer, None, labels=True)
    keys.add(teacher_logits.key(found, fewer, features, Precision.float32))
    assert len(keys) == 4
    assert file.stem in keys


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign", "empty"])
def test_a_damaged_file_is_made_again(
    damage: str, tmp_path: Path, lesson: TrainingData, caplog: pytest.LogCaptureFixture
) -> None:
    found, cache = checkpoint(tmp_path / "model"), tmp_path / "cache"
    first = taught(found, lesson, cache)
    (file,) = cache.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    if damage == "flipped":
        data[-100] ^= 1
    file.write_bytes({"cut": data[:-200], "foreign": b"no safetensors at all", "empty": b""}.get(damage, data))
    again = taught(found, lesson, cache)
    assert "is damaged" in caplog.text
    assert all(torch.equal(a, b) for a, b in zip(first.heads, again.heads, strict=True))
    assert [p.name for p in cache.iterdir() if "tmp" in p.name] == []
    caplog.clear()
    taught(found, lesson, cache)
    assert "is damaged" not in caplog.text


def test_logits_too_large_for_float16_are_refused(tmp_path: Path, lesson: TrainingData) -> None:
    path = save_small_model(tmp_path / "model")
    found = models.find(str(path), "model.path", Model(path=str(path)))
    model = models.load(ARCHITECTURE, found)
    model.get_parameter("qa_outputs.bias").data.fill_(1e6)
    model.save_pretrained(path)
    with pytest.raises(UserError, match=r"not finite in float16 .* distill.cache=false"):
        taught(models.find(str(path), "model.path", Model(path=str(path))), lesson, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.safetensors"))


def test_several_heads_and_unequal_counts() -> None:
    kept = CachedLogits([torch.arange(6.0), torch.arange(6.0) + 10], torch.tensor([1, 3, 2], dtype=torch.int32))
    assert [head.tolist() for head in kept.of(1)] == [[1, 2, 3], [11, 12, 13]]
    assert [head.tolist() for head in kept.of(2)] == [[4, 5], [14, 15]]


def test_when_the_teacher_runs_beside_the_student(lesson: TrainingData) -> None:
    from runner.config.compose import compose_experiment
    from runner.stages.teacher import caches_logits

    def kept(*overrides: str) -> bool:
        experiment, _ = compose_experiment(["model=tiny", "dataset=demo", *overrides])
        return caches_logits(experiment, lesson)

    assert kept()
    assert not kept("distill.cache=false")
    assert not kept("distill=simkd")
    assert SimKD.needs_hidden
    assert not kept("train.max_steps=1")  # a part of an epoch: the features that it does not see would be in vain
    assert not kept("train.num_train_epochs=0.5")
