"""`python -m runner.evaluate`: the score of a runtime next to torch's, for every kind of task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from pruning import Projector, PruningError, runtime
from pruning.runtime import compiler, self_check
from runner import benchmark, evaluate, models
from runner.config.runtime import RuntimeSettings, split
from runner.models import Model, heads
from runner.models.configuration import read_config
from runner.system.errors import UserError
from tests.conftest import Cli, save_small_model

needs_runtime = pytest.mark.skipif(
    not compiler.supported() or not compiler.compilers(), reason="no C compiler, or no kernels for this CPU"
)
DEMO = ("dataset=demo", "dataset.train_examples=8", "dataset.eval_examples=24", "dataset.max_seq_length=64")
WORDS = ("house", "dog", "king", "sea", "day", "road")


def with_head(folder: Path, head: str, **settings: object) -> Path:
    """A small random model with another head, and some weights of 0."""
    save_small_model(folder)
    config = AutoConfig.from_pretrained(folder, **settings)
    torch.manual_seed(1)
    model = getattr(transformers, head).from_config(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layer." in name and weight.dim() == 2:
                weight.mul_(8).view(-1, 4, weight.shape[1])[::2] = 0
    model.save_pretrained(folder)
    return folder


def lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return file


def spans(place: Path) -> list[str]:
    return [str(with_head(place / "model", "AutoModelForQuestionAnswering")), *DEMO]


def classes(place: Path) -> list[str]:
    names = {"num_labels": 2, "id2label": {0: "neg", 1: "pos"}, "label2id": {"neg": 0, "pos": 1}}
    model = with_head(place / "model", "AutoModelForSequenceClassification", **names)
    file = lines(place / "dev.jsonl", [{"text": f"the {w} of a man", "label": i % 2} for i, w in enumerate(WORDS * 3)])
    return [str(model), "dataset=sst2", f"dataset.path={file}", "dataset.text=text", "dataset.id=null",
            "dataset.labels=[neg,pos]", "dataset.max_seq_length=32"]  # fmt: skip


def numbers(place: Path) -> list[str]:
    model = with_head(place / "model", "AutoModelForSequenceClassification", num_labels=1, problem_type="regression")
    file = lines(place / "dev.jsonl", [{"text": f"the {w} of a man", "label": i / 3} for i, w in enumerate(WORDS * 3)])
    return [str(model), "dataset=classify", f"dataset.path={file}", "dataset.text=text", "dataset.label=label",
            "dataset.regression=true", "dataset.metric=pearson", "dataset.max_seq_length=32"]  # fmt: skip


def tags(place: Path) -> list[str]:
    names = ["O", "B-PER", "I-PER"]
    model = with_head(place / "model", "AutoModelForTokenClassification", num_labels=3,
                      id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)})  # fmt: skip
    rows = [{"tokens": ["the", word, "of", "Ada"], "tags": ["O", "O", "O", "B-PER"]} for word in WORDS]
    file = lines(place / "dev.jsonl", [*rows, {"tokens": ["Ada", "Lovelace"], "tags": ["B-PER", "I-PER"]}])
    return [str(model), "dataset=tag", f"dataset.path={file}", "dataset.tokens=tokens", "dataset.tags=tags",
            "dataset.labels=[O,B-PER,I-PER]", "dataset.max_seq_length=64"]  # fmt: skip


def printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    metrics = evaluate.main(arguments)
    shown = json.loads(capsys.readouterr().out)
    assert metrics.items() <= shown.items()
    return shown


@needs_runtime
@pytest.mark.parametrize("task", [spans, classes, numbers, tags], ids=lambda task: task.__name__)
def test_every_kind_of_task_has_both_scores(
    task: Callable[[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    arguments = task(tmp_path)
    dense = printed(arguments, capsys)
    assert not dense.keys() & {"runtime", "torch", "difference", "changed"}
    sparse = printed([*arguments, "runtime=sparse", "precision=float32", "threads=1"], capsys)
    about = sparse["runtime"]
    assert (about["name"], about["precision"], about["threads"]) == ("sparse", "float32", 1)
    assert about["instructions"] == compiler.library().instructions
    assert about["density"] < 0.6
    assert {name: dense[name] for name in sparse["torch"]} == pytest.approx(sparse["torch"])
    for name, difference in sparse["difference"].items():
        assert sparse[name] - sparse["torch"][name] == difference == pytest.approx(0, abs=1e-4)
    if task is numbers:
        assert 0 <= sparse["mean_change"] < 1e-4
    else:
        assert sparse["changed"] == 0
        assert sparse["answers"] == {"spans": 24, "classes": 18, "tags": 26}[task.__name__]


@needs_runtime
def test_the_command_scores_in_mixed_precision(cli: Cli, tmp_path: Path) -> None:
    if "int8" not in compiler.precisions(compiler.library().instructions):
        pytest.skip("this CPU has float32 only")
    model, *data = spans(tmp_path)
    done = cli("-m", "runner.evaluate", model, *data, "runtime=sparse", "precision={others: int8, down: float32}")
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)["runtime"]
    assert (about["precision"], about["layers"]) == ("mixed", {"others": "int8", "down": "float32"})
    assert "runtime: sparse mixed" in done.stderr


def test_it_asks_for_the_data(tmp_path: Path) -> None:
    model = save_small_model(tmp_path / "model")
    with pytest.raises(UserError, match=r"which data is it scored on.*such as dataset=squad"):
        evaluate.main([str(model), "dataset.max_eval_samples=1"])


def test_a_runs_folder_has_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str],
                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    model, *data = classes(tmp_path)
    assert Path(model) == tmp_path / "model"
    of_run, of_model = printed([str(tmp_path), *data], capsys), printed([model, *data], capsys)
    assert of_run == of_model
    assert of_run["model"] == model


def test_changes_count_answers_and_words() -> None:
    assert evaluate.changes({"a": "x", "b": "y"}, {"a": "x", "b": "z"}) == {"answers": 2, "changed": 1}
    assert evaluate.changes({"a": ["O", "B"], "b": ["O"]}, {"a": ["O", "O"], "b": ["O"]}) == {
        "answers": 3, "changed": 1,
    }  # fmt: skip
    assert evaluate.changes({"a": 1.0, "b": 2.0}, {"a": 1.5, "b": 1.0}) == {"mean_change": 0.75}


@pytest.mark.parametrize(("overrides", "words"), [
    (["runtime=onnx"], "runtime=onnx: choose from torch, sparse"),
    (["runtime=sparse", "precision=float16"], "precision='float16' is not one of auto, float32, bfloat16, int8"),
    (["runtime=sparse", "precision={ffn: int8}"], "must name query, key, value, output, up, down"),
    (["runtime=sparse", "precision={query: float32}"], "the first three together"),
    (["runtime=sparse", "precision=[int8]"], "give one name, or one for each kind of layer"),
    (["runtime=sparse", "precision=int8,bfloat16"], "give one value, and repeat the command for others"),
    (["runtime=sparse", "precision={up: int8"], "precision={up: int8: the value needs quotes"),
    (["runtime=sparse", "threads=0"], "threads=0 must be a whole number above 0"),
    (["runtime=sparse", "threads=two"], "threads=two must be a whole number above 0"),
    (["precision=int8"], "precision=int8: runtime=torch has no such setting"),
])  # fmt: skip
@needs_runtime
def test_what_makes_no_sense_is_refused_before_anything_is_read(overrides: list[str], words: str) -> None:
    with pytest.raises((UserError, PruningError)) as caught:
        evaluate.main(["./nowhere", *overrides])
    assert words in str(caught.value)


def test_the_other_overrides_are_left_as_they_are() -> None:
    assert split(["dataset=squad", "train.precision=bf16"]) == (
        RuntimeSettings(), ["dataset=squad", "train.precision=bf16"],
    )  # fmt: skip
    settings, rest = split(["runtime=sparse", "dataset=squad", "precision={up: int8, down: bfloat16}", "threads=2"])
    assert settings == RuntimeSettings("sparse", {"up": "int8", "down": "bfloat16"}, 2)
    assert rest == ["dataset=squad"]


def test_without_a_compiler_torch_is_not_scored_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler.library.cache_clear()
    monkeypatch.setattr(compiler, "compilers", list)
    with pytest.raises(UserError, match=r"runtime=sparse: no (C compiler|kernels)"):
        evaluate.main(["./nowhere", "runtime=sparse"])
    compiler.library.cache_clear()


@needs_runtime
def test_a_model_that_would_run_dense_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = save_small_model(tmp_path / "mish", hidden_act="mish")
    with pytest.raises(UserError, match="would run dense in torch: no kernel for the activation 'mish'"):
        evaluate.main([str(other), "dataset.path=./nowhere", "runtime=sparse"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(self_check, "TOLERANCE", dict.fromkeys(self_check.TOLERANCE, -1.0))
    with pytest.raises(UserError, match="failed its self-check"):
        evaluate.main([str(save_small_model(tmp_path / "model")), *DEMO, "runtime=sparse"])


@needs_runtime
def test_single_sparse_layers_have_a_score_and_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = save_small_model(tmp_path / "mish", hidden_act="mish", hidden_size=256, intermediate_size=512)
    zeros(model)
    about = printed([str(model), *DEMO, "runtime=sparse", "precision=float32"], capsys)["runtime"]
    assert (about["name"], about["precision"], about["swapped"]) == ("sparse linears", "float32", 12)
    assert "no kernel for the activation 'mish'" in about["reason"]
    benchmark.main([str(model), "--length", "16", "--seconds", "0", "--precision", "float32", "--json"])
    timings = json.loads(capsys.readouterr().out)
    assert "sparse linears" in {t["runtime"] for t in timings}


def zeros(folder: Path) -> None:
    """Leave every third block of the encoder's linear layers of a saved model."""
    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".layer." in name and weight.dim() == 2:
                blocks = weight.view(-1, 4, weight.shape[1])
                blocks[torch.arange(len(blocks)) % 3 > 0] = 0
    model.save_pretrained(folder)


@needs_runtime
def test_a_head_with_a_projector_runs_sparse_by_its_own_class(tmp_path: Path) -> None:
    """The class of transformers refuses it, from its folder and from a packed file."""
    model = models.load("AutoModelForQuestionAnswering",
                        models.find(str(save_small_model(tmp_path / "plain")), "model", Model(path="x")))  # fmt: skip
    heads.share(model, _wide(tmp_path), Projector("mlp").between(32, 48))
    heads.finish(model)
    folder, file = tmp_path / "model", tmp_path / "packed.safetensors"
    model.save_pretrained(folder)
    kind = heads.saved_class(read_config(str(folder), "model"), folder)
    runtime.pack(model, file)
    ids = torch.randint(5, 60, (3, 12))
    with torch.inference_mode():
        expected = model.eval()(input_ids=ids).start_logits
    for place in (folder, file):
        with pytest.raises(PruningError, match=r"BertForQuestionAnswering.*give kind="):
            runtime.load(place)
        fast = runtime.load(place, "float32", kind=kind)
        assert fast.report.runtime == "sparse"
        torch.testing.assert_close(fast(input_ids=ids)["start_logits"], expected, atol=1e-5, rtol=1e-5)


def _wide(folder: Path) -> PreTrainedModel:
    wide = save_small_model(folder / "wide", hidden_size=48, num_attention_heads=4)
    return models.load("AutoModelForQuestionAnswering", models.find(str(wide), "model", Model(path="x")))
