"""Weights that do not arrive in the encoder, cannot be read, or are no numbers; and weights that arrive."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from runner import evaluate, inspect, models
from runner.config.compose import compose_experiment
from runner.models import Model
from runner.models.configuration import check_encoder, quiet_loading
from runner.models.weights import check_encoder_weights
from runner.stages.prepare import resolve
from runner.system.errors import UserError
from tests.conftest import NO_DATA, Refused
from tests.families import FAMILIES, save

QA = "AutoModelForQuestionAnswering"
HEADS = (QA, "AutoModelForSequenceClassification", "AutoModelForTokenClassification")
WEIGHTS = "model.safetensors"
LAYER = "bert.encoder.layer.1"
WORDS = "bert.embeddings.word_embeddings.weight"
Tensors = dict[str, Tensor]
row = pytest.mark.bad_input


def change(folder: Path, changed: Callable[[Tensors], Tensors]) -> Path:
    """Rewrite the weights of a folder."""
    save_file(changed(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})
    return folder


def check(folder: Path, architecture: str = QA, key: str = models.PRETRAINED) -> None:
    """What a run does with a checkpoint before data are read."""
    checkpoint = models.find(str(folder), key, Model(str(folder)))
    models.skeleton(architecture, checkpoint.config)
    models.check_weights(architecture, checkpoint)


def refusal(folder: Path, key: str = models.PRETRAINED) -> str:
    """The message with which a run refuses a checkpoint: one line that names the key and the folder."""
    with pytest.raises(UserError) as caught:
        check(folder, key=key)
    text = str(caught.value)
    assert text.startswith(f"{key}={folder}: ")
    assert "\n" not in text
    return text


# --- weights that do not arrive -------------------------------------------------------------------------------


def prefixed(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def more_layers(tensors: Tensors) -> Tensors:
    copies = {name.replace(".layer.1.", ".layer.2."): tensor.clone() for name, tensor in tensors.items()}
    return copies | tensors


def fewer_layers(tensors: Tensors) -> Tensors:
    return {name: tensor for name, tensor in tensors.items() if ".layer.1." not in name}


@pytest.mark.parametrize("prefix", [
    pytest.param(prefix, marks=row("A1", f"names in model.path begin with {prefix}",
        before="no weight arrives, the run is logged as normal", after="37 of 37 missing, the prefix is named"))
    for prefix in ("module.", "_orig_mod.", "model.", "0.auto_model.", "student.", "module._orig_mod.", "net.bert_q.")
])  # fmt: skip
def test_names_with_another_beginning(prefix: str, folder: Path) -> None:
    text = refusal(change(folder, prefixed(prefix)))
    assert "37 of the encoder's 37 weights are missing (bert.embeddings.word_embeddings.weight, " in text
    assert f"begin with '{prefix}'" in text


@row("A1", "model.path saved from the inner model, wrapped twice", before="no weight arrives", after="prefix named")
def test_names_of_the_encoder_alone_with_another_beginning(folder: Path) -> None:
    text = refusal(change(folder, lambda t: {f"0.auto_model.{name.removeprefix('bert.')}": v for name, v in t.items()}))
    assert "37 of the encoder's 37 weights" in text
    assert "begin with '0.auto_model.'" in text


@row("A1", "model.path with the layers alone, saved from a part of the model", before="no weight arrives",
     after="the missing prefix is named")  # fmt: skip
def test_names_without_their_beginning(folder: Path) -> None:
    text = refusal(change(folder, lambda t: {n.removeprefix("bert.encoder."): v for n, v in t.items() if "layer" in n}))
    assert "lack 'bert.encoder.'" in text


@row("A1", "fewer layers than config.json says", before="the rest is random", after="16 of 37 missing")
def test_fewer_layers(folder: Path) -> None:
    text = refusal(change(folder, fewer_layers))
    assert f"16 of the encoder's 37 weights are missing ({LAYER}.attention.self.query.weight, " in text
    assert "not of one model" in text


@row("A1", "more layers than config.json says", before="the last layers are left out", after="16 have no place")
def test_more_layers(folder: Path) -> None:
    assert "16 of its tensors have no place in the encoder (bert.encoder.layer.2." in refusal(
        change(folder, more_layers)
    )


@row("A1", "an adapter (LoRA) that is not merged", before="the adapter is left out", after="2 have no place")
def test_adapter_that_is_not_merged(folder: Path) -> None:
    added = {f"{LAYER}.attention.self.query.lora_{part}.weight": torch.ones(4, 4) for part in "AB"}
    assert f"2 of its tensors have no place in the encoder ({LAYER}.attention.self.query.lora_A" in refusal(
        change(folder, lambda t: t | added)
    )


@row("A1", "some layers have names of another library", before="they are random", after="missing and unused")
def test_some_names_of_another_library(folder: Path) -> None:
    text = refusal(change(folder, lambda t: {n.replace("self.query", "q"): v for n, v in t.items()}))
    assert "4 of the encoder's 37 weights are missing (bert.encoder.layer.0.attention.self.query.weight, " in text
    assert "4 of its tensors have no place in the encoder (bert.encoder.layer.0.attention.q.bias, " in text


@row("A1", "an embedding table of another size", before="no sizes in the message", after="both sizes are named")
def test_another_shape(folder: Path) -> None:
    text = refusal(change(folder, lambda t: t | {WORDS: t[WORDS][:-4].contiguous()}))
    assert f"{WORDS} is [600, 32] in its weights and [604, 32] by its config.json" in text


@row("A1", "a shard that is missing", before="a traceback, after data were read", after="the shard is named")
def test_a_missing_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00004.safetensors").unlink(missing_ok=False)
    assert "names model-00002-of-00004.safetensors, which is missing" in refusal(folder)


def sharded(folder: Path) -> None:
    from transformers import AutoModelForQuestionAnswering

    model = AutoModelForQuestionAnswering.from_pretrained(folder)
    (folder / WEIGHTS).unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("model-*-of-00004.safetensors"))) == 4


@pytest.mark.parametrize("text", ["[]", "{}", '{"weight_map": 3}', "{", "version https://git-lfs.github.com/spec/v1"])
@row("C1", "a damaged model.safetensors.index.json", before="a traceback", after="the file is named")
def test_a_damaged_index(text: str, folder: Path) -> None:
    sharded(folder)
    (folder / "model.safetensors.index.json").write_text(text)
    assert "its model.safetensors.index.json" in refusal(folder)


KEYS = ("model.path", "model.finetuned", "model.sparse", "distill.teacher")


@pytest.mark.parametrize("key", [
    pytest.param(key, marks=row("A1", f"{key} with fewer layers than its config.json",
        before="random layers, or an error after data were read", after="refused before data are read"))
    for key in KEYS
])  # fmt: skip
def test_every_checkpoint_of_a_run(
    key: str, folder: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    change(folder, lambda t: fewer_layers(t) | {WORDS: torch.zeros_like(t[WORDS])})
    overrides = [f"{k}={folder if k == key else saved}" for k in KEYS if k in (key, "model.path")]
    overrides += ["pattern=locked"] if key == "model.sparse" else []
    with pytest.raises(UserError, match="16 of the encoder's 37 weights are missing") as caught:
        resolve(*compose_experiment(["model=hub", f"dataset.path={NO_DATA}", *overrides]))
    assert str(caught.value).startswith(f"{key}={folder}: ")


@row("A1", "dry_run=true with model.path of another prefix", before="called good", after="refused as in the run")
def test_dry_run(folder: Path, refused: Refused) -> None:
    change(folder, prefixed("module."))
    text = refused("model=hub", f"model.path={folder}", f"dataset.path={NO_DATA}", "dry_run=true")
    assert "begin with 'module.'" in text


@row("A1", "runner.evaluate of weights with another prefix", before="not fine-tuned, it says", after="prefix named")
def test_evaluate(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change(folder, prefixed("module."))
    with pytest.raises(UserError, match=r"begin with 'module\.'"):
        evaluate.main([str(folder), f"dataset.path={NO_DATA}"])


@row("A1", "runner.inspect of fewer or more layers", before="sparsity of the rest, without a word", after="refused")
def test_inspect(folder: Path, saved: Path) -> None:
    with pytest.raises(UserError, match=r"16 of the encoder's 37 weights are missing \(bert.encoder.layer.1"):
        inspect.inspect(change(folder, fewer_layers))
    shutil.copy(saved / WEIGHTS, folder / WEIGHTS)
    with pytest.raises(UserError, match="16 of its tensors have no place in the encoder"):
        inspect.inspect(change(folder, more_layers))


# --- weights that arrive ----------------------------------------------------------------------------------------


def of_an_earlier_version(tensors: Tensors) -> Tensors:
    names = {".LayerNorm.weight": ".LayerNorm.gamma", ".LayerNorm.bias": ".LayerNorm.beta"}
    renamed = {}
    for name, tensor in tensors.items():
        end = next((old for old in names if name.endswith(old)), "")
        renamed[name.removesuffix(end) + names.get(end, "")] = tensor
    return renamed | {"bert.embeddings.position_ids": torch.arange(512)}


@pytest.mark.parametrize("changed", [
    of_an_earlier_version,
    lambda t: {name.removeprefix("bert."): v for name, v in t.items() if "qa_outputs" not in name},
    lambda t: {name: v.half() for name, v in t.items()},
    lambda t: t | {f"bert.pooler.dense.{k}": v for k, v in (("weight", torch.ones(32, 32)), ("bias", torch.ones(32)))},
    lambda t: t | {"cls.predictions.decoder.weight": torch.full((604, 32), torch.nan), "cls.step": torch.tensor(3)},
    lambda t: t | {"bert.embeddings.position_ids": torch.arange(512), "bert.embeddings.token_type_ids": torch.ones(1)},
], ids=["gamma and beta", "no prefix", "float16", "a pooler", "another head with NaN", "buffers"])  # fmt: skip
def test_checkpoints_of_other_makers_are_read(changed: Callable[[Tensors], Tensors], folder: Path) -> None:
    change(folder, changed)
    for architecture in HEADS:  # one of them has a pooler
        check(folder, architecture)


def test_shards_and_pickles_are_read(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    sharded(folder)
    check(folder)
    torch.save(load_file(other / WEIGHTS), other / "pytorch_model.bin")
    (other / WEIGHTS).unlink()
    check(other)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_read_with_every_head(name: str, tmp_path: Path) -> None:
    path = save(FAMILIES[name], tmp_path / name)
    for architecture in HEADS:
        check(path, architecture)


def test_real_checkpoints_are_read(prepared_hub: Path) -> None:
    folders = [file.parent for file in (prepared_hub / "models").glob("*/*/config.json")]
    assert len(folders) >= 2
    for path in folders:
        for architecture in HEADS:
            check(path, architecture)


@pytest.mark.slow
def test_no_false_alarm_for_any_encoder_of_transformers() -> None:
    """What a model with one head saves arrives in the model with another head, by names and shapes."""
    import transformers

    tried, refused = 0, set()
    for kind, config_class in transformers.CONFIG_MAPPING.items():
        autos = [getattr(transformers, head) for head in HEADS]
        takers = [auto._model_mapping[config_class] for auto in autos if config_class in auto._model_mapping]
        if not takers:
            continue
        with quiet_loading():
            config = config_class()
        try:
            check_encoder(config, kind)
        except UserError:
            continue
        for maker in (transformers.AutoModelForPreTraining, transformers.AutoModelForMaskedLM, transformers.AutoModel):
            try:
                with torch.device("meta"), quiet_loading():
                    tensors = maker.from_config(config).state_dict()
            except (
                ImportError,
                ValueError,
                TypeError,
                AssertionError,
            ):  # no such model, or its defaults do not build one
                continue
            for taker in takers:
                with quiet_loading():
                    net, info = taker.from_pretrained(
                        None, config=config, state_dict=dict(tensors), device_map="meta", output_loading_info=True,
                        ignore_mismatched_sizes=True,
                    )  # fmt: skip
                tried += 1
                try:
                    check_encoder_weights(net, info, kind)
                except UserError:
                    refused.add(kind)
    assert tried > 300
    assert refused <= {"perceiver"}  # its decoders, which are its heads, are inside its encoder by their names


# --- a head that is drawn anew ----------------------------------------------------------------------------------


@row("A1", "a head that the checkpoint does not have", before="drawn at random without a word", after="one log line")
def test_a_new_head_is_announced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "runner")

    def lines(architecture: str, key: str = models.PRETRAINED, **changes: Any) -> list[str]:
        caplog.clear()
        checkpoint = models.find(str(folder), key, Model(str(folder)))
        checkpoint.config.update(changes)
        models.check_weights(architecture, checkpoint)
        assert caplog.messages == []  # of two readings, the one that is used speaks
        models.load(architecture, checkpoint)
        return caplog.messages

    assert lines(QA) == lines(QA, "model.finetuned") == []
    (line,) = lines(HEADS[1])
    assert line == f"model.path={folder}: drawn at random, as the checkpoint lacks it: bert.pooler and classifier"
    (line,) = lines(HEADS[2])
    assert line.startswith(f"model.path={folder}: drawn at random, as the checkpoint lacks it: classifier")
    models.load(HEADS[2], models.find(str(folder), models.PRETRAINED, Model("m"))).save_pretrained(folder)
    assert lines(HEADS[2]) == []
    assert len(lines(HEADS[2], num_labels=5)) == 1  # a head of another task
    with pytest.raises(UserError, match=r"model.finetuned=.*: classifier.bias is \[2\] in its weights and \[5\] by"):
        lines(HEADS[2], "model.finetuned", num_labels=5)


# --- weights that cannot be read --------------------------------------------------------------------------------

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def header(text: str, size: int | None = None) -> bytes:
    """A safetensors file of this header, whose size is that of the text if not given."""
    return (len(text) if size is None else size).to_bytes(8, "little") + text.encode()


BROKEN = {
    "a git-LFS pointer": (LFS, "git lfs pull"),
    "empty": (b"", "is empty"),
    "a web page": (b"\n<!DOCTYPE html><html><title>404</title></html>", "a web page"),
    "zeros": (bytes(4096), "damaged or not whole"),
    "no tensor": (header("{}"), "holds no tensor"),
    "a header of 2^62 bytes": (header("{}", 2**62), "damaged or not whole"),
    "a header of 50 MB that is not there": (header("{}", 50_000_000), "damaged or not whole"),
    "a header that is no JSON": (header("[[[[" * 10_000), "damaged or not whole"),
    "a tensor of 2^60 elements": (
        header(json.dumps({WORDS: {"dtype": "F32", "shape": [2**30, 2**30], "data_offsets": [0, 0]}})), "damaged"),
    "a tensor outside the file": (
        header(json.dumps({WORDS: {"dtype": "F32", "shape": [2], "data_offsets": [2**40, 2**40 + 8]}})), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "words"), [
    pytest.param(*values, id=name, marks=row("C1", f"model.safetensors: {name}",
        before="a traceback, or an error in the middle of the run", after="the file and what it is"))
    for name, values in BROKEN.items()
])  # fmt: skip
def test_a_broken_safetensors_file(content: bytes, words: str, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(content)
    text = refusal(folder)
    assert f"its {WEIGHTS} " in text
    assert words in text
    with pytest.raises(UserError, match=f"its {WEIGHTS} |there are no weights"):
        inspect.inspect(folder)


@row("C1", "model.safetensors without its end", before="a traceback", after="the file is damaged or not whole")
def test_a_truncated_safetensors_file(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    for size in (4, 20, len(whole) // 2, len(whole) - 1):
        (folder / WEIGHTS).write_bytes(whole[:size])
        assert f"its {WEIGHTS} is damaged or not whole" in refusal(folder)


@row("C1", "weights under a name that transformers does not read", before="a long advice", after="names it reads")
def test_another_name(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "weights.safetensors")
    assert "no weights under a name that transformers reads: model.safetensors, " in refusal(folder)


@pytest.mark.parametrize("key", ["model.path", "model.finetuned"])
@row("C1", "a git-LFS pointer on the command line", before="a traceback after data were read", after="one message")
def test_command_line(key: str, folder: Path, saved: Path, refused: Refused) -> None:
    (folder / WEIGHTS).write_bytes(LFS)
    text = refused("model=hub", f"model.path={saved}", f"{key}={folder}", f"dataset.path={NO_DATA}")
    assert text == (
        f"error: {key}={folder}: its {WEIGHTS} is a git-LFS pointer, not the file itself: fetch that with `git lfs "
        "pull`\n"
    )


def test_the_size_of_a_header_is_not_taken_for_a_web_page(folder: Path) -> None:
    size = int.from_bytes(b"<!", "little")  # 8508
    text = json.dumps({"__metadata__": {"format": "pt"}, WORDS: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    (folder / WEIGHTS).write_bytes(header(text.ljust(size)) + bytes(4))
    assert (folder / WEIGHTS).read_bytes().startswith(b"<!")
    assert f"{WORDS} is [1] in its weights" in refusal(folder)


class Attack:
    """What a pickle runs when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.place,))


def as_pickle(folder: Path, content: Any) -> Path:
    (folder / WEIGHTS).unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    return folder


@row("B5", "a pickle that runs code", before="torch's advice to set weights_only=False", after="what it holds")
def test_a_pickle_that_runs_code(folder: Path, tmp_path: Path) -> None:
    text = refusal(as_pickle(folder, {WORDS: torch.ones(2), "x": Attack(tmp_path / "ran")}))
    assert "its pytorch_model.bin holds " in text
    assert "only tensors are read from a pickle, which could run code" in text
    assert "weights_only" not in text
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("content", "words"), [
    pytest.param(b"", "is empty", marks=row("C1", "pytorch_model.bin: empty", before="a traceback", after="named")),
    pytest.param(LFS, "git lfs", marks=row("C1", "pytorch_model.bin: LFS", before="torch's advice", after="named")),
    pytest.param(b"<html>", "web page", marks=row("C1", "pytorch_model.bin: HTML", before="torch's advice",
                                                  after="named")),
    pytest.param(b"\x80\x02garbage", "damaged", marks=row("C1", "pytorch_model.bin: garbage", before="a traceback",
                                                          after="damaged or not whole")),
    pytest.param({"state_dict": {WORDS: torch.ones(2)}, "epoch": 3}, "state_dict, epoch, not the tensors",
                 marks=row("C1", "pytorch_model.bin: a training's state", before="a traceback", after="its parts")),
    pytest.param([1, 2], "holds list", marks=row("C1", "pytorch_model.bin: a list", before="a traceback",
                                                 after="holds list")),
], ids=["empty", "lfs", "html", "garbage", "state", "list"])  # fmt: skip
def test_a_broken_pickle(content: Any, words: str, folder: Path) -> None:
    text = refusal(as_pickle(folder, content))
    assert "its pytorch_model.bin " in text
    assert words in text
    assert "weights_only" not in text


# --- weights that are no numbers --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [
    pytest.param(value, marks=row("C1", f"one weight is {value}", before="lower the learning rate, it said",
                                  after="the tensor is named before data are read"))
    for value in (float("nan"), float("inf"), float("-inf"), 1e300)
])  # fmt: skip
def test_weights_that_are_not_finite(value: float, folder: Path) -> None:
    def changed(tensors: Tensors) -> Tensors:
        words = tensors[WORDS].to(torch.float64 if value == 1e300 else torch.float32)
        words[3, 5] = value
        return tensors | {WORDS: words}

    text = refusal(change(folder, changed))
    assert f"1 of 19328 numbers of {WORDS} in {WEIGHTS} are NaN or infinite" in text
    assert "learning" not in text


@pytest.mark.parametrize("dtype", [
    pytest.param(dtype, marks=row("C1", f"weights stored as {dtype}", before="read as numbers without a word",
                                  after="the tensor and its type"))
    for dtype in (torch.int8, torch.int32, torch.uint8, torch.bool)
])  # fmt: skip
@pytest.mark.parametrize("names", [(WORDS,), (f"{LAYER}.output.dense.weight", f"{LAYER}.intermediate.dense.weight")])
def test_weights_that_are_integers(dtype: torch.dtype, names: tuple[str, ...], folder: Path) -> None:
    text = refusal(change(folder, lambda t: t | {name: t[name].mul(100).to(dtype) for name in names}))
    assert f" in {WEIGHTS} is stored as {str(dtype).removeprefix('torch.')}: " in text
    assert any(name in text for name in names)
