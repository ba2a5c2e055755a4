"""Matrices that are no Linear or Conv weight are named; convolutions on disk are counted by input channel."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from pruning import Magnitude, NofM, OneShot, Plan, Pruner, TrainingLength, as_matrix, matrix_weights
from runner import models
from runner.config.compose import compose_experiment
from runner.inspect import inspect, look, main
from runner.models.verify import VerificationError, verify
from runner.stages.announce import announce
from runner.stages.prepare import resolve
from runner.system.errors import UserError
from tests.conftest import FINISHED, Cli, save_small_model

SIZES = {
    "xlnet": {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 64},
    "funnel": {"d_model": 32, "block_sizes": [1, 1], "n_head": 2, "d_head": 16, "d_inner": 64},
    "ibert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
    "bert": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64},
}
QKVOR = [f"rel_attn.{name}" for name in "qkvor"]


def network(kind: str) -> transformers.PreTrainedModel:
    config = transformers.AutoConfig.for_model(kind, vocab_size=99, **SIZES[kind])
    return models.skeleton("AutoModelForSequenceClassification", config)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        pytest.param(
            "xlnet",
            QKVOR,
            marks=pytest.mark.bad_input(
                "A8", "XLNet, whose q, k, v, o, r are parameters", before="not mentioned", after="named, with share"
            ),
        ),
        pytest.param(
            "funnel",
            ["attention.r_kernel"],
            marks=pytest.mark.bad_input("A8", "Funnel's r_kernel", before="not mentioned", after="named, with share"),
        ),
        pytest.param(
            "ibert",
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
             "intermediate.dense", "output.dense"],
            marks=pytest.mark.bad_input(
                "A8", "I-BERT's QuantLinear, no subclass of Linear", before="not mentioned", after="named, with share"
            ),
        ),
        pytest.param(
            "gpt2",
            ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"],
            marks=pytest.mark.bad_input(
                "A8", "transformers' Conv1D (GPT-2)", before="not mentioned", after="named, with share"
            ),
        ),
        ("bert", []),
    ],
)  # fmt: skip
def test_matrices_outside_linear_layers_are_named_with_their_share(kind: str, expected: list[str]) -> None:
    net = network(kind)
    kinds = models.left_out(net)
    assert sorted(kinds) == sorted(expected)
    total = sum(p.numel() for p in net.parameters())
    counted = dict.fromkeys(expected, 0)
    for name, p in net.named_parameters():
        for one in expected:
            if re.search(rf"\.\d+\.{re.escape(one)}(\.weight)?$", name) and p.dim() > 1:
                counted[one] += p.numel()
    assert kinds == {one: counted[one] / total for one in kinds}
    text = models.describe_left_out(kinds)
    if expected:
        assert text is not None
        assert text.startswith(f"{sum(counted.values()) / total:.2%} of all weights are in no Linear or Conv layer")
        assert all(one in text for one in expected)
    else:
        assert text is None


@pytest.mark.bad_input(
    "A8", "gpt2: all of its matrices are Conv1D", before="no Linear or Conv layer", after="and what it has instead"
)
def test_the_refusal_of_an_encoder_without_linear_layers_names_what_it_has() -> None:
    with pytest.raises(UserError, match=r"no Linear or Conv layer in its encoder; .*% of all weights .*: attn\.c_attn"):
        models.prunable_parameters(network("gpt2"), models.Model(path="x"))


def save_xlnet(folder: Path) -> Path:
    """A small XLNet for question answering, with the tokenizer of the other small models."""
    save_small_model(folder)
    config: Any = transformers.AutoConfig.for_model("xlnet", vocab_size=load_vocabulary(folder), **SIZES["xlnet"])
    torch.manual_seed(0)
    transformers.XLNetForQuestionAnsweringSimple(config).save_pretrained(folder)
    return folder


def load_vocabulary(folder: Path) -> int:
    return json.loads((folder / "config.json").read_text())["vocab_size"]


@pytest.mark.bad_input(
    "A8",
    "dry run of XLNet",
    before="zeros in the end: 0.79 of all Linear and Conv weights",
    after="and what is left out",
)
def test_the_announcement_of_a_run_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = save_xlnet(tmp_path / "xlnet")
    inputs = resolve(*compose_experiment(["model=hub", f"model.path={folder}", *FINISHED]))
    with caplog.at_level(logging.INFO):
        announce(inputs)
    text = models.describe_left_out(models.left_out(inputs.net))
    assert text is not None
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING].count(text) == 1


@pytest.mark.slow
@pytest.mark.bad_input(
    "A8", "a run of XLNet", before="79 % of all Linear and Conv weights", after="what is left out is in result and card"
)
def test_result_and_card_of_a_run_name_them(cli: Cli, tmp_path: Path) -> None:
    folder = save_xlnet(tmp_path / "xlnet")
    done = cli("-m", "runner", "model=hub", f"model.path={folder}", *FINISHED)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs").glob("*/")
    result = json.loads((run / "result.json").read_text())
    pruning = json.loads((run / "model" / "pruning.json").read_text())
    kinds = result["verification"]["left_out"]
    assert pruning["left_out"] == kinds
    assert sorted(kinds) == sorted(QKVOR)
    text = models.describe_left_out(kinds)
    assert text is not None
    assert f"left out          {text}" in done.stdout + done.stderr
    assert f" {text}.\n" in (run / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.bad_input(
    "A8", "inspect of a saved XLNet", before="a ratio of all Linear and Conv weights", after="and what is left out"
)
def test_inspect_names_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_xlnet(tmp_path / "xlnet")
    text = models.describe_left_out(inspect(folder).left_out)
    assert text is not None
    assert main([str(folder)]) == 0
    assert text in " ".join(capsys.readouterr().out.split())


# --- convolutions on disk -----------------------------------------------------------------------------------


def save_convolution(folder: Path) -> str:
    """A model with a real convolution, DeBERTa-v2's: the name of its weight."""
    config: Any = transformers.AutoConfig.for_model(
        "deberta-v2", vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        conv_kernel_size=4,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.DebertaV2ForSequenceClassification(config).save_pretrained(folder)
    return "deberta.encoder.conv.conv.weight"


@pytest.mark.bad_input(
    "A7", "inspect of a file that is 2:4 along input channels", before="no pattern", after="2:4, and not along the taps"
)
def test_inspect_counts_groups_of_input_channels(tmp_path: Path) -> None:
    name = save_convolution(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    dense = tensors[name].clone()
    assert dense.shape == (32, 32, 4)
    for zero, patterns in (((slice(None), slice(0, None, 2)), ["2:4"]), ((..., slice(0, None, 2)), [])):
        tensors[name] = dense.clone()
        tensors[name][zero] = 0  # every second input channel; every second tap
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        (layer,) = [layer for layer in inspect(tmp_path).layers if layer.zeros]
        assert (layer.name, layer.shape, layer.sparsity) == (name, (32, 32, 4), 0.5)
        assert ("2:4" in layer.patterns) == ("2:4" in patterns)


@pytest.mark.bad_input(
    "A7", "recount of a convolution pruned to 2:4", before="groups of taps", after="groups of input channels"
)
def test_the_recount_of_a_saved_convolution_is_by_input_channel(tmp_path: Path) -> None:
    name = save_convolution(tmp_path)
    net: nn.Module = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pruner = Pruner(Plan({name: matrix_weights(net)[name]}, NofM(2, 4)), OneShot(), TrainingLength(10), Magnitude())
    pruner.prune(1.0)
    net.save_pretrained(tmp_path)  # type: ignore[operator]
    architecture = "AutoModelForSequenceClassification"
    counted = verify(tmp_path, architecture, pruner.report())
    assert (counted.violations, counted.sparsity, counted.left_out) == (0, 0.5, {})
    tensors = load_file(tmp_path / "model.safetensors")
    tensors[name] = tensors[name].flip(2).roll(1, 1)  # as many zeros, groups shifted by a channel
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(VerificationError, match="units break 2:4"):
        verify(tmp_path, architecture, pruner.report())


@pytest.mark.bad_input(
    "A7", "inspect of three input channels whose flat rows alternate", before="2:4 holds", after="2:4 does not fit"
)
def test_a_pattern_that_does_not_fit_one_tap_is_not_found() -> None:
    weight = torch.ones(8, 3, 4)
    matrix = as_matrix(weight).clone()
    matrix[:, ::2] = 0  # [8, 12] would divide into groups of 4
    assert NofM(2, 4).violations(matrix) == 0
    layer = look("conv.weight", tuple(weight.shape), matrix)
    assert layer.sparsity == 0.5
    assert not [name for name in layer.patterns if ":" in name]
