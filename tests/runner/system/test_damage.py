"""Damaged files in the cache or in a run's folder are never used: they are reported, and made again or refused."""

import json
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning import Block, Gradual, NoDistillation, Plan, Pruner, TrainingLength
from runner import models, tracking
from runner.config.compose import compose_experiment
from runner.config.experiment import Experiment
from runner.config.training import Training
from runner.data.demo import Demo
from runner.data.question_answering import Span
from runner.demo.text import examples as demo_examples
from runner.models import Model
from runner.models.footprint import Footprint
from runner.models.verify import Verification
from runner.records.identity import Identity
from runner.records.result import Result
from runner.stages import finetune
from runner.stages.prepare import finished
from runner.stages.score import score_once
from runner.system import files
from runner.system.device import Precision
from runner.system.errors import UserError, database_reason, disk_reason, writing, writing_database
from runner.system.process import message
from runner.training import checkpoints, teacher_logits
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.conftest import few, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import Recorder, train

pytestmark = pytest.mark.usefixtures("one_thread")

ARCHITECTURE = "AutoModelForQuestionAnswering"


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def emptied(file: Path) -> None:
    file.write_bytes(b"")


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def deleted(file: Path) -> None:
    file.unlink()


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()
    (file / "inside").touch()


def other_json(file: Path) -> None:
    file.write_text("{}")


DAMAGES = (cut, emptied, flipped, deleted, a_folder, other_json)
Damage = Callable[[Path], None]
each_damage = pytest.mark.parametrize("damage", few(DAMAGES), ids=lambda damage: damage.__name__)


@dataclass
class Workplace:
    """What the stages need."""

    experiment: Experiment
    base: models.Checkpoint
    lesson: TrainingData

    def finetuning(self, cache: Path) -> finetune.FinetuningTask:
        """A fine-tuning whose model is cached under "key"."""
        return finetune.FinetuningTask(self.experiment, self.base, self.lesson, cache / "dense" / "key")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    folder = tmp_path_factory.mktemp("workplace")
    path = str(save_small_model(folder / "model", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    experiment, _ = compose_experiment(["model=hub", f"model.path={path}", "dataset=demo"])
    task, tokenizer = Demo(train_examples=24, eval_examples=8), build_tokenizer()
    examples = task.read().train
    assert examples is not None
    features = task.features(examples, tokenizer, None, labels=True)
    return Workplace(
        experiment, models.find(path, "model.path", experiment.model), TrainingData(task, features, tokenizer)
    )


def spoilt_in_turn(
    pristine: Path,
    again: Callable[[], None],
    damage: Damage,
    log: pytest.LogCaptureFixture,
    content: Callable[[Path], Any] = Path.read_bytes,
) -> int:
    """Damage each file of an entry, run the stage again, and check that the entry is as before and the damage logged.

    Args:
        content: of a file, which must be the same again.

    Returns:
        How many files there were.
    """
    before = {file: content(file) for file in pristine.rglob("*") if file.is_file() and file.suffix != ".lock"}
    for file in before:
        damage(file)
        log.clear()
        again()
        warnings = [record for record in log.records if "is damaged" in record.message]
        alone = deleted is damage and file.parent == pristine  # an entry of one file is then just not there
        assert alone or [record.levelno for record in warnings] == [logging.WARNING], file
        assert {found: content(found) for found in before} == before, file
        assert not list(pristine.rglob("*.tmp-*"))
    log.clear()
    again()
    assert "is damaged" not in log.text
    return len(before)


# --- what runs keep for each other --------------------------------------------------------------------------


@each_damage
def test_a_dense_model(
    damage: Damage, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr("runner.training.loop.train", lambda *given: None)
    monkeypatch.setattr(workplace.experiment, "cache_dir", str(tmp_path))
    (tmp_path / "dense" / f"key.tmp-{os.getpid()}").mkdir(parents=True)  # of a killed process of the same number

    def again() -> None:
        found = finetune.finetune_once(workplace.finetuning(tmp_path))
        assert models.load(ARCHITECTURE, found).config.hidden_size == 32
        assert models.load_tokenizer(found).is_fast

    again()
    assert spoilt_in_turn(tmp_path / "dense", again, damage, caplog) >= 5


def test_a_dense_model_is_found_again(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    trained: list[int] = []
    monkeypatch.setattr("runner.training.loop.train", lambda *given: trained.append(1))
    monkeypatch.setattr(workplace.experiment, "cache_dir", str(tmp_path))
    place = tmp_path / "dense" / "key"

    def again() -> int:
        finetune.finetune_once(workplace.finetuning(tmp_path))
        return len(trained)

    assert [again(), again()] == [1, 1]
    shutil.rmtree(place)
    assert again() == 2
    assert "is damaged" not in caplog.text
    shutil.rmtree(place)
    place.touch()
    assert [again(), again()] == [3, 3]
    assert files.integrity_error(place) is None


@each_damage
def test_an_interrupted_fine_tuning(
    damage: Damage, workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    how = Training(per_device_train_batch_size=8, max_steps=4, save_steps=1, save_total_limit=2, logging_steps=1,
                   learning_rate=1e-3, precision=Precision.float32)  # fmt: skip
    monkeypatch.setattr(workplace.experiment, "finetune", how)
    weights = []
    for name in ("whole", "interrupted"):
        monkeypatch.setattr(workplace.experiment, "cache_dir", str(tmp_path / name))

        def log(step: int, values: Any, name: str = name) -> None:
            if name == "interrupted" and step == 4:
                raise KeyboardInterrupt

        task = workplace.finetuning(tmp_path / name)

        def tune(log: Callable[..., None], task: finetune.FinetuningTask = task) -> models.Checkpoint:
            return finetune.finetune_once(task, Recorder(log))

        if name == "interrupted":
            with pytest.raises(KeyboardInterrupt):
                tune(log)
            work = tmp_path / name / "dense" / "key.work"
            assert checkpoints.newest(work) == work / "checkpoint-3"
            damage(work / "checkpoint-3" / "optimizer.pt")
            caplog.clear()
        found = tune(lambda step, values: None)
        weights.append((Path(found.path) / "model.safetensors").read_bytes())
    assert "checkpoint-3 is damaged (optimizer.pt is" in caplog.text
    assert weights[0] == weights[1]
    assert [p.name for p in (tmp_path / "interrupted" / "dense").iterdir() if p.suffix != ".lock"] == ["key"]


@each_damage
def test_the_teachers_logits(
    damage: Damage, workplace: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def again() -> None:
        learnt = workplace.lesson
        logits = teacher_logits.teacher_logits(
            workplace.base, learnt.tokenizer, learnt.task, learnt.features, Precision.float32, tmp_path
        )
        assert all(head.dtype is torch.float16 and bool(head.isfinite().all()) for head in logits.heads)

    def content(file: Path) -> Any:  # its header comes in any order
        return {name: tensor.tolist() for name, tensor in load_file(file).items()}

    again()
    assert spoilt_in_turn(tmp_path, again, damage, caplog, content) == 1


def test_logits_whose_type_was_spoilt(workplace: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In the header, which the checksum of the numbers does not hold: F16 becomes I16."""

    def again() -> teacher_logits.CachedLogits:
        learnt = workplace.lesson
        return teacher_logits.teacher_logits(
            workplace.base, learnt.tokenizer, learnt.task, learnt.features, Precision.float32, tmp_path
        )

    first = again()
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes().replace(b'"F16"', b'"I16"', 1))
    assert all(torch.equal(a, b) for a, b in zip(again().heads, first.heads, strict=True))
    assert "is damaged" in caplog.text


@each_damage
def test_features(damage: Damage, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    task, tokenizer = Demo(train_examples=24, eval_examples=8), build_tokenizer()
    examples = task.read().train
    assert examples is not None
    whole = list(task.features(examples, tokenizer, None, labels=True))

    def again() -> None:
        assert list(task.features(examples, tokenizer, tmp_path, labels=True)) == whole

    again()
    assert spoilt_in_turn(tmp_path, again, damage, caplog) == 2


@each_damage
def test_scores(damage: Damage, workplace: Workplace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    experiment = replace(workplace.experiment, dataset=workplace.lesson.task, cache_dir=str(tmp_path))
    examples = experiment.dataset.read(train=False)
    inputs: Any = SimpleNamespace(experiment=experiment, examples=examples, tokenizer=workplace.lesson.tokenizer)
    found = []

    def again() -> None:
        found.append(score_once(inputs, workplace.base))
        assert found[-1] == found[0]

    again()
    assert len(found[0].predictions) == 8
    assert spoilt_in_turn(tmp_path / "scores", again, damage, caplog) == 1


# --- a run's folder -----------------------------------------------------------------------------------------


@each_damage
def test_a_finished_run(
    damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "is_finished", lambda where, run: run == "finished")
    folder = tmp_path / "run"
    with files.atomic_folder(folder / "model") as model:
        save_small_model(model)
    (folder / "model" / "pruning.json").write_text("{}")  # written after the seal
    scores = {"f1": 0.5}
    result = Result("m", "d", "4x1", 0, "f1", scores, scores, 0.0, Verification(0.8, 0.4, 0.8, 0), "identity", "group",
                    str(folder), "finished", {"seconds": {}}, Footprint(4, 3, 2, 1), {"prune": "hash"})  # fmt: skip
    files.write_json(folder / "result.json", asdict(result))

    def found() -> Result | None:
        return finished([folder / "result.json"], Identity("identity", "", "", "", ""), tracking.Tracking())

    assert found() == result
    assert "is damaged" not in caplog.text
    shutil.copytree(folder, tmp_path / "pristine")
    paths = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    paths.remove(Path("model/pruning.json"))
    assert len(paths) >= 6
    for file in paths:
        caplog.clear()
        damage(folder / file)
        assert found() is None, file
        assert "is damaged" in caplog.text or (damage, file) == (deleted, Path("result.json"))
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "pristine", folder)
    assert found() == result


@pytest.fixture(scope="module")
def trained(workplace: Workplace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training with checkpoints at steps 3, 6 and 7, and its weights."""
    before, folder = torch.get_num_threads(), tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)  # as in what is compared with it
    save_file(prune_while_training(workplace, folder / "run", lambda step, values: None), folder / "weights")
    torch.set_num_threads(before)
    return folder


def prune_while_training(workplace: Workplace, folder: Path, log: Callable[..., None]) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = models.load(ARCHITECTURE, workplace.base)
    schedule = Gradual(start="1", decay="linear", end="5", frequency="2")
    weights = models.prunable_parameters(model, Model(path="x"))
    pruner = Pruner(Plan(weights, Block(4, 1, target_sparsity=0.8)), schedule, TrainingLength(7))
    how = Training(per_device_train_batch_size=8, max_steps=7, save_steps=3, save_total_limit=3, logging_steps=1,
                   learning_rate=1e-3, precision=Precision.float32)  # fmt: skip
    train(model, workplace.lesson, how, Supervision(NoDistillation()), pruner, 0, folder, "t", log)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@each_damage
def test_a_checkpoint(damage: Damage, workplace: Workplace, trained: Path, tmp_path: Path,
                      caplog: pytest.LogCaptureFixture) -> None:  # fmt: skip
    folder = tmp_path / "run"
    shutil.copytree(trained / "run", folder)
    last = folder / "checkpoint-7"
    paths = [file for file in last.rglob("*") if file.is_file()]
    assert {file.name for file in paths} >= {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth",
                                             "trainer_state.json", "pruner.safetensors", "meter.json",
                                             "sealed.json"}  # fmt: skip
    for file in paths:
        caplog.clear()
        damage(file)
        assert checkpoints.newest(folder) == folder / "checkpoint-6"
        assert f"{last} is damaged (" in caplog.text
        shutil.rmtree(last)
        shutil.copytree(trained / "run" / last.name, last)
    assert checkpoints.newest(folder) == last
    damage(last / "pruner.safetensors")
    damage(folder / "checkpoint-6" / "model.safetensors")
    (folder / "checkpoint-9").touch()  # a file, not a folder
    steps: list[int] = []
    after = prune_while_training(workplace, folder, lambda step, values: steps.append(step))
    assert steps == [4, 5, 6, 7]
    whole = load_file(trained / "weights")
    assert all(torch.equal(after[name], whole[name]) for name in whole)
    assert [files.integrity_error(folder / f"checkpoint-{step}") for step in (3, 6, 7)] == [None, None, None]
    assert not (folder / "checkpoint-9").exists()


def test_a_damaged_checkpoint_does_not_push_sound_ones_out(tmp_path: Path) -> None:
    def checkpoint(step: int) -> Path:
        with files.atomic_folder(tmp_path / f"checkpoint-{step}") as folder:
            (folder / "weights").write_text(str(step))
        return tmp_path / f"checkpoint-{step}"

    (checkpoint(30) / "weights").write_text("damaged")
    assert checkpoints.newest(tmp_path) is None
    checkpoints.rotate(checkpoint(10), 1)  # the training began anew
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-30").exists()


# --- data ---------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where datasets keeps what it loads "from the hub", which here is a folder."""
    import datasets

    (tmp_path / "source").mkdir()
    rows = datasets.Dataset.from_list([dict(example) for example in demo_examples(60, seed=0)])
    rows.to_parquet(tmp_path / "source" / "train.parquet")
    rows.select(range(20)).to_parquet(tmp_path / "source" / "validation.parquet")
    real = datasets.load_dataset
    cache = tmp_path / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", cache)  # type: ignore[attr-defined]
    monkeypatch.setattr(datasets, "load_dataset", lambda path, name, revision: real(str(tmp_path / "source"),
                                                                                    cache_dir=str(cache)))  # fmt: skip
    return cache


@each_damage
def test_the_cache_of_datasets(damage: Damage, hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = Span(path="owner/questions")
    monkeypatch.setattr("runner.system.hub._listens", lambda endpoint: True)
    whole = task.read().train_fingerprint
    assert task.read().train_fingerprint == whole
    shutil.copytree(hub_cache, hub_cache.with_name("pristine"))
    paths = [f for f in hub_cache.rglob("*") if f.is_file() and f.suffix != ".lock" and "_builder" not in f.name]
    assert len(paths) == 4  # two splits, dataset_info.json, and our checksums
    for file in paths:
        damage(file)
        said = ""
        try:
            assert task.read().train_fingerprint == whole, file
        except UserError as error:
            said = str(error)
        # What is not needed may be damaged; of dataset_info.json some is.
        assert said or file.name in ("checksums.prune-distill.json", "dataset_info.json"), file
        assert not said or re.search("dataset.path=owner/questions: .*damaged.*delete .*it is created again", said)
        assert not said or str(hub_cache) in said
        shutil.rmtree(hub_cache)
        shutil.copytree(hub_cache.with_name("pristine"), hub_cache)


@each_damage
@pytest.mark.parametrize("suffix", ["parquet", "json", "jsonl"])
def test_a_local_dataset(damage: Damage, suffix: str, tmp_path: Path) -> None:
    import datasets

    rows = datasets.Dataset.from_list([dict(example) for example in demo_examples(60, seed=0)])
    for split in ("train", "dev"):
        file = tmp_path / f"{split}.{suffix}"
        if suffix == "parquet":
            rows.to_parquet(file)
        else:
            rows.to_json(file)
    if damage is flipped:
        return  # the user's own data: whatever stands in it is taken, under its own fingerprint
    file = tmp_path / f"train.{suffix}"
    damage(file)
    # A file without any question is one without columns, which is said of the split.
    with pytest.raises(UserError, match=f"{tmp_path}.*(cannot be read as {suffix}|train split|there are no examples)"):
        Span(path=str(tmp_path)).read()


# --- a disk that is full ------------------------------------------------------------------------------------


def test_what_the_disk_refuses_is_told_by_its_place(tmp_path: Path) -> None:
    said = (
        (OSError(28, "No space left on device"), "No space left on device; free space"),
        (Exception("No space left on device (os error 28)"), "No space left on device; free space"),  # of tokenizers
        (RuntimeError("Error while serializing: I/O error: Read-only file system (os error 30)"),
         "Read-only file system; choose a place that this user can write to"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "to its end; free space"),
    )  # fmt: skip
    for error, reason in said:
        with pytest.raises(UserError, match=f"cannot write to {tmp_path}: .*{reason}"), writing(tmp_path):
            raise error
    for error in (ConnectionError(111, "refused"), RuntimeError("shapes differ"), UserError("x (os error 28)")):
        assert disk_reason(error) is None
        with pytest.raises(type(error)) as caught, writing(tmp_path):
            raise error
        assert caught.value is error


def test_a_database_without_space_is_told(tmp_path: Path) -> None:
    def full() -> None:
        try:
            raise sqlite3.OperationalError("database or disk is full")
        except sqlite3.OperationalError as error:
            raise RuntimeError("wrapped") from error

    with pytest.raises(RuntimeError) as bare:
        full()
    assert database_reason(bare.value) == "database or disk is full"
    assert "tracking.uri" in str(message(bare.value))
    uri = f"sqlite:///{tmp_path}/a.db"
    with pytest.raises(UserError, match=f"cannot write to tracking.uri={uri}: database or disk"), writing_database(uri):
        full()
    assert database_reason(sqlite3.OperationalError("no such table: runs")) is None


def test_json_with_a_checksum(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "a.json"
    assert files.read_json(file) is None
    values = {"a": 0.1, "b": {"1": [None, "é", 1e-300]}, "path": tmp_path}
    files.write_json(file, values)
    assert files.read_json(file) == {**values, "path": str(tmp_path)}
    assert json.loads(file.read_text())[files.CHECKSUM]
    assert not caplog.text
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
