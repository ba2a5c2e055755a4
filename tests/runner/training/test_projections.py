"""Teachers of another width or family: what is trained beside the student, what becomes of it, and what is refused."""

import copy
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from pruning import HiddenStates, LayerReport, Logits, LogitsHidden, Projector, SimKD, matrix_weights
from runner import evaluate, inspect, models
from runner.config.compose import compose_experiment
from runner.config.training import Training
from runner.data.demo import Demo
from runner.experiment import run
from runner.models import Model, heads
from runner.models.footprint import footprint
from runner.models.tokenizer import check_texts, check_vocabulary, with_inputs
from runner.models.verify import verify
from runner.records.result import Result
from runner.stages.checks import check
from runner.stages.inputs import find_sources
from runner.system import files
from runner.system.device import Precision
from runner.system.errors import UserError
from runner.training import checkpoints, projections, teacher_logits
from runner.training.supervision import Supervision
from runner.training.training_data import TrainingData
from tests.conftest import ROOT, Cli, save_small_model
from tests.tools.pretrain_tiny import build_tokenizer
from tests.training import Interrupt, train

pytestmark = pytest.mark.usefixtures("one_thread")

QA = "AutoModelForQuestionAnswering"
WIDE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 4, "initializer_range": 0.2}
STILL: dict[str, Any] = {"dropout": 0.0, "attention_dropout": 0.0}


@pytest.fixture(scope="module")
def lesson() -> TrainingData:
    """As of a run whose student has no token types and whose teacher has."""
    task = Demo(train_examples=48, eval_examples=8)
    tokenizer = build_tokenizer()
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    names = ["input_ids", "token_type_ids", "attention_mask"]
    examples = task.read()
    assert examples.train is not None
    features = task.features(examples.train, with_inputs(tokenizer, names), None, labels=True)
    return TrainingData(task, features, tokenizer, (tuple(names),))


def found(folder: Path, key: str = "model.path") -> models.Checkpoint:
    return models.find(str(folder), key, Model(path=str(folder)))


def small(folder: Path, kind: str = "bert", attentions: bool = False, **changes: Any) -> Any:
    return models.load(QA, found(save_small_model(folder, kind, **changes)), attentions)


def settings(**changes: Any) -> Training:
    values = {"per_device_train_batch_size": 4, "max_steps": 12, "learning_rate": 1e-3, "precision": Precision.float32}
    return Training(**{**values, **changes})


def quiet(step: int, values: object) -> None:
    pass


def inputs() -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(3)
    ids = torch.randint(5, 90, (3, 17), generator=random)
    mask = (torch.arange(17)[None] < torch.tensor([[17], [9], [12]])).long()
    return {"input_ids": ids, "attention_mask": mask}


# --- the head behind a projector ----------------------------------------------------------------------------


def of_tokens(**sizes: Any) -> Any:
    config = transformers.AutoConfig.for_model(
        "bert", vocab_size=100, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=5,
        initializer_range=0.2, **sizes,
    )  # fmt: skip
    return transformers.AutoModelForTokenClassification.from_config(config)


@pytest.mark.parametrize("task", ["question answering", "tokens"])
def test_a_linear_projector_folds_into_an_ordinary_model(task: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if task == "tokens":
        student, teacher, names = of_tokens(hidden_size=16), of_tokens(hidden_size=48), ("logits",)
        auto: Any = transformers.AutoModelForTokenClassification
    else:
        student, teacher = small(tmp_path / "s", "distilbert"), small(tmp_path / "t", seed=1, **WIDE)
        names, auto = ("start_logits", "end_logits"), transformers.AutoModelForQuestionAnswering
    plain = {name: tuple(p.shape) for name, p in student.named_parameters()}
    (projector,) = projections.attach(student, SimKD(), teacher).values()
    unfolded = student.eval()(**inputs(), output_hidden_states=True)
    head = teacher.get_submodule(next(iter(heads.head(teacher).keys() & {"qa_outputs", "classifier"})))
    expected = head(projector(unfolded.hidden_states[-1]))  # the published formula
    given = torch.stack([unfolded[name] for name in names], -1) if task != "tokens" else unfolded["logits"]
    torch.testing.assert_close(given, expected)
    projections.finish(student)
    assert {name: tuple(p.shape) for name, p in student.named_parameters()} == plain
    student.save_pretrained(tmp_path / "saved")
    assert heads.KEY not in (tmp_path / "saved" / "config.json").read_text()
    loaded = auto.from_pretrained(tmp_path / "saved").eval()(**inputs())
    for name in names:
        assert float(unfolded[name].detach().abs().max()) > 0.1
        torch.testing.assert_close(loaded[name], unfolded[name], rtol=1e-4, atol=1e-5)


def test_another_projector_stays_and_only_we_load_it(tmp_path: Path) -> None:
    student, teacher = small(tmp_path / "s", "distilbert"), small(tmp_path / "t", seed=1, **WIDE)
    before = student.num_parameters()
    projections.attach(student, SimKD(projector=Projector.mlp), teacher)
    projections.finish(student)
    expected, folder = student.eval()(**inputs()), tmp_path / "saved"
    student.save_pretrained(folder)

    for cls in (transformers.AutoModelForQuestionAnswering, transformers.DistilBertForQuestionAnswering):
        with models.quiet_loading(), pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            cls.from_pretrained(folder)
    loaded: Any = models.load(QA, found(folder, "the saved model"))
    assert type(loaded).__name__ == "DistilBertForQuestionAnswering"
    assert torch.equal(loaded.eval()(**inputs()).start_logits, expected.start_logits)
    loaded.save_pretrained(tmp_path / "again")
    again = models.load(QA, found(tmp_path / "again", "the saved model"))
    assert all(torch.equal(p, again.get_parameter(name)) for name, p in loaded.named_parameters())

    # Its weights count wherever weights are counted: 32 x 64 and 64 x 64 with biases, and a head of 2 x 64, not 2 x 32.
    skeleton = models.skeleton(QA, loaded.config)
    assert skeleton.num_parameters() == before + 32 * 64 + 64 + 64 * 64 + 64 + 2 * 32
    file = load_file(folder / "model.safetensors")
    assert sum(t.numel() for t in file.values()) == skeleton.num_parameters()
    name = "distilbert.transformer.layer.0.attention.q_lin.weight"
    loaded.get_parameter(name).data.zero_()
    loaded.save_pretrained(folder)
    row = LayerReport(name, (32, 32), "4x1", units=256, pruned_units=256, zeros=1024, violations=0)
    counted = verify(folder, QA, [row])
    assert counted.overall_ratio == 1024 / skeleton.num_parameters()
    assert counted.linear_ratio == 1024 / sum(w.numel() for w in matrix_weights(skeleton).values())
    assert {"qa_outputs.projector.0", "qa_outputs.projector.2"} <= {
        layer.name.removesuffix(".weight") for layer in inspect.inspect(folder).layers
    }
    narrow = small(tmp_path / "narrow", "distilbert")
    narrow.save_pretrained(tmp_path / "narrow")
    more = footprint(folder, QA, 10).macs_dense - footprint(tmp_path / "narrow", QA, 10).macs_dense
    assert more == 10 * (32 * 64 + 64 * 64 + 2 * 32)


def test_a_head_of_one_layer_is_taken_over_from_another_family(tmp_path: Path) -> None:
    student, teacher = small(tmp_path / "s", "distilbert"), small(tmp_path / "t", seed=1)
    assert projections.attach(student, SimKD(projector=Projector.mlp), teacher) == {}  # they are as wide
    assert type(student.qa_outputs) is torch.nn.Linear
    assert torch.equal(student.qa_outputs.weight, teacher.qa_outputs.weight)
    assert not student.qa_outputs.weight.requires_grad


def classifier(kind: str, seed: int = 0, **sizes: Any) -> Any:
    own = {"bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
           "distilbert": {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}}[kind]  # fmt: skip
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, vocab_size=100, num_labels=3, **{**own, **sizes})
    return transformers.AutoModelForSequenceClassification.from_config(config)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_a_head_that_pools_is_taken_over_whole(kind: str) -> None:
    student, teacher = classifier(kind), classifier(kind, seed=1)
    projections.attach(student, SimKD(), teacher)
    names = {"bert": ("bert.pooler.dense", "classifier"), "distilbert": ("pre_classifier", "classifier")}[kind]
    for name in names:
        assert torch.equal(student.get_submodule(name).weight, teacher.get_submodule(name).weight)
        assert not student.get_submodule(name).weight.requires_grad
    taken = [name for name, p in student.named_parameters() if not p.requires_grad]
    assert len(taken) == 4  # weights and biases of both, and nothing else
    states, logits = torch.randn(2, 5, 16), []
    for model in (student, teacher):
        if kind == "bert":
            logits.append(model.classifier(model.bert.pooler(states)))
        else:
            logits.append(model.classifier(model.pre_classifier(states[:, 0]).relu()))
    assert torch.equal(*logits)


@pytest.mark.parametrize(("student", "teacher"), [
    (classifier("bert"), classifier("bert", hidden_size=32)),
    (classifier("distilbert"), classifier("distilbert", dim=32)),
    (classifier("bert"), classifier("distilbert")),  # its classifier would fit
    (classifier("distilbert"), classifier("bert")),
], ids=["wide bert", "wide distilbert", "distilbert for bert", "bert for distilbert"])  # fmt: skip
def test_a_head_that_pools_is_refused_from_another_width_or_family(student: Any, teacher: Any) -> None:
    with pytest.raises(UserError, match=r"as wide as its teacher, of the same family.*use distill=hidden"):
        projections.check(SimKD(), student, teacher)
    before = copy.deepcopy(student.state_dict())
    with pytest.raises(UserError, match="as wide as its teacher"):
        projections.attach(student, SimKD(), teacher)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert projections.check(Logits(), student, teacher) == 0


def test_dropout_in_attention_weights_is_refused() -> None:
    student, teacher = classifier("bert"), classifier("bert", seed=1)
    with pytest.raises(UserError, match=r"dropout in them \(0\.1\): set model.attention_dropout=0"):
        projections.check(HiddenStates(attention_weight=1.0), student, teacher)
    assert projections.check(HiddenStates(), student, teacher) == 0
    student.config.attention_probs_dropout_prob = 0.0
    assert projections.check(HiddenStates(attention_weight=1.0), student, teacher) == 0
    # Projections of all layers, embeddings included: 16 x 32 and a bias each.
    assert projections.check(HiddenStates(), student, classifier("bert", hidden_size=32)) == 2 * (16 * 32 + 32)


# --- trained with the student -------------------------------------------------------------------------------

WAYS = {
    "hidden": HiddenStates(label_weight=0.5),
    "attention": HiddenStates(attention_weight=1.0),
    "logits and hidden": LogitsHidden(),
    "simkd linear": SimKD(),
    "simkd mlp with labels": SimKD(projector=Projector.mlp, label_weight=0.5),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_interrupted_training_ends_with_the_same_bits(way: str, tmp_path: Path, lesson: TrainingData) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 7:
            raise Interrupt

    how = WAYS[way]
    often, weights = settings(save_steps=3, logging_steps=1), {}
    for name in ("whole", "interrupted"):
        folder = tmp_path / name
        for attempt in range(2 if name == "interrupted" else 1):
            torch.manual_seed(5)  # a new process starts from its seed
            student = small(tmp_path / "s", "distilbert", attentions=how.needs_attention, attention_dropout=0.0)
            taught_by = Supervision(how, small(tmp_path / "t", attentions=how.needs_attention, **WIDE))
            log = interrupt if name == "interrupted" and attempt == 0 else quiet
            torch.manual_seed(6)
            try:
                train(student, lesson, often, taught_by, None, 5, folder, "t", log)
                assert not (name == "interrupted" and attempt == 0)
            except Interrupt:
                last = checkpoints.newest(folder)
                assert last is not None
                assert last.name == "checkpoint-6"
                kept = load_file(last / "model.safetensors")
                beside = [k for k in kept if "projector" in k or k.startswith(projections.ATTACHED)]
                assert len(beside) == {"hidden": 6, "attention": 6, "simkd linear": 2}.get(way, 4)
        weights[name] = dict(student.named_parameters())
    assert not [name for name in weights["whole"] if projections.ATTACHED in name]
    assert all(torch.equal(p, weights["interrupted"][name]) for name, p in weights["whole"].items())
    at_start = small(tmp_path / "s", "distilbert")
    moved = "distilbert.transformer.layer.0.attention.q_lin.weight"
    assert not torch.equal(weights["whole"][moved], at_start.get_parameter(moved))


@pytest.mark.parametrize("way", ["hidden", "simkd linear"])
def test_the_projection_learns(way: str, tmp_path: Path, lesson: TrainingData) -> None:
    """Where nothing else of the encoder does, it alone lowers the loss."""
    torch.manual_seed(0)
    student, wide = small(tmp_path / "s", "distilbert", **STILL), small(tmp_path / "t", seed=1, **WIDE)
    student.base_model.requires_grad_(False)
    how, losses = HiddenStates(logits_weight=0.001) if way == "hidden" else SimKD(), []
    train(student, lesson, settings(max_steps=24, logging_steps=1, learning_rate=1e-2), Supervision(how, wide), None, 0,
          tmp_path / "run", "t", lambda step, values: losses.append(values["loss"]))  # fmt: skip
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.slow
def test_two_ranks_train_the_same_projections(tmp_path: Path) -> None:
    student = save_small_model(tmp_path / "s", "distilbert")
    wide = save_small_model(tmp_path / "t", **WIDE)
    script = [sys.executable, str(Path(__file__).with_name("ranks_projected.py")), str(student), str(wide)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
             "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}  # fmt: skip
    started = [
        subprocess.Popen([*script, str(tmp_path)], env={**plain, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                         cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]  # fmt: skip
    for process in started:
        text, _ = process.communicate(timeout=240)
        assert process.returncode == 0, text
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first.keys() == second.keys() == {"hidden", "simkd"}
    for way, made in first.items():
        assert len(made["weights"]) > 30
        assert all(torch.equal(p, second[way]["weights"][name]) for name, p in made["weights"].items())
        assert made["moved"] > 0


# --- what the teacher reads ---------------------------------------------------------------------------------


def test_a_teacher_with_token_types_gets_them(tmp_path: Path, lesson: TrainingData) -> None:
    wide = found(save_small_model(tmp_path / "t", **WIDE))
    reader = with_inputs(lesson.tokenizer, lesson.teacher_inputs[0])
    kept = teacher_logits.teacher_logits(
        wide, reader, lesson.task, lesson.features, Precision.float32, tmp_path / "cache"
    )
    live: Any = models.load(QA, wide).eval()
    row = lesson.features[3]
    assert set(row["token_type_ids"]) == {0, 1}
    given = {name: torch.tensor([row[name]]) for name in lesson.teacher_inputs[0]}
    blind = {**given, "token_type_ids": torch.zeros_like(given["token_type_ids"])}
    with torch.no_grad():
        right, wrong = live(**given).start_logits[0], live(**blind).start_logits[0]
    assert float((kept.of(3)[0] - right).abs().max()) < 1e-2
    assert float((kept.of(3)[0] - wrong).abs().max()) > 1e-1

    seen: list[set[str]] = []
    student, beside = small(tmp_path / "s", "distilbert"), models.load(QA, wide)
    for model in (student, beside):
        model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(set(kwargs)), with_kwargs=True)
    train(student, lesson, settings(max_steps=1), Supervision(Logits(), beside), None, 0, tmp_path / "run", "t", quiet)
    asked = {"input_ids", "attention_mask", "output_hidden_states"}
    assert seen == [asked, asked | {"token_type_ids"}]


def with_tokenizer(folder: Path, **changes: Any) -> Path:
    """The same model with another tokenizer_config.json."""
    values = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**values, **changes}))
    return folder


def save_distilbert(folder: Path) -> Path:
    """A DistilBERT whose tokenizer gives no token types, as those on the hub."""
    save_small_model(folder, "distilbert", attention_dropout=0.0)
    return with_tokenizer(folder, model_input_names=["input_ids", "attention_mask"])


def test_a_teacher_that_reads_texts_otherwise_is_refused(tmp_path: Path) -> None:
    base, task = found(save_distilbert(tmp_path / "s")), Demo(train_examples=48, eval_examples=8)
    assert models.load_tokenizer(base).model_input_names == ["input_ids", "attention_mask"]
    examples = task.read().train
    assert examples is not None

    def teacher_at(name: str, **changes: Any) -> models.Checkpoint:
        return found(with_tokenizer(save_small_model(tmp_path / name, **WIDE), **changes), "distill.teacher")

    check_vocabulary(base, teacher_at("same"))
    check_texts(base, teacher_at("same"), task, examples)

    cased = teacher_at("cased", do_lower_case=False)
    check_vocabulary(base, cased)  # which is the same
    with pytest.raises(UserError) as caught:
        check_texts(base, cased, task, examples)
    assert f"distill.teacher={tmp_path}/cased: its tokenizer reads texts in another way than that of" in str(
        caught.value
    )
    assert any(f"such as {row['context'][:60]!r}"[:-1] in str(caught.value) for row in examples.to_list())
    assert re.search(r": from token 1 on input_ids \S.*, not input_ids \S.*; choose a model with the same tokenizer",
                     str(caught.value))  # fmt: skip

    names = ["input_ids", "token_type_ids", "attention_mask"]
    blind = teacher_at("blind", tokenizer_class="PreTrainedTokenizerFast", model_input_names=names)
    file = tmp_path / "blind" / "tokenizer.json"
    file.write_text(file.read_text().replace('"type_id": 1', '"type_id": 0'))
    with pytest.raises(UserError, match=r"token_type_ids 0 0 0 0 .*, not token_type_ids 1 1 1 1 .*same tokenizer"):
        check_texts(base, blind, task, examples)

    with pytest.raises(UserError, match=r"the pad_token of its tokenizer is \[UNK\], and \[PAD\] in that of"):
        check_vocabulary(base, teacher_at("pad", pad_token="[UNK]"))
    file = save_small_model(tmp_path / "words") / "tokenizer.json"
    values = json.loads(file.read_text())
    values["model"]["vocab"]["new"] = len(values["model"]["vocab"])
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="choose a model with the same vocabulary"):
        check_vocabulary(base, found(tmp_path / "words", "distill.teacher"))


def test_another_tokenizer_is_one_message(cli: Cli, tmp_path: Path) -> None:
    save_distilbert(tmp_path / "s")
    with_tokenizer(save_small_model(tmp_path / "t", **WIDE), do_lower_case=False)
    done = cli("-m", "runner", *SHORT, "model.path=s", "distill=simkd", "distill.teacher=t")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: distill.teacher=t: its tokenizer reads texts in another way")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_features_with_and_without_token_types_are_kept_apart(tmp_path: Path) -> None:
    task, tokenizer = Demo(train_examples=8, eval_examples=8), build_tokenizer()
    examples = task.read().evaluation
    for names in (["input_ids", "attention_mask"], ["input_ids", "token_type_ids", "attention_mask"]):
        columns = task.features(examples, with_inputs(tokenizer, names), tmp_path, labels=False).column_names
        assert set(names) <= set(columns)
        assert ("token_type_ids" in columns) == ("token_type_ids" in names)


# --- whole runs ---------------------------------------------------------------------------------------------

SHORT = (
    "dataset=demo", "dataset.train_examples=48", "dataset.eval_examples=40", "recipe=published",
    "schedule=short", "train.max_steps=6",
    "train.per_device_train_batch_size=8", "train.learning_rate=1e-3", "finetune.max_steps=2",
    "finetune.per_device_train_batch_size=8", "model=hub", "pattern=4x1",
)  # fmt: skip


def result_of(*overrides: str) -> Result:
    return run(*compose_experiment([*SHORT, *overrides]))


@pytest.mark.slow
def test_runs_with_a_larger_teacher_of_another_family(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_distilbert(tmp_path / "distil")
    save_small_model(tmp_path / "wide", seed=1, **WIDE)
    # The teacher is a dense run, by its folder and by its id.
    dense = result_of("model.path=wide", "prune=false", "output_dir=teachers")
    common = ("model.path=distil", "model.finetuned=distil")
    attention = result_of(*common, "distill=hidden", "distill.attention_weight=1", f"distill.teacher={dense.folder}")
    mlp = result_of(*common, "distill=simkd", "distill.projector=mlp", f"distill.teacher={dense.mlflow_run}")
    kept = result_of(*common, "distill=logits", "distill.label_weight=0.3", f"distill.teacher={dense.folder}/model",
                     "train.num_train_epochs=1", "train.max_steps=-1")  # fmt: skip
    assert {r.made_by["checkpoints"]["distill.teacher"] for r in (attention, mlp, kept)} == {
        found(Path(dense.folder) / "model").fingerprint
    }
    assert "teacher" in kept.stages  # its logits were kept
    sizes = {}
    for result in (attention, mlp, kept):
        folder, counted = Path(result.folder) / "model", result.verification
        sizes[result.folder] = models.load(QA, found(folder, "the saved model")).num_parameters()
        assert counted is not None
        zeros = counted.overall_ratio * sizes[result.folder]
        assert zeros == pytest.approx(round(zeros))
        assert zeros > 10_000
        assert models.load_tokenizer(found(folder)).model_input_names == ["input_ids", "attention_mask"]
    ordinary = transformers.AutoModelForQuestionAnswering.from_pretrained(Path(attention.folder) / "model")
    assert sizes[attention.folder] == sizes[kept.folder] == ordinary.num_parameters() < sizes[mlp.folder]
    assert "attn_implementation" not in (Path(attention.folder) / "model" / "config.json").read_text()

    card = (Path(mlp.folder) / "model" / "README.md").read_text()
    assert "Only prune-distill loads it" in card
    assert f'models.load("{QA}", found)' in card
    assert "library_name" not in card
    capsys.readouterr()
    evaluate.main([f"{mlp.folder}/model", "dataset=demo", "dataset.eval_examples=40"])
    assert mlp.sparse is not None
    assert json.loads(capsys.readouterr().out)["f1"] == mlp.sparse["f1"]


def refused(*overrides: str) -> str:
    experiment, _ = compose_experiment([*SHORT, *overrides])
    with pytest.raises(UserError) as caught:
        check(experiment, find_sources(experiment))
    return str(caught.value)


def test_what_cannot_teach_is_refused_before_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    student, wide = save_small_model(tmp_path / "s", "distilbert"), save_small_model(tmp_path / "t", **WIDE)
    base = (f"model.path={student}", f"model.finetuned={student}")
    attention = (*base, "distill=hidden", "distill.attention_weight=1", f"distill.teacher={wide}")
    assert "model.attention_dropout=0" in refused(*attention)
    pruned = tmp_path / "run"
    pruned.mkdir()
    values = {"sparse": {"f1": 0.5}, "pattern": "2:4", "mlflow_run": None}
    files.write_json(pruned / "result.json", values)
    (pruned / "config.yaml").write_text("")
    text = refused(*base, f"distill.teacher={pruned}")
    assert text.startswith(f"distill.teacher={pruned}: this run pruned its model (2:4); name a run with prune=false")
    assert f"{pruned}/model" in text
    (pruned / "config.yaml").unlink()
    assert refused(*base, f"distill.teacher={pruned}").startswith(f"distill.teacher={pruned}: {pruned}/config.yaml is ")
    number = "0123456789abcdef" * 2
    assert refused(*base, f"distill.teacher={number}").startswith(f"distill.teacher={number}: ")
