"""`python -m runner.export`: exports compute what PyTorch does, at other lengths and batch sizes than when exported."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from pruning import CoupledWeights, Structured, couple, matrix_weights
from pruning.runtime.packed_file import Packed
from runner import export
from runner.exports import card
from runner.exports import check as checking
from runner.exports.check import check, sentences
from runner.speed.measure import load
from runner.system import files
from runner.system.errors import UserError
from tests.conftest import ROOT, Cli, save_small_model

HAS_LIBRARIES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"), "packed": ()}
FORMATS = list(HAS_LIBRARIES)


def require(to: str) -> None:
    for module in HAS_LIBRARIES[to]:
        pytest.importorskip(module, reason=f"{module} is not installed (the extra bench)")


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run's folder."""
    (file,) = (finished_run / "outputs").glob("*/result.json")
    return Path(shutil.copytree(file.parent, tmp_path / "run"))


def refused(*arguments: object) -> str:
    with pytest.raises(UserError) as error:
        export.main([str(argument) for argument in arguments])
    return str(error.value)


def use_card(folder: Path) -> dict:
    """What the lines of an export's card leave in their variables."""
    text = (folder / "README.md").read_text().replace(card.HERE, str(folder))
    (lines,) = (part.split("```")[0] for part in text.split("```python\n")[1:] if str(folder) in part)
    assert len(lines.strip().splitlines()) == 3
    variables: dict = {}
    exec(lines, variables)
    return variables


@pytest.mark.parametrize("to", FORMATS)
def test_a_run_is_exported_and_used_by_the_lines_of_its_card(to: str, run: Path, cli: Cli, finished_run: Path) -> None:
    require(to)
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}  # with optional libraries
    done = cli("-m", "runner.export", str(run), "--to", to, env=path)
    assert done.returncode == 0, done.stderr
    assert "checked with 8 evaluation examples of demo" in done.stderr
    place = run / "exports" / to
    names = {"README.md", "config.json", "export.json", "tokenizer.json", "tokenizer_config.json", card.FILES[to]}
    names |= {"model.bin"} if to == "openvino" else set()
    assert {file.name for file in place.iterdir()} == names | {files.MANIFEST}
    assert files.integrity_error(place) is None
    for file in place.iterdir():
        for secret in (str(run.parent), str(finished_run), str(Path.home()), str(Path(export.__file__).parents[1])):
            assert secret.encode() not in file.read_bytes(), file.name
    text = (place / "README.md").read_text()
    assert "pruned to `4x1`" in text
    assert text.count("## Load it") == 1
    assert json.loads((place / "export.json").read_text())["outputs"] == ["start_logits", "end_logits"]

    variables = use_card(place)
    model = load(run / "model", "RUN")
    with torch.inference_mode():
        expected = model(**variables["tokenizer"]("A text.", return_tensors="pt"))
    atol = 2e-2 if to == "packed" else 1e-4  # packed: bfloat16 where the CPU has it
    for name in ("start_logits", "end_logits"):
        torch.testing.assert_close(torch.as_tensor(variables[name]), expected[name], atol=atol, rtol=1e-2)

    again = cli("-m", "runner.export", str(run), "--to", to, env=path)
    assert (again.returncode, again.stdout) == (0, f"{place} has this export already\n")


@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", [AutoModel, AutoModelForSequenceClassification, AutoModelForTokenClassification])
def test_heads_labels_and_any_batch_and_length(to: str, kind: type, small_model: Path) -> None:
    require(to)
    labels = {0: "no", 1: "perhaps", 2: "yes"}
    config = AutoConfig.from_pretrained(small_model, id2label=labels, label2id={v: k for k, v in labels.items()})
    kind.from_config(config).save_pretrained(small_model)  # type: ignore[attr-defined]
    export.main([str(small_model), "--to", to])
    place = small_model / "exports" / to
    assert json.loads((place / "config.json").read_text())["id2label"] == {str(k): v for k, v in labels.items()}
    outputs = ["last_hidden_state", "pooler_output"] if kind is AutoModel else ["logits"]
    assert json.loads((place / "export.json").read_text())["outputs"] == outputs
    file = place / card.FILES[to]
    run = export.session(file, 1) if to == "onnx" else export.compiled(file, "float32", 1)
    model = load(small_model, "RUN")
    for batch, length in ((1, 1), (1, 2), (5, 33), (2, 200)):
        tokens = torch.randint(5, 600, (batch, length))
        mask = torch.ones_like(tokens)
        mask[-1, length // 2 + 1 :] = 0
        inputs = {"input_ids": tokens, "attention_mask": mask, "token_type_ids": torch.zeros_like(tokens)}
        assert check(model, run, [inputs], "float32", to) < 1e-5


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_packed_files_in_each_precision(kind: str, precision: str, tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "m", kind)
    export.main([str(folder), "--to", "packed", "--precision", precision])
    name = "packed" if precision == "float32" else f"packed-{precision}"
    assert Packed.read(folder / "exports" / name / "model.packed.safetensors").precision == precision


def test_dead_parts_are_cut_out_of_the_graph(small_model: Path) -> None:
    require("onnx")
    file = small_model / "model.safetensors"
    tensors = load_file(file)
    tensors["bert.encoder.layer.0.output.dense.weight"][:, 3:40] = 0
    tensors["bert.encoder.layer.1.attention.output.dense.weight"][:, :16] = 0
    save_file(tensors, file, {"format": "pt"})
    export.main([str(small_model), "--to", "onnx", "--output", str(small_model / "cut")])
    recorded = json.loads((small_model / "cut" / "export.json").read_text())["cut"]
    assert (recorded["channels"], recorded["heads"]) == (37, 1)
    onnx = pytest.importorskip("onnx")
    shapes = [tuple(w.dims) for w in onnx.load(small_model / "cut" / "model.onnx").graph.initializer]
    assert (32, 27) in shapes
    assert (27, 32) in shapes
    assert shapes.count((32, 16)) == 3


def test_a_smaller_folder_of_a_run_is_an_ordinary_model(run: Path, cli: Cli) -> None:
    file = run / "model" / "model.safetensors"
    tensors = load_file(file)
    for layer in (0, 1):
        tensors[f"bert.encoder.layer.{layer}.intermediate.dense.weight"][10 * layer : 10 * layer + 30] = 0
        tensors[f"bert.encoder.layer.{layer}.intermediate.dense.bias"] += 0.3  # what a dead channel adds moves
    save_file(tensors, file, {"format": "pt"})
    done = cli("-m", "runner.export", str(run), "--to", "transformers")
    assert done.returncode == 0, done.stderr
    assert "checked with 8 evaluation examples of demo" in done.stderr
    place = run / "exports" / "transformers"
    assert files.integrity_error(place) is None
    for written in place.iterdir():
        for secret in (str(run.parent), str(Path.home()), str(Path(export.__file__).parents[1])):
            assert secret.encode() not in written.read_bytes(), written.name
    width = json.loads((place / "config.json").read_text())["intermediate_size"]
    assert width <= 34
    smaller = load_file(place / "model.safetensors")
    for layer in (0, 1):
        assert smaller[f"bert.encoder.layer.{layer}.intermediate.dense.weight"].shape == (width, 32)
        assert smaller[f"bert.encoder.layer.{layer}.output.dense.weight"].shape == (32, width)
    tokens = AutoTokenizer.from_pretrained(place)("A text.", return_tensors="pt")
    loaded = AutoModelForQuestionAnswering.from_pretrained(place)
    with torch.inference_mode():
        expected, got = load(run / "model", "RUN")(**tokens), loaded(**tokens)
    torch.testing.assert_close(got.start_logits, expected.start_logits, atol=1e-5, rtol=1e-5)
    text = (place / "README.md").read_text()
    assert "fewer feed-forward channels" in text
    assert "AutoModelForQuestionAnswering.from_pretrained" in text
    scored = cli("-m", "runner.evaluate", str(place), "dataset=demo", "dataset.eval_examples=20")
    assert scored.returncode == 0, scored.stderr
    again = cli("-m", "runner.export", str(run), "--to", "transformers")
    assert (again.returncode, again.stdout) == (0, f"{place} has this export already\n")


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_layers_that_use_unequal_numbers_of_channels_get_the_largest(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_small_model(tmp_path / "m", kind)
    caplog.set_level("INFO")
    tensors = load_file(folder / "model.safetensors")
    ups = [name for name in tensors if name.endswith(("intermediate.dense.weight", "lin1.weight"))]
    tensors[ups[0]][:20] = 0
    tensors[ups[1]][30:64] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    export.main([str(folder), "--to", "transformers"])
    assert "the layers use 30 to 44 of 64 channels, and all get 44; --to onnx, openvino and packed" in caplog.text
    place = folder / "exports" / "transformers"
    config = json.loads((place / "config.json").read_text())
    assert config["hidden_dim" if kind == "distilbert" else "intermediate_size"] == 44
    assert json.loads((place / "export.json").read_text())["cut"]["channels"] == 40
    assert {tuple(value.shape) for name, value in load_file(place / "model.safetensors").items() if name in ups} == {
        (44, 32)
    }
    lines = (place / "README.md").read_text().split("```")[1].removeprefix("python\n").replace(card.HERE, str(place))
    variables: dict = {}
    exec(lines, variables)
    assert variables["model"].num_parameters() == load(place, "x").num_parameters()


def test_a_folder_that_would_not_be_smaller_is_refused(small_model: Path, tmp_path: Path) -> None:
    text = refused(small_model, "--to", "transformers")
    assert "they use 64 of 64: nothing can be cut. --to onnx, openvino and packed cut each layer by itself" in text
    tensors = load_file(small_model / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"][:, :20] = 0
    tensors["bert.encoder.layer.0.attention.output.dense.weight"][:, :16] = 0
    save_file(tensors, small_model / "model.safetensors", {"format": "pt"})
    text = refused(small_model, "--to", "transformers")
    assert "they use 44 to 64 of 64; 1 of 4 heads compute nothing, and config.json cannot name fewer" in text
    assert not (small_model / "exports" / "transformers").exists()
    config = AutoConfig.for_model("ibert", vocab_size=604, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                                  intermediate_size=64)  # fmt: skip
    AutoModel.from_config(config).save_pretrained(small_model)
    assert (
        "--to transformers: nothing can be cut out of this model (no heads or channels of the architecture 'ibert'"
        in refused(small_model, "--to", "transformers")
    )


FAMILIES: dict[str, dict] = {
    "roberta": {},
    "electra": {"embedding_size": 16},
    "mpnet": {},
    "albert": {"embedding_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "share_att_key": True, "pos_att_type": "p2c|c2p",
                   "norm_rel_ebd": "layer_norm", "position_biased_input": False, "type_vocab_size": 0},
    "modernbert": {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2},
}  # fmt: skip


def pruned_family(kind: str, folder: Path) -> tuple[int, int]:
    """A model with 20 dead channels in each feed-forward network and one dead head in the last layer, by the matrices
    that the engine finds; the numbers of networks, and of layers with weights of their own.
    """
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = AutoConfig.for_model(kind, vocab_size=604, **sizes, **FAMILIES[kind])
    torch.manual_seed(0)
    model = AutoModelForQuestionAnswering.from_config(config)
    units = couple(model, matrix_weights(model), Structured(), 4)
    coupled = {name: weights for name, weights in units.items() if isinstance(weights, CoupledWeights)}
    channels = [weights for name, weights in coupled.items() if name.endswith("channels")]
    heads = [weights for name, weights in coupled.items() if name.endswith("heads")]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape), alpha=0.1)
        for number, weights in enumerate(channels):
            for part in weights.parts:
                part.view(part.parameter)[number : number + 20] = 0
        for part in heads[-1].parts:
            part.view(part.parameter)[1] = 0
    model.save_pretrained(folder)
    return len(channels), len(heads)


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_smaller_folder_of_each_family_loads_anywhere(
    kind: str, small_model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    channels, layers = pruned_family(kind, small_model)
    export.main([str(small_model), "--to", "transformers"])
    place = small_model / "exports" / "transformers"
    config = json.loads((place / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"]) == (44, 4)
    counts = json.loads((place / "export.json").read_text())["cut"]
    assert (counts["channels"], counts["all_channels"]) == (20 * channels, 64 * channels)
    assert f"1 of {4 * layers} heads compute nothing, and config.json cannot name fewer" in caplog.text
    width = 3 if kind == "modernbert" else 2  # a gate too
    biases = 0 if kind == "modernbert" else 1
    before, after = load(small_model, "x").eval(), AutoModelForQuestionAnswering.from_pretrained(place).eval()
    assert before.num_parameters() - after.num_parameters() == 20 * channels * (32 * width + biases)
    tokens = AutoTokenizer.from_pretrained(place)("A text of some words.", return_tensors="pt")
    with torch.inference_mode():
        expected, got = (model(**{"input_ids": tokens["input_ids"]}).start_logits for model in (before, after))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
@pytest.mark.parametrize("kind", FAMILIES)
def test_graphs_of_each_family_are_cut(kind: str, to: str, small_model: Path) -> None:
    require(to)
    channels, layers = pruned_family(kind, small_model)
    export.main([str(small_model), "--to", to])
    record = json.loads((small_model / "exports" / to / "export.json").read_text())
    assert (record["cut"]["channels"], record["cut"]["heads"]) == (20 * channels, 1)
    assert record["cut"]["all_heads"] == 4 * layers
    assert record["difference"] < 1e-4


def test_an_export_that_computes_something_else_is_removed(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = export.packed.loaded
    monkeypatch.setattr(export.packed, "loaded", lambda *a: lambda inputs: [1.01 * v for v in whole(*a)(inputs)])
    text = refused(small_model, "--to", "packed")
    assert "--to packed: its start_logits differ from PyTorch's by 0.01" in text
    assert "0.0001 is allowed in float32; the export is removed" in text
    assert list((small_model / "exports").iterdir()) == []


def test_padding_is_not_compared_and_other_shapes_and_nan_are_seen(small_model: Path) -> None:
    model = load(small_model, "RUN")
    inputs = sentences(AutoTokenizer.from_pretrained(small_model), 512)
    assert len({tuple(batch["input_ids"].shape) for batch in inputs}) == 3
    assert any(bool((batch["attention_mask"] == 0).any()) for batch in inputs)

    def run(change):  # type: ignore[no-untyped-def]
        return lambda batch: [change(value, batch["attention_mask"]) for value in model(**batch).values()]

    with torch.inference_mode():
        assert check(model, run(lambda v, mask: v.masked_fill(mask == 0, 7)), inputs, "float32", "x") == 0
        for change in (lambda v, _: v[:, :-1], lambda v, _: v * torch.nan, lambda v, _: v + 1):
            with pytest.raises(UserError, match="x: its start_logits differ"):
                check(model, run(change), inputs, "float32", "x")
    assert checking.TOLERANCE.keys() == {"float32", "bfloat16", "int8"}


def test_another_export_in_the_folder_is_replaced_only_with_force(small_model: Path) -> None:
    place = small_model / "there"
    export.main([str(small_model), "--to", "packed", "--output", str(place)])
    before = (place / "model.packed.safetensors").read_bytes()
    other = (str(small_model), "--to", "packed", "--precision", "int8", "--output", str(place))
    assert "this exists, and is another export or none; --force replaces" in refused(*other)
    assert (place / "model.packed.safetensors").read_bytes() == before
    export.main([*other, "--force"])
    assert json.loads((place / "export.json").read_text())["precision"] == "int8"
    mine = small_model / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("mine")
    text = refused(small_model, "--to", "packed", "--output", mine, "--force")
    assert "--force replaces exports only" in text
    assert (mine / "notes.txt").read_text() == "mine"


def test_a_library_that_is_missing_is_named(small_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(export._NEEDED, "onnx", ("no_such_library",))
    text = refused(small_model, "--to", "onnx")
    assert text == "--to onnx: no_such_library is not installed: .venv/bin/pip install -e '.[bench]'"


@pytest.mark.parametrize(("arguments", "words"), [
    (["MODEL", "--to", "tflite"], "--to tflite: choose from onnx, openvino, packed"),
    (["MODEL", "--to", "packed", "--precision", "int4"], "--precision int4: choose from float32, bfloat16, int8"),
    (["MODEL", "--to", "onnx", "--precision", "int8"], "--precision int8: only --to packed has it; onnx is float32"),
    (["nowhere", "--to", "packed"], "nowhere: there is no config.json in this folder"),
    (["0" * 32, "--to", "packed"], "tracking.uri=sqlite:///mlflow.db: there is no such database"),
])  # fmt: skip
def test_arguments_that_make_no_sense_are_refused(
    arguments: list[str], words: str, small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(small_model.iterdir())
    assert words in refused(*(str(small_model) if a == "MODEL" else a for a in arguments))
    assert sorted(small_model.iterdir()) == before


def test_a_family_without_kernels_has_no_packed_file(small_model: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = AutoConfig.for_model("mpnet", vocab_size=604, **sizes)
    AutoModel.from_config(config).save_pretrained(small_model)
    text = refused(small_model, "--to", "packed")
    assert "--to packed: no kernels for the architecture 'mpnet'" in text
    assert text.endswith("use --to onnx or --to openvino")
    assert not (small_model / "exports" / "packed").exists()
