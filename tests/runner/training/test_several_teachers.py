"""Several teachers: cached and live ones teach alike, each reads its own inputs, and a run records them all."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning import Logits, LogitsHidden
from runner import models
from runner.config.compose import compose_experiment
from runner.config.restore import new_place
from runner.config.training import Training
from runner.data.demo import Demo
from runner.models import Model
from runner.records import runs
from runner.stages.prepare import disk_needs, resolve
from runner.stages.teacher import supervision_of
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.training.supervision import Supervision
from runner.training.teacher_logits import joined, teacher_logits
from runner.training.training_data import TrainingData
from tests.conftest import Cli, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import quiet, train

pytestmark = pytest.mark.usefixtures("one_thread")

QA = "AutoModelForQuestionAnswering"
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.5}
INPUTS = ("input_ids", "token_type_ids", "attention_mask")


@pytest.fixture(scope="module")
def data() -> TrainingData:
    task, tokenizer = Demo(train_examples=24, eval_examples=4), build_tokenizer()
    examples = task.read()
    assert examples.train is not None
    features = task.features(examples.train, tokenizer, None, labels=True)
    return TrainingData(task, features, tokenizer, (INPUTS, INPUTS))


def checkpoint(folder: Path, kind: str = "bert", **changes: Any) -> models.Checkpoint:
    path = str(save_small_model(folder, kind, **changes))
    return models.find(path, "distill.teacher", Model(path=path))


def first_losses(folder: Path, data: TrainingData, supervision: Supervision) -> list[float]:
    """The losses of three steps of the same student."""
    losses: list[float] = []
    student = models.load(QA, checkpoint(folder.parent / "student", seed=9, **NO_DROPOUT))
    how = Training(per_device_train_batch_size=8, max_steps=3, learning_rate=1e-3, logging_steps=1,
                   precision=Precision.float32)  # fmt: skip
    train(student, data, how, supervision, None, 0, folder, "t", lambda step, values: losses.append(values["loss"]))
    return losses


def test_cached_and_live_teachers_teach_alike(tmp_path: Path, data: TrainingData) -> None:
    both = [checkpoint(tmp_path / f"t{seed}", seed=seed, **NO_DROPOUT) for seed in (1, 2)]
    logits = [
        teacher_logits(each, data.tokenizer, data.task, data.features, Precision.float32, tmp_path / "cache")
        for each in both
    ]
    assert joined(logits[:1]) is logits[0]
    together = joined(logits)
    assert together.checksum() not in {each.checksum() for each in logits}
    assert together.checksum() != joined(logits[::-1]).checksum()
    first, second = (models.load(QA, each) for each in both)
    cached = first_losses(tmp_path / "cached", data, Supervision(Logits(), logits=together))
    live = first_losses(tmp_path / "live", data, Supervision(Logits(), first, others=(second,)))
    alone = first_losses(tmp_path / "alone", TrainingData(data.task, data.features, data.tokenizer),
                         Supervision(Logits(), logits=logits[0]))  # fmt: skip
    assert len(cached) == 3
    assert cached == pytest.approx(live, rel=5e-3)
    assert cached != pytest.approx(alone, rel=5e-2)
    assert not any(p.requires_grad for p in (*first.parameters(), *second.parameters()))


def test_each_live_teacher_gets_its_inputs_and_only_the_first_gives_hidden_states(
    tmp_path: Path, data: TrainingData
) -> None:
    first = models.load(QA, checkpoint(tmp_path / "distil", "distilbert"))
    second = models.load(QA, checkpoint(tmp_path / "bert", seed=1))
    mixed = TrainingData(data.task, data.features, data.tokenizer, (("input_ids", "attention_mask"), INPUTS))
    student, seen = models.load(QA, checkpoint(tmp_path / "s", seed=2)), []
    for model in (first, second):
        model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    how = Training(per_device_train_batch_size=8, max_steps=1, precision=Precision.float32)
    supervision = Supervision(LogitsHidden(), first, others=(second,))
    train(student, mixed, how, supervision, None, 0, tmp_path / "run", "t", quiet)
    assert seen == [{"input_ids", "attention_mask", "output_hidden_states"}, {*INPUTS}]


# --- whole runs ---------------------------------------------------------------------------------------------

SHORT = (
    "dataset=demo", "dataset.train_examples=32", "dataset.eval_examples=16", "recipe=published",
    "schedule=short", "pattern=4x1",
    "train.num_train_epochs=1", "train.per_device_train_batch_size=8", "finetune.num_train_epochs=1",
    "finetune.per_device_train_batch_size=8", "train.precision=float32", "finetune.precision=float32",
)  # fmt: skip
GIVEN = (*SHORT, "model=hub", "model.path=s", "model.finetuned=s", "tracking.uri=sqlite:///x.db")


@pytest.fixture
def models_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a student `s` and the teachers `a` and `b`."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("sab"):
        save_small_model(tmp_path / name, seed=seed)
    return tmp_path


def prepared(*overrides: str) -> Any:
    return resolve(*compose_experiment([*GIVEN, *overrides]), reuse=False)


def test_what_determines_a_run_with_several_teachers(models_here: Path) -> None:
    one, listed, both, turned = (prepared(f"distill.teacher={teachers}") for teachers in ("a", "[a]", "[a,b]", "[b,a]"))
    assert one.identity == listed.identity
    assert len({each.identity.run for each in (one, both, turned)}) == 3
    assert both.identity.dense == one.identity.dense
    assert both.identity.control != one.identity.control
    assert both.identity.budget == one.identity.budget
    (of_one,), (of_both,) = (
        [need for need in disk_needs(each, 0) if need.folder.name == "teacher"] for each in (one, both)
    )
    assert (of_one.what, of_both.what) == ("the teacher's logits", "the logits of 2 teachers")
    assert of_both.bytes == 2 * of_one.bytes > 0
    teachers = both.sources.teachers
    supervision = supervision_of(both.experiment, both.data, teachers, None)
    assert supervision.logits is not None
    assert len(supervision.logits.parts) == 2
    assert supervision.teachers == []
    files = {file.name for file in (models_here / "cache" / "teacher").glob("*.safetensors")}
    assert len(files) == 2
    again = supervision_of(turned.experiment, turned.data, turned.sources.teachers, None)
    assert {file.name for file in (models_here / "cache" / "teacher").glob("*.safetensors")} == files
    assert again.logits is not None
    assert torch.equal(again.logits.heads[0], supervision.logits.heads[2])
    live = supervision_of(*_without_cache(both))
    assert len(live.teachers) == 2
    assert live.logits is None


def _without_cache(inputs: Any) -> tuple[Any, ...]:
    other = prepared("distill.teacher=[a,b]", "distill.cache=false")
    return other.experiment, inputs.data, inputs.sources.teachers, None


def test_teachers_that_cannot_teach_together_are_refused(models_here: Path) -> None:
    shutil.copytree("a", "copy")
    for second, shown in (("a", "a"), ("./a", "a"), ("copy", "copy")):
        with pytest.raises(UserError) as caught:
            prepared(f"distill.teacher=[a,{second}]")
        assert str(caught.value) == (
            f"distill.teacher={shown}: it is the model of a, which would count twice; name each teacher once"
        )
    with pytest.raises(UserError, match=r"^distill.teacher=./nowhere: there is no such folder"):
        prepared("distill.teacher=[a,./nowhere]")
    with pytest.raises(UserError, match=r"^distill.teacher: a name in this path has 300 bytes"):
        prepared(f"distill.teacher=[a,{'x' * 300}]")


def test_moved_teachers_are_named_as_a_list() -> None:
    assert runs.places(["distill.teacher=[x/a, 'y/b']", "model.path=[c]"]) == {
        "distill.teacher": ["x/a", "y/b"],
        "model.path": "[c]",
    }
    assert runs.places(["distill.teacher=x"]) == {"distill.teacher": "x"}
    recorded = {"distill": {"teacher": ["a", "b"]}, "model": {"path": "m"}}
    assert new_place(recorded, "distill.teacher") == "distill.teacher=[PLACE,PLACE]"
    assert new_place(recorded, "model.path") == "model.path=PLACE"


@pytest.mark.slow
def test_two_dense_runs_teach_a_third(cli: Cli, tmp_path: Path) -> None:
    def run(*overrides: str) -> str:
        done = cli("-m", "runner", "model=tiny", *SHORT, *overrides)
        assert done.returncode == 0, done.stderr
        return done.stderr

    for seed in (1, 2):
        run("prune=false", f"seed={seed}", "output_dir=teachers")
    first, second = sorted(path.name for path in (tmp_path / "teachers").iterdir())
    both = f"distill.teacher=[teachers/{first},teachers/{second}]"
    stderr = run(both, "output_dir=both")
    assert stderr.count("the teacher runs once over 32 features") == 2
    stderr = run(f"distill.teacher=teachers/{second}", "output_dir=one")
    assert "the teacher runs once" not in stderr
    run(both, "output_dir=hidden", "distill=logits_hidden")

    results = {}
    for name in ("both", "one", "hidden"):
        (folder,) = (tmp_path / name).iterdir()
        results[name] = json.loads((folder / "result.json").read_text())
        card = (folder / "model" / "README.md").read_text()
        shown = f"mean of the teachers: `{first}`, `{second}`" if name != "one" else f"teacher: `{second}`"
        assert f"; {shown}" in card
        if name == "both":
            assert f"distilled from `{first}` and `{second}`" in card
            assert f"'distill.teacher=[path/to/{first},path/to/{second}]'" in card
            assert str(tmp_path) not in card
    fingerprints = {name: result["made_by"]["checkpoints"]["distill.teacher"] for name, result in results.items()}
    assert len(fingerprints["both"].split()) == 2
    assert fingerprints["both"] == fingerprints["hidden"]
    assert fingerprints["both"].split()[1] == fingerprints["one"]
    assert results["both"]["stages"]["teacher"] != results["one"]["stages"]["teacher"]
    assert "teacher" not in results["hidden"]["stages"]
    assert len({result["stages"]["prune"] for result in results.values()}) == 3

    (tmp_path / "teachers").rename(tmp_path / "moved")
    (folder,) = (tmp_path / "both").iterdir()
    places = f"distill.teacher=[moved/{first},moved/{second}]"
    done = cli("-m", "runner.reproduce", str(folder), places)
    assert done.returncode == 0, done.stderr
    assert "Reproduced bit for bit" in done.stdout
