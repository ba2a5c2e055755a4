"""model.frozen: which parameters its words and patterns stand for, and that a training leaves them as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pruning import Block, Gradual, NoDistillation, Plan, Pruner, TrainingLength
from runner import models
from runner.config.training import Training
from runner.data.demo import Demo
from runner.models import Model, freeze, trained_parameters
from runner.system import disk
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.conftest import NO_DATA, Cli, Refused, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import train


def small(folder: Path, kind: str = "bert"):
    path = str(save_small_model(folder, kind))
    return models.load("AutoModelForQuestionAnswering", models.find(path, "model.path", Model(path=path)))


def frozen(net) -> set[str]:
    return {name for name, p in net.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize(("name", "wanted"), [
    ("embeddings", r"\.embeddings\.\w+_embeddings\.weight"),
    ("layer_norms", r"LayerNorm\.(weight|bias)"),
    ("biases", r"\.bias$"),
    ("head", r"^qa_outputs\."),
    ("bert.encoder.layer.0", r"^bert\.encoder\.layer\.0\."),
    ("*.layer.?.attention.self.query", r"query\.(weight|bias)$"),
    ("*.query.bias", r"query\.bias$"),
])  # fmt: skip
def test_what_a_word_or_a_pattern_stands_for(tmp_path: Path, name: str, wanted: str) -> None:
    net = small(tmp_path)
    expected = {n for n, _ in net.named_parameters() if re.search(wanted, n)}
    assert 0 < len(expected) < len(list(net.parameters()))
    freeze(net, [name])
    assert frozen(net) == expected
    assert trained_parameters(net) == sum(p.numel() for n, p in net.named_parameters() if n not in expected)


def test_several_names_add_up_and_none_freezes_nothing(tmp_path: Path) -> None:
    net = small(tmp_path, "distilbert")
    freeze(net, [])
    assert frozen(net) == set()
    freeze(net, ["embeddings", "layer_norms"])
    assert {n for n in frozen(net) if "embeddings" in n} == {
        f"distilbert.embeddings.{table}" for table in
        ("word_embeddings.weight", "position_embeddings.weight", "LayerNorm.weight", "LayerNorm.bias")
    }  # fmt: skip
    assert len(frozen(net)) == 2 + 2 * (1 + 2 * 2)


def test_a_name_that_matches_nothing_is_refused_with_the_nearest(tmp_path: Path) -> None:
    net = small(tmp_path)
    for name, meant in (("embedding", "embeddings"), ("layer_norm", "layer_norms"), ("bert.encoders", "bert.encoder")):
        with pytest.raises(UserError, match=rf"model.frozen: '{name}' matches no parameter.*did you mean {meant}\?"):
            freeze(net, [name])
    with pytest.raises(UserError, match=r"'qqq' matches no .*; write embeddings, layer_norms, .* such as bert"):
        freeze(net, ["qqq"])
    with pytest.raises(UserError, match=r"model.frozen=\['\*'\] leaves nothing to train"):
        freeze(net, ["*"])


@pytest.mark.usefixtures("one_thread")
def test_a_training_with_weight_decay_leaves_frozen_parameters_bit_for_bit(tmp_path: Path) -> None:
    task, tokenizer = Demo(train_examples=24, eval_examples=8), build_tokenizer()
    examples = task.read()
    assert examples.train is not None
    data = TrainingData(task, task.features(examples.train, tokenizer, None, labels=True), tokenizer)
    net = small(tmp_path / "model")
    freeze(net, ["embeddings", "layer_norms"])
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    plan = Plan(models.prunable_parameters(net, Model(path="x")), Block(4, 1))
    pruner = Pruner(plan, Gradual(start="1", end="4", frequency="1"), TrainingLength(6))
    settings = Training(per_device_train_batch_size=4, max_steps=6, learning_rate=1e-3, weight_decay=0.1, save_steps=6,
                        average_weights=0.9, precision=Precision.float32)  # fmt: skip
    train(net, data, settings, Supervision(NoDistillation()), pruner, 0, tmp_path / "run")
    assert len(frozen(net)) == 3 + 2 * 5
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]) == (not p.requires_grad), name
    # Neither moments nor an average of them in the checkpoint, and the estimate of its size counts none.
    checkpoint = tmp_path / "run" / "checkpoint-6"
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)["state"].values()
    trained = trained_parameters(net)
    assert sum(state["exp_avg"].numel() for state in moments) == trained
    average = load_file(checkpoint / "average.safetensors")
    assert not frozen(net) & average.keys()
    frozen_count = net.num_parameters() - trained
    assert disk.training_bytes(net.num_parameters(), 0, frozen=frozen_count) == 4 * net.num_parameters() + 8 * trained


SHORT = ("model=tiny", "dataset=demo", "dataset.train_examples=48", "dataset.eval_examples=16", "schedule=short",
         "train.max_steps=10", "train.per_device_train_batch_size=8", "finetune.max_steps=3", "pattern=4x1",
         "finetune.per_device_train_batch_size=8", "train.weight_decay=0.1")  # fmt: skip


@pytest.mark.slow
def test_a_run_with_frozen_parameters(cli: Cli, tmp_path: Path) -> None:
    command = ("-m", "runner", *SHORT, "model.frozen=[embeddings,layer_norms]")
    tried = cli(*command, "dry_run=true")
    assert tried.returncode == 0, tried.stderr
    memory = re.search(r"memory: .*; ([\d,]+) of ([\d,]+) parameters are frozen", tried.stdout)
    assert memory is not None
    done = cli(*command)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").glob("*/")
    (dense,) = (tmp_path / "cache" / "dense").glob("*/model.safetensors")
    was, now = load_file(dense), load_file(run / "model" / "model.safetensors")
    same = {name for name in was if torch.equal(was[name], now[name])}
    assert same == {name for name in was if "LayerNorm" in name or "_embeddings" in name}
    counts = [sum(was[name].numel() for name in names) for names in (same, was)]
    assert [int(count.replace(",", "")) for count in memory.groups()] == counts
    assert json.loads((run / "result.json").read_text())["verification"]["violations"] == 0
    # The dense model is trained whole, so that rows with and without share it.
    other = cli("-m", "runner", *SHORT, "model.frozen=[]", "dry_run=true")
    assert "dense model: cached in cache/dense/" in other.stdout
    assert "frozen" not in other.stdout.replace("model.frozen", "")


def test_frozen_parameters_that_do_not_exist_are_refused(refused: Refused, tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "m")
    given = ["model=hub", f"model.path={model}", f"dataset.path={NO_DATA}"]
    assert "'embedings' matches no parameter of the model; did you mean embeddings?" in refused(
        *given, "model.frozen=[embedings]"
    )
    text = refused(*given, "model.frozen=['*.attention.*','*.intermediate.*','*.output.*']")
    assert "no layer can be pruned" in text
    assert "it is frozen" in text
    assert "prune=false only fine-tunes the dense model" in refused(*given, "model.frozen=[head]", "prune=false")
