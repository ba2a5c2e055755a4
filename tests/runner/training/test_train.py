"""The traps of training with Trainer: accumulation, resume, checkpoints, the saved file, tracking."""

import json
import logging
import os
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruning import Block, Gradual, Logits, NoDistillation, Plan, Pruner, PruningError, SimKD, TrainingLength
from runner import models, tracking
from runner.config.compose import compose_experiment
from runner.config.training import Training
from runner.experiment import run
from runner.models import Model
from runner.models.verify import VerificationError, read_tensors, verify
from runner.stages.checks import check_gradient
from runner.stages.prune import load_student
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.system.process import message
from runner.training import checkpoints
from runner.training.supervision import Supervision
from runner.training.trainer import PRUNER_FILE
from runner.training.training_data import TrainingData
from tests.conftest import ROOT, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import Interrupt, train

pytestmark = pytest.mark.usefixtures("one_thread")


def quiet(step: int, values: object) -> None:
    pass


def student(folder: Path, **changes: object):
    path = save_small_model(folder, **changes)  # type: ignore[arg-type]
    return models.load("AutoModelForQuestionAnswering", models.find(str(path), "model.path", Model(path=str(path))))


def new_pruner(model) -> Pruner:
    """To 80 % at steps 2, 4, 6 and 8 of 12."""
    schedule = Gradual(start="2", decay="linear", end="8", frequency="2")
    plan = Plan(models.prunable_parameters(model, Model(path="x")), Block(4, 1))
    return Pruner(plan, schedule, TrainingLength(12))


def settings(**changes: object) -> Training:
    values = {"per_device_train_batch_size": 4, "max_steps": 12, "learning_rate": 1e-3, "precision": Precision.float32}
    return Training(**{**values, **changes})  # type: ignore[arg-type]


def without_dropout() -> dict[str, object]:
    return {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def test_accumulation_does_not_change_the_gradient(tmp_path: Path, lesson: TrainingData) -> None:
    after = []
    for batch, accumulation in ((8, 1), (2, 4)):
        model = student(tmp_path / "model", **without_dropout())
        same = settings(
            per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation, max_steps=1,
            warmup_steps=0, adam_epsilon=1.0,
        )  # fmt: skip
        # An epsilon of 1 makes the first Adam step nearly proportional to the gradient, so a factor of 4 would show.
        before = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        train(model, lesson, same, Supervision(NoDistillation()), None, 0, tmp_path / f"run{batch}", "t", quiet)
        after.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach() - before)
    assert float((after[0] - after[1]).norm() / after[0].norm()) < 1e-3


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path: Path, lesson: TrainingData) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 7:
            raise Interrupt

    often = settings(save_steps=3, logging_steps=1)
    weights = {}
    for name in ("whole", "interrupted"):
        folder = tmp_path / name
        torch.manual_seed(0)
        for attempt in range(2 if name == "interrupted" else 1):
            torch.manual_seed(5)  # a new process starts from its seed
            model, teacher = student(tmp_path / "model"), student(tmp_path / "model")
            log = interrupt if name == "interrupted" and attempt == 0 else quiet
            pruner = new_pruner(model)
            try:
                train(model, lesson, often, Supervision(Logits(), teacher), pruner, 5, folder, "t", log)
                assert not (name == "interrupted" and attempt == 0)
            except Interrupt:
                assert checkpoints.newest(folder) == folder / "checkpoint-6"
        weights[name] = {n: p.detach().clone() for n, p in model.named_parameters()}
    assert all(torch.equal(weights["whole"][n], weights["interrupted"][n]) for n in weights["whole"])


def test_a_checkpoint_without_masks_is_not_resumed_from(tmp_path: Path, lesson: TrainingData) -> None:
    folder = tmp_path / "run"
    model = student(tmp_path / "model")
    supervision = Supervision(NoDistillation())
    train(model, lesson, settings(save_steps=5, save_total_limit=3), supervision, new_pruner(model), 0,
          folder, "t", quiet)  # fmt: skip
    assert checkpoints.newest(folder) == folder / "checkpoint-12"
    (folder / "checkpoint-12" / PRUNER_FILE).unlink()
    assert checkpoints.newest(folder) == folder / "checkpoint-10"


def test_the_teacher_does_not_change_and_pruned_weights_stay_zero(tmp_path: Path, lesson: TrainingData) -> None:
    model, teacher = student(tmp_path / "model"), student(tmp_path / "model")
    before = {n: p.detach().clone() for n, p in teacher.named_parameters()}
    pruner = new_pruner(model)
    train(model, lesson, settings(), Supervision(Logits(), teacher), pruner, 0, tmp_path / "run", "t", quiet)
    assert all(torch.equal(p, before[n]) for n, p in teacher.named_parameters())
    for row in pruner.report():
        weight = model.get_parameter(row.name)
        assert int((weight == 0).sum()) == row.zeros
        assert not torch.signbit(weight[weight == 0]).any()


def test_simkd_trains_with_the_teachers_head_frozen(tmp_path: Path, lesson: TrainingData) -> None:
    model, teacher = student(tmp_path / "a", seed=1), student(tmp_path / "b", seed=2)
    train(model, lesson, settings(), Supervision(SimKD(), teacher), None, 0, tmp_path / "run", "t", quiet)
    assert torch.equal(model.get_parameter("qa_outputs.weight"), teacher.get_parameter("qa_outputs.weight"))
    assert not model.get_parameter("qa_outputs.weight").requires_grad


def test_a_training_that_ends_early_is_an_error(tmp_path: Path, lesson: TrainingData) -> None:
    model = student(tmp_path / "model")
    with pytest.raises(PruningError, match="before the last mask update at step 8"):
        train(model, lesson, settings(max_steps=6), Supervision(NoDistillation()), new_pruner(model), 0,
              tmp_path / "run", "t", quiet)  # fmt: skip


def test_a_checkpoint_in_bfloat16_is_trained_in_float32(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    tensors = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    values = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(values))
    model = models.load("AutoModelForQuestionAnswering", models.find(str(folder), "k", Model(path="x")))
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_verify_reads_the_file(tmp_path: Path, lesson: TrainingData) -> None:
    model = student(tmp_path / "model")
    pruner = new_pruner(model)
    train(model, lesson, settings(), Supervision(NoDistillation()), pruner, 0, tmp_path / "run", "t", quiet)
    folder = tmp_path / "saved"
    model.save_pretrained(folder)
    architecture = "AutoModelForQuestionAnswering"
    found = verify(folder, architecture, pruner.report())
    tensors = read_tensors(folder)
    head = tensors["qa_outputs.weight"].numel()
    total = sum(tensors[row.name].numel() for row in pruner.report())
    zeros = sum(int((tensors[row.name] == 0).sum()) for row in pruner.report())
    assert found.linear_ratio == zeros / (total + head)
    assert found.overall_ratio == zeros / sum(tensor.numel() for tensor in tensors.values())
    assert found.sparsity == zeros / total == pytest.approx(0.8, abs=4 / total)
    assert found.violations == 0
    # One pruned weight brought back on disk, the model in memory unharmed: the file is what counts.
    name = next(row.name for row in pruner.report() if row.zeros)
    row, column = (tensors[name] == 0).nonzero()[0].tolist()
    tensors[name][row, column] = 0.5
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match=name):
        verify(folder, architecture, pruner.report())


def test_a_student_that_cannot_learn_is_refused(tmp_path: Path) -> None:
    path = save_small_model(tmp_path / "model")
    common = ["model=hub", f"model.path={path}", "dataset=demo", "schedule=short"]
    still = [*common, "model.hidden_dropout=0", "model.attention_dropout=0"]
    for overrides, refused in (
        ([*common, "pattern=dense"], False),
        ([*still, "pattern=dense"], True),
        ([*still, "pattern=4x1"], True),
        ([*still, "pattern=4x1", "criterion=magnitude"], False),
        ([*still, "pattern=dense", "distill.label_weight=1"], False),
        ([*still, "pattern=dense", "distill=none"], False),
    ):
        experiment, _ = compose_experiment(overrides)
        base = models.find(str(path), "model.path", experiment.model)
        net = models.skeleton(experiment.dataset.architecture, base.config)
        if refused:
            with pytest.raises(UserError, match="its gradient is zero"):
                check_gradient(experiment, net)
        else:
            check_gradient(experiment, net)


def test_dropout_settings_reach_the_model(tmp_path: Path) -> None:
    path = save_small_model(tmp_path / "model")
    settings_ = Model(path=str(path), hidden_dropout=0.25, attention_dropout=0.0)
    config = models.load("AutoModelForQuestionAnswering", models.find(str(path), "k", settings_)).config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.25, 0.0)


def test_the_pruning_has_a_dropout_of_its_own(tmp_path: Path) -> None:
    path = save_small_model(tmp_path / "model")
    common = ["model=hub", f"model.path={path}", "dataset=demo", "model.attention_dropout=0", "train.hidden_dropout=0"]
    for overrides, expected in ([], 0.0), (["pattern=dense"], 0.1):
        experiment, _ = compose_experiment([*common, *overrides])
        start = models.find(str(path), "model.path", experiment.model)
        assert models.max_dropout(load_student(experiment, start, None)) == expected
        assert start.config.hidden_dropout_prob == 0.1, "the dense model keeps its own"


def test_prunable_and_excluded_layers(tmp_path: Path) -> None:
    net = student(tmp_path / "model")
    everything = models.prunable_parameters(net, Model(path="x"))
    assert len(everything) == 12
    assert not any("embedding" in name or "qa_outputs" in name for name in everything)
    assert len(models.prunable_parameters(net, Model(path="x", prunable=["*.attention.*"]))) == 8
    assert len(models.prunable_parameters(net, Model(path="x", excluded=["*layer.0.*"]))) == 6
    with pytest.raises(UserError, match="atention"):
        models.prunable_parameters(net, Model(path="x", prunable=["*.atention.*"]))
    with pytest.raises(UserError, match="nothing to prune"):
        models.prunable_parameters(net, Model(path="x", excluded=["*"]))


def test_a_schedule_longer_than_the_training_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_small_model(tmp_path / "model")
    experiment, origin = compose_experiment(
        [
            "model=hub",
            f"model.path={path}",
            "dataset=demo",
            "dataset.train_examples=16",
            "dataset.eval_examples=4",
            "schedule.start=1000",
        ]
    )
    with pytest.raises(PruningError) as refusal:
        run(experiment, origin)
    assert "or use schedule=short, which fits any length" in str(message(refusal.value))
    assert not (tmp_path / "mlflow.db").exists()
    assert not (tmp_path / "outputs").exists()


def test_a_full_disk_is_one_message_and_leaves_no_half_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from runner.stages import finetune

    model = student(tmp_path / "model")

    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", full)
    with pytest.raises(UserError, match="No space left on device"):
        finetune.save_model(model, build_tokenizer(), tmp_path / "out" / "model")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_run_is_marked_and_its_error_is_kept(tmp_path: Path) -> None:
    where = tracking.Tracking(uri=f"sqlite:///{tmp_path}/deep/er/mlflow.db")

    def fail() -> None:
        with tracking.start(where, "r", {}) as tracker:
            tracker.step("train", 1, {"loss": 2.0})
            raise RuntimeError("it broke")

    with pytest.raises(RuntimeError, match="it broke"):
        fail()
    with sqlite3.connect(tmp_path / "deep" / "er" / "mlflow.db") as store:
        assert list(store.execute("select status from runs")) == [("FAILED",)]
        assert ("RuntimeError: it broke",) in list(store.execute("select value from tags where key='error'"))
        assert list(store.execute("select value from metrics")) == [(2.0,)]
        (location,) = store.execute("select artifact_location from experiments where name='prune-distill'")
    assert location[0] == (tmp_path / "deep" / "er" / "mlartifacts").as_uri()


@pytest.mark.slow
def test_four_processes_on_a_fresh_database(tmp_path: Path) -> None:
    code = (
        "from runner import tracking\n"
        "with tracking.start(tracking.Tracking(), 'r', {}) as t: t.metrics({'m': 1.0})\n"
    )  # fmt: skip
    jobs = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
        for _ in range(4)
    ]
    assert [job.wait(timeout=180) for job in jobs] == [0] * 4
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert list(store.execute("select status, count(*) from runs group by status")) == [("FINISHED", 4)]
        assert list(store.execute("select count(*) from metrics")) == [(4,)]


def test_the_log_says_what_was_left_dense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = student(tmp_path / "model", intermediate_size=66)
    pruner = new_pruner(model)
    assert caplog.text == ""  # a pruner that is only planned with says nothing
    with caplog.at_level(logging.WARNING, logger="pruning"):
        pruner.attach(torch.optim.AdamW(model.parameters()))
    assert "66" in caplog.text
    assert {row.name for row in pruner.report() if row.skipped} == {
        f"bert.encoder.layer.{i}.intermediate.dense.weight" for i in range(2)
    }


@pytest.mark.slow
def test_two_ranks_learn_what_one_learns(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model", **without_dropout())  # type: ignore[arg-type]
    script = [sys.executable, str(Path(__file__).with_name("ranks.py")), str(model)]
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(output: Path, **variables: str) -> subprocess.Popen[str]:
        output.mkdir(exist_ok=True)
        return subprocess.Popen([*script, str(output)], env={**plain, **variables}, cwd=tmp_path, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    meet = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [start(tmp_path / "one")]
    started += [start(tmp_path / "two", RANK=str(rank), LOCAL_RANK=str(rank), **meet) for rank in range(2)]
    for process in started:
        text, _ = process.communicate(timeout=240)
        assert process.returncode == 0, text
    alone = torch.load(tmp_path / "one" / "0.pt")
    first, second = (torch.load(tmp_path / "two" / f"{rank}.pt") for rank in range(2))
    assert alone["steps"] == first["steps"] == second["steps"] == 12
    # The 44 features are five batches of 8 and one of 4: each rank has half of every one.
    assert first["tokens"] == second["tokens"] == alone["tokens"]  # in all
    for name, weight in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        assert torch.equal(weight == 0, first["weights"][name] == 0), name  # the same masks
        assert torch.allclose(weight, first["weights"][name], atol=2e-4), name


@pytest.mark.parametrize("logging_steps", [1, 3])  # noticed when it is logged, or when it would be saved
def test_a_training_that_diverges_stops_and_keeps_the_last_good_checkpoint(
    logging_steps: int, tmp_path: Path, lesson: TrainingData
) -> None:
    model, folder = student(tmp_path / "model"), tmp_path / "run"

    def spoil(step: int, values: object) -> None:
        if step == 3:
            model.get_parameter("qa_outputs.weight").data.fill_(float("nan"))

    few, supervision = settings(save_steps=2, logging_steps=logging_steps), Supervision(NoDistillation())
    with pytest.raises(UserError, match=r"not finite at step 4: .*learning_rate"):
        train(model, lesson, few, supervision, None, 0,
              folder, "t", spoil)  # fmt: skip
    last = checkpoints.newest(folder)
    assert last is not None
    assert checkpoints.step(last) == 2
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last / "model.safetensors").values())
