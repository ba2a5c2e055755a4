"""Every option of the group `model` under its own id: which layers are pruned, real runs, and what is refused."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file
from torch import nn

import conf
from pruning import matrix_weights
from runner import dry_run, evaluate, models
from runner.config.compose import compose_experiment
from runner.config.experiment import Experiment
from runner.data.demo import Demo
from runner.inspect import inspect
from runner.models import Model, positions, prunable_parameters, skeleton
from runner.models.dropout import set_dropout
from runner.models.verify import Verification, verify
from runner.stages import finetune
from runner.stages.checks import check
from runner.stages.inputs import find_sources
from runner.stages.prune import PruningTask, train_student
from runner.system.errors import UserError
from runner.training.training_data import TrainingData
from tests.conftest import Cli, cli_in, save_small_model
from tests.families import FAMILIES, WIDTH, Family, save, word_pieces
from tests.loopback_hub import serve

QA = "AutoModelForQuestionAnswering"
TOKENS = 128
SHORT = (
    "dataset=demo", "dataset.train_examples=40", "dataset.eval_examples=8", "recipe=published", "schedule=short",
    "train.max_steps=6", "train.per_device_train_batch_size=4", "train.warmup_steps=1", "train.learning_rate=1e-3",
    "finetune.max_steps=1", "finetune.per_device_train_batch_size=4",
)  # fmt: skip
NAMES = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All families under their ids."""
    root = tmp_path_factory.mktemp("hub")
    with models.quiet_loading():
        for family in FAMILIES.values():
            save(family, root / "models" / family.path)
    return root


@pytest.fixture(scope="module")
def runs(hub: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all families were pruned to 4x1 by one command."""
    place = tmp_path_factory.mktemp("runs")
    with serve(hub, place / "home") as env:
        done = cli_in(place)(
            "-m", "runner", "-m", f"model={','.join(FAMILIES)}", "pattern=4x1", *SHORT, env=env, timeout=170,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return place


@dataclass
class Done:
    """What a run left."""

    folder: Path
    family: Family
    result: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def model(self) -> Path:
        return self.folder / "model"


@pytest.fixture(params=FAMILIES)
def done(request: pytest.FixtureRequest, runs: Path) -> Done:
    (folder,) = (runs / "outputs").glob(f"{request.param}-demo-4x1-s0-*")
    result = json.loads((folder / "result.json").read_text())
    return Done(folder, FAMILIES[request.param], result, load_file(folder / "model" / "model.safetensors"))


@cache
def experiment_of(name: str, hub: Path, *overrides: str) -> Experiment:
    """The default experiment of a family. Each only once: a composition takes a third of a second."""
    return compose_experiment([f"model={name}", f"model.path={hub / 'models' / FAMILIES[name].path}", *overrides])[0]


def found(name: str, hub: Path, **settings: float) -> tuple[models.Checkpoint, Any]:
    """The checkpoint of a family and its network, without weights."""
    experiment = experiment_of(name, hub)
    checkpoint = find_sources(replace(experiment, model=replace(experiment.model, **settings))).base
    return checkpoint, skeleton(QA, checkpoint.config)


def test_every_option_is_tested() -> None:
    folder = Path(conf.__file__).parent / "model"
    options = {file.stem for file in folder.glob("*.yaml")}
    elsewhere = {"bert-mini", "distilbert", "bert-base", "bert-large", "tiny", "hub"}  # test_run.py, test_newcomer.py
    assert options == FAMILIES.keys() | elsewhere
    assert len(FAMILIES) == len(options) - len(elsewhere) == 10
    for name, family in FAMILIES.items():
        values = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert (values["path"], values["model_type"]) == (family.path, family.kind)


# --- which layers -------------------------------------------------------------------------------------------


@NAMES
def test_attention_and_feed_forward_layers_are_pruned_and_nothing_else(name: str, hub: Path) -> None:
    family, (_, net) = FAMILIES[name], found(name, hub)
    chosen = prunable_parameters(net, Model(path=family.path))
    assert sorted(chosen) == sorted(f"{layer}.weight" for layer in family.pruned)
    left = [layer.removesuffix(".weight") for layer in matrix_weights(net) if layer not in chosen]
    assert sorted(left) == sorted(family.dense)


@pytest.mark.parametrize(
    ("kind", "count"),
    [
        *[(kind, 12 * 6) for kind in ("camembert", "xlm-roberta", "roformer", "ernie", "data2vec-text", "big_bird")],
        ("rembert", 32 * 6),  # and an embedding_hidden_mapping_in
        ("megatron-bert", 24 * 6),
        ("longformer", 12 * 9),  # query, key and value for global attention
        ("deberta", 12 * 4),  # query, key and value are one
        ("nystromformer", 12 * 7),  # a convolution of values
        ("convbert", 12 * 10),  # two convolutions and two layers that make kernels; and an embeddings_project
        ("fnet", 12 * 2),  # no attention, and an embeddings.projection
        ("funnel", (12 + 2) * 6),
        ("lilt", 12 * 12),  # the same six again for the layout; and a box_linear_embeddings
    ],
)  # fmt: skip
def test_architectures_that_nobody_listed_follow_the_same_rule(kind: str, count: int) -> None:
    net = skeleton(QA, transformers.AutoConfig.for_model(kind))
    chosen = prunable_parameters(net, Model(path="x"))
    assert len(chosen) == count
    encoder = dict(net.base_model.named_parameters())
    inside = {id(weight) for name, weight in encoder.items() if "embed" not in name and "pooler" not in name}
    assert all(id(weight) in inside for weight in chosen.values())


@pytest.mark.parametrize(("kind", "reason"), [("t5", "no encoder apart from its head"), ("gpt2", "no Linear or Conv")])
def test_what_has_nothing_to_prune_is_refused(kind: str, reason: str) -> None:
    net = skeleton(QA, transformers.AutoConfig.for_model(kind))
    with pytest.raises(UserError, match=f"the architecture {kind} cannot be pruned here: .*{reason}"):
        prunable_parameters(net, Model(path="x"))


def test_an_architecture_without_a_head_for_the_task_is_refused() -> None:
    with pytest.raises(UserError, match="the architecture vit has no ForQuestionAnswering model"):
        skeleton(QA, transformers.AutoConfig.for_model("vit"))


# --- settings -----------------------------------------------------------------------------------------------


@NAMES
def test_dropout_settings_reach_every_family(name: str, hub: Path) -> None:
    checkpoint, net = found(name, hub, hidden_dropout=0.3, attention_dropout=0.2)
    assert models.hidden_dropout(checkpoint.config) == 0.3
    assert models.attention_dropout(checkpoint.config) == 0.2
    inside = [module.p for module in net.base_model.modules() if isinstance(module, nn.Dropout)]
    assert set(inside) <= {0.3, 0.2}
    assert inside.count(0.3) >= 3  # after the embeddings, and in each layer
    if FAMILIES[name].kind != "modernbert":  # whose attention drops without a module
        assert 0.2 in inside
    _, net = found(name, hub, hidden_dropout=0, attention_dropout=0)
    assert models.max_dropout(net) == 0


def test_t5_has_one_dropout() -> None:
    config = transformers.AutoConfig.for_model("t5")
    with pytest.raises(UserError, match=r"model\.attention_dropout=0: t5-small \(t5\) has no such setting"):
        set_dropout(config, None, 0, "t5-small")
    assert models.hidden_dropout(config) == 0.1
    set_dropout(config, 0, None, "t5-small")
    assert config.dropout_rate == models.hidden_dropout(config) == 0


def test_dropout_of_another_tasks_head_does_not_count() -> None:
    config = transformers.AutoConfig.for_model("albert")  # as albert-base-v2: 0, 0 and classifier_dropout_prob=0.1
    assert config.classifier_dropout_prob == 0.1
    assert models.max_dropout(skeleton(QA, config)) == 0
    assert models.max_dropout(skeleton("AutoModelForTokenClassification", config)) == 0.1


@pytest.mark.parametrize("name", ["albert-base", "modernbert-base"])
def test_families_without_dropout_can_learn_from_themselves(name: str, hub: Path) -> None:
    _, net = found(name, hub)
    assert models.hidden_dropout(net.config) == 0.1
    folder = hub / "models" / FAMILIES[name].path
    assert models.hidden_dropout(models.find(str(folder), "x", Model(path=str(folder))).config) == 0


# --- positions ----------------------------------------------------------------------------------------------


@NAMES
def test_positions_are_those_that_the_network_computes_with(name: str, hub: Path) -> None:
    most, (checkpoint, net) = FAMILIES[name].positions, found(name, hub)
    assert positions(net) == most
    real, vocabulary = models.load(QA, checkpoint).eval(), checkpoint.config.vocab_size
    ids = torch.arange(5, 5 + 2 * 512).remainder(vocabulary - 5).add(5)[None]  # no special tokens

    def logits(tokens: int) -> torch.Tensor:
        with torch.no_grad():
            return real(input_ids=ids[:, :tokens]).start_logits

    if most is None:
        assert bool(logits(700).isfinite().all())
    else:
        assert bool(logits(most).isfinite().all())
        with pytest.raises((IndexError, RuntimeError)):
            logits(most + 1)


@pytest.mark.parametrize(
    ("kind", "most"),
    [("camembert", 510), ("nystromformer", 510), ("mra", 512), ("roformer", 1536), ("bart", 1024), ("xlm", 512),
     ("longformer", 510), ("funnel", None), ("xlnet", None), ("jina_embeddings_v3", None)],
)  # fmt: skip
def test_positions_of_architectures_that_nobody_listed(kind: str, most: int | None) -> None:
    assert positions(skeleton(QA, transformers.AutoConfig.for_model(kind))) == most


def test_too_long_texts_are_refused_before_anything_is_read(hub: Path, tmp_path: Path) -> None:
    folder = hub / "models" / FAMILIES["roberta-base"].path
    nowhere = ["dataset.path=nowhere", "dataset.doc_stride=64"]
    given = ["model=roberta-base", f"model.path={folder}", *nowhere]
    experiment, _ = compose_experiment([*given, "dataset.max_seq_length=513"])
    said = r"dataset.max_seq_length=513: .* \(model.path\) has positions for 512 tokens; set dataset.max_seq_length to"
    with pytest.raises(UserError, match=said):
        check(experiment, find_sources(experiment))
    with pytest.raises(UserError, match=r"max_seq_length=513: .* has positions for 512"):
        evaluate.main([str(folder), "dataset.max_seq_length=513", *nowhere])
    experiment, _ = compose_experiment([*given, "dataset.max_seq_length=512"])
    assert positions(check(experiment, find_sources(experiment)).net) == 512
    student, teacher = save_small_model(tmp_path / "student"), tmp_path / "teacher"
    save_small_model(teacher, max_position_embeddings=100)
    experiment, _ = compose_experiment(["model=hub", f"model.path={student}", f"distill.teacher={teacher}",
                                        "dataset.max_seq_length=128", *nowhere])  # fmt: skip
    with pytest.raises(UserError, match=r"teacher \(distill.teacher\) has positions for 100 tokens"):
        check(experiment, find_sources(experiment))


# --- tokenizers ---------------------------------------------------------------------------------------------


@NAMES
def test_answers_are_found_through_every_kind_of_tokenizer(name: str, hub: Path) -> None:
    checkpoint, net = found(name, hub)
    tokenizer, task = models.load_tokenizer(checkpoint), Demo(train_examples=4, eval_examples=60)
    examples = task.read().evaluation
    labelled = task.features(examples, tokenizer, None, labels=True)
    features = task.features(examples, tokenizer, None, labels=False)
    assert labelled["input_ids"] == features["input_ids"]
    # As a model says it that knows the answers, and is sure that a window without one has none.
    heads = [np.zeros((len(features), TOKENS), np.float32) for _ in range(2)]
    for head, side in zip(heads, ("start_positions", "end_positions"), strict=True):
        at = np.asarray(labelled[side])
        head[np.arange(len(at)), at] = np.where(at > 0, 10, 0)
    assert task.score(examples, features, heads).metrics["f1"] > 0.99
    # Which of the two texts a token is from, where the model was trained with it.
    learned = getattr(net.config, "type_vocab_size", 0) > 1
    assert learned is (FAMILIES[name].kind in ("bert", "electra", "mobilebert", "albert"))
    if learned:
        assert {kind for types in features["token_type_ids"] for kind in types} == {0, 1}


def test_a_sentencepiece_file_that_cannot_be_read_is_one_clear_message(
    hub: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = hub / "models" / FAMILIES["deberta-v3-small"].path
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "sentencepiece", None)  # as if it were not installed
        with pytest.raises(UserError) as said:
            models.load_tokenizer(models.find(str(folder), "model.path", Model(path=str(folder))))
    assert str(said.value) == (
        f"model.path={folder}: its tokenizer is a SentencePiece file, which the package sentencepiece reads: pip "
        "install sentencepiece"
    )
    assert "tiktoken" not in caplog.text + "".join(capfd.readouterr())
    damaged = save_small_model(tmp_path / "damaged")
    for file in damaged.glob("*token*"):
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "spm.model").write_bytes((folder / "spm.model").read_bytes()[:-900])
    with pytest.raises(UserError, match=f"model.path={damaged}: its tokenizer is damaged, or is none of SentencePiece"):
        models.load_tokenizer(models.find(str(damaged), "model.path", Model(path=str(damaged))))


# --- runs ---------------------------------------------------------------------------------------------------


def zeros_of_units(matrix: np.ndarray, pattern: str) -> np.ndarray:
    """How many values of each unit are zero: of 4 rows in a column, or of 4 columns in a row."""
    rows, columns = matrix.shape
    units = matrix.reshape(rows // 4, 4, columns) if pattern == "4x1" else matrix.reshape(rows, columns // 4, 4)
    return (units == 0).sum(axis=1 if pattern == "4x1" else 2)


@pytest.mark.slow
@pytest.mark.xdist_group("families")
def test_the_saved_file_holds_the_pattern(done: Done) -> None:
    zeros, total = 0, 0
    for layer in done.family.pruned:
        matrix = done.tensors[f"{layer}.weight"].numpy()
        assert set(np.unique(zeros_of_units(matrix, "4x1"))) <= {0, 4}
        zeros, total = zeros + int((matrix == 0).sum()), total + matrix.size
    assert zeros == 4 * round(0.8 * total / 4)
    dense = [done.tensors[f"{layer}.weight"] for layer in done.family.dense]
    assert all(bool((matrix != 0).all()) for matrix in dense)
    everything = total + sum(matrix.numel() for matrix in dense)
    assert done.result["verification"] == {
        "linear_ratio": pytest.approx(zeros / everything),
        "overall_ratio": pytest.approx(zeros / sum(tensor.numel() for tensor in done.tensors.values())),
        "sparsity": pytest.approx(zeros / total), "violations": 0, "left_out": {},
    }  # fmt: skip
    described = json.loads((done.model / "pruning.json").read_text())
    assert sorted(row["name"] for row in described["layers"]) == sorted(f"{name}.weight" for name in done.family.pruned)


@pytest.mark.slow
@pytest.mark.xdist_group("families")
def test_the_saved_model_is_told_weighed_and_read_back(done: Done, hub: Path) -> None:
    seen = inspect(done.model)
    assert (seen.claims, seen.broken_claims) == ("4x1", [])
    assert "4x1" in seen.patterns or "8x1" in seen.patterns or "columns" in seen.patterns
    zeros = {name: int((done.tensors[f"{name}.weight"] == 0).sum()) for name in done.family.pruned}
    assert {layer.name: layer.zeros for layer in seen.layers if layer.zeros} == {
        f"{name}.weight": count for name, count in zeros.items() if count
    }

    # How often a matrix is used in an example: for each token, in ALBERT once more for each of its three layers, and in
    # DeBERTa also for the 2 x 8 distances, of which queries and keys know.
    def used(layer: str) -> int:
        if done.family.kind == "albert":
            return 3 * TOKENS
        return TOKENS + (16 if layer.endswith(("query_proj", "key_proj")) else 0)

    weighed = done.result["footprint"]
    dead = re.search(r"(\d+) of \d+ heads", weighed["dead"])
    distances = 16 if done.family.kind == "deberta-v2" else 0
    size = WIDTH // (4 if done.family.kind == "mobilebert" else 2)  # of each of two heads; half of it in a bottleneck
    products = int(dead[1]) * 2 * TOKENS * (TOKENS + distances) * size if dead else 0
    skipped = sum(count * used(name) for name, count in zeros.items()) + products
    assert weighed["macs_dense"] - weighed["macs_sparse"] == skipped
    card = (done.model / "README.md").read_text()
    assert f"base_model:\n- {done.family.path}\n" in card
    with models.quiet_loading():
        model = transformers.AutoModelForQuestionAnswering.from_pretrained(done.model)
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[f"{name}.weight"], done.tensors[f"{name}.weight"]) for name in done.family.pruned)
    tokenizer = transformers.AutoTokenizer.from_pretrained(done.model)
    mine = models.load_tokenizer(models.find(str(hub / "models" / done.family.path), "x", Model(path="x")))
    examples = Demo(eval_examples=20).read(False).evaluation
    texts = list(examples["question"]), list(examples["context"])
    assert tokenizer(*texts).data == mine(*texts).data  # token types included, where the model knows them


def pruned_once(experiment: Experiment, folder: Path) -> Verification:
    """Prune without fine-tuning, scoring and records, and verify what is saved in `folder/model`."""
    base, task = find_sources(experiment).base, experiment.dataset
    examples, tokenizer = task.read().train, models.load_tokenizer(base)
    assert examples is not None
    lesson = TrainingData(task, task.features(examples, tokenizer, None, labels=True), tokenizer)
    student, pruner, work = train_student(PruningTask(experiment, lesson, [base], base, folder / "checkpoints"))
    assert work.steps == (6 if experiment.train.takes_steps else 0)
    finetune.save_model(student, tokenizer, folder / "model")
    return verify(folder / "model", QA, pruner.report())


@pytest.mark.slow
@NAMES
def test_two_of_four_is_held_in_the_file_of_every_family(name: str, hub: Path, tmp_path: Path) -> None:
    experiment = experiment_of(name, hub, "pattern=2:4", "distill=none", *SHORT).resolved()
    verification = pruned_once(experiment, tmp_path)
    assert (verification.sparsity, verification.violations) == (0.5, 0)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    before = models.load(QA, find_sources(experiment).base)
    for layer in FAMILIES[name].pruned:
        matrix = tensors[f"{layer}.weight"]
        assert set(np.unique(zeros_of_units(matrix.numpy(), "2:4"))) == {2}
        assert not torch.equal(matrix, before.get_parameter(f"{layer}.weight") * (matrix != 0))  # it was trained


@pytest.mark.slow
@NAMES
def test_every_family_is_pruned_without_training(name: str, hub: Path, tmp_path: Path) -> None:
    untrained = ("criterion=obs", "criterion.samples=16", "schedule=one_shot", "train.max_steps=-1",
                 "train.num_train_epochs=0")  # fmt: skip
    experiment = experiment_of(name, hub, "pattern=4x1", *SHORT, *untrained).resolved()
    verification = pruned_once(experiment, tmp_path)
    assert (verification.sparsity, verification.violations) == (pytest.approx(0.8, abs=1e-3), 0)
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    before = models.load(QA, find_sources(experiment).base)
    for layer in FAMILIES[name].pruned:
        matrix = tensors[f"{layer}.weight"]
        assert bool(matrix.any())
        if bool((matrix == 0).any()):  # a layer may be too dear to prune
            assert not torch.equal(matrix, before.get_parameter(f"{layer}.weight") * (matrix != 0))  # survivors moved


def test_training_starts_from_the_weights_of_the_repository(hub: Path) -> None:
    for name, family in FAMILIES.items():
        stored = load_file(hub / "models" / family.path / "model.safetensors")
        checkpoint, net = found(name, hub)
        loaded = models.load(QA, checkpoint)
        for layer in family.pruned:
            key = f"{layer}.weight"
            assert torch.equal(loaded.get_parameter(key), stored[key]), key
        inputs: Any = SimpleNamespace(
            experiment=experiment_of(name, hub), net=net, sources=SimpleNamespace(chosen=None)
        )
        lines = list(dry_run.layers(inputs))
        assert lines[0].startswith(f"pattern 4x1, target 0.8: {len(family.pruned)} layers, ")
        assert f"not candidates: {', '.join(sorted(family.dense))}" in lines


@pytest.mark.slow
def test_an_architecture_that_nobody_listed_from_dry_run_to_the_pruned_file(cli: Cli, tmp_path: Path) -> None:
    family = Family("", "convbert", [], [], word_pieces, {"embedding_size": 16, "head_ratio": 1})
    folder = save(family, tmp_path / "convbert")
    command = ("-m", "runner", "model=hub", f"model.path={folder}", "pattern=4x1", *SHORT)
    said = cli(*command, "dry_run=true")
    assert said.returncode == 0, said.stderr
    for line in (
        "pattern 4x1, target 0.8: 18 layers",
        "    2 x attention.self.query [16, 32]",
        "  2 x attention.self.key_conv_attn_layer.depthwise [32, 9]",
        "left dense: 2 layers: [18, 16] does not divide into blocks of 4 rows by 1 columns",
        "not candidates: convbert.embeddings_project, qa_outputs",
    ):
        assert line in said.stdout, said.stderr
    experiment = compose_experiment([*command[2:], "distill=none"])[0].resolved()
    verification = pruned_once(experiment, tmp_path)
    assert (verification.sparsity, verification.violations) == (pytest.approx(0.8, abs=0.001), 0)
    patterns = {layer.name: layer.patterns for layer in inspect(tmp_path / "model").layers if layer.zeros}
    assert "convbert.encoder.layer.0.attention.self.key_conv_attn_layer.depthwise.weight" in patterns
    assert all("4x1" in held for held in patterns.values())
