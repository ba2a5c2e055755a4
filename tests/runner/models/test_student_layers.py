"""Students with some of the dense model's layers: which layers, their weights, and what cannot be taken apart."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForQuestionAnswering, PreTrainedModel

from runner import models
from runner.models import Model, StudentLayers
from runner.models.layers import evenly, origins
from runner.system.errors import UserError
from tests.families import FAMILIES, save

QA = "AutoModelForQuestionAnswering"
SHARED = "albert-base"
"""The family whose layers share their weights."""
APART = [name for name in FAMILIES if name != SHARED]
SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 60}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All families with 6 layers."""
    root = tmp_path_factory.mktemp("hub")
    with models.quiet_loading():
        for name, family in FAMILIES.items():
            save(replace(family, sizes={**family.sizes, "num_hidden_layers": 6}), root / name)
    return root


def dense(folder: Path, **settings: Any) -> tuple[models.Checkpoint, StudentLayers | None]:
    model = Model(path=str(folder), **settings)
    checkpoint = models.find(model.path, models.PRETRAINED, model)
    return checkpoint, models.student_layers(model, checkpoint)


def network(kind: str, **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForQuestionAnswering.from_config(AutoConfig.for_model(kind, **settings)).eval()


@torch.inference_mode()
def outputs(net: PreTrainedModel) -> Any:
    return net(input_ids=torch.arange(5, 35).view(3, 10), output_hidden_states=True)


@pytest.mark.parametrize("name", APART)
def test_layers_of_the_student_are_the_teachers_and_the_folder_is_an_ordinary_one(
    name: str, hub: Path, tmp_path: Path
) -> None:
    checkpoint, chosen = dense(hub / name, num_layers=3)
    assert chosen == StudentLayers([0, 2, 5], 6)
    whole = models.load(QA, checkpoint)
    with torch.no_grad():
        for parameter in whole.parameters():  # biases and norms differ from layer to layer, too
            parameter.add_(0.02 * torch.randn_like(parameter))
    student = models.keep_layers(whole, chosen)

    first = FAMILIES[name].pruned[0]
    stack = first[: first.index(".0.") + 1]
    mine, theirs = dict(student.named_parameters()), dict(whole.named_parameters())
    for place, layer in enumerate([0, 2, 5]):
        start = f"{stack}{layer}."
        of_layer = {n.removeprefix(start): p for n, p in theirs.items() if n.startswith(start)}
        assert len(of_layer) >= 5
        for rest, parameter in of_layer.items():
            assert torch.equal(mine.pop(f"{stack}{place}.{rest}"), parameter), (layer, rest)
    assert {n for n in theirs if not n.startswith(stack)} == mine.keys()  # embeddings, head
    assert all(torch.equal(parameter, theirs[n]) for n, parameter in mine.items())

    student.save_pretrained(tmp_path)
    loaded = AutoModelForQuestionAnswering.from_pretrained(tmp_path).eval()
    assert loaded.config.num_hidden_layers == 3
    expected, got = outputs(student), outputs(loaded)
    assert torch.equal(expected.start_logits, got.start_logits)
    assert len(got.hidden_states) == 4
    assert torch.equal(got.hidden_states[1], outputs(whole).hidden_states[1])  # the embeddings and the first layer

    skeleton = models.student_skeleton(QA, checkpoint.config, chosen)
    shapes = {n: p.shape for n, p in skeleton.named_parameters()}
    assert shapes == {n: p.shape for n, p in loaded.named_parameters()}
    assert models.keep_layers(student, chosen) is student  # it has that few already


def test_without_the_top_layers_hidden_states_stay_what_they_are(hub: Path) -> None:
    checkpoint, chosen = dense(hub / "minilm-l6", layers=[0, 1, 2, 3])
    whole = models.load(QA, checkpoint)
    student = models.keep_layers(whole, chosen)
    states = outputs(whole).hidden_states
    assert [torch.equal(a, b) for a, b in zip(outputs(student).hidden_states, states[:5], strict=True)] == [True] * 5


def test_settings_by_layer_go_with_their_layer(hub: Path) -> None:
    checkpoint, _ = dense(hub / "modernbert-base")
    kinds = checkpoint.config.layer_types
    assert kinds == ["full_attention", "sliding_attention", "sliding_attention"] * 2
    student = models.student_skeleton(QA, checkpoint.config, StudentLayers([0, 3, 4], 6))
    assert student.config.layer_types == [kinds[0], kinds[3], kinds[4]]
    assert checkpoint.config.layer_types == kinds
    windows = [2, 4, 6, 8]
    whole = network("longformer", **SIZES, num_hidden_layers=4, attention_window=windows, max_position_embeddings=80)
    student = models.keep_layers(whole, StudentLayers([1, 3], 4))
    assert student.config.attention_window == [4, 8]


def test_families_with_other_names_and_several_lists_of_layers() -> None:
    student = models.keep_layers(network("distilbert", dim=32, n_layers=4, n_heads=2, hidden_dim=64),
                                 StudentLayers([0, 3], 4))  # fmt: skip
    assert student.config.n_layers == 2
    whole = network("xlm", emb_dim=32, n_layers=4, n_heads=2, n_words=60)
    student = models.keep_layers(whole, StudentLayers([1, 2], 4))
    arriving = origins(student, whole, StudentLayers([1, 2], 4))
    assert arriving["transformer.attentions.1.q_lin.weight"] == "transformer.attentions.2.q_lin.weight"
    assert arriving["transformer.layer_norm2.0.bias"] == "transformer.layer_norm2.1.bias"
    mine, theirs = student.state_dict(), whole.state_dict()
    assert torch.equal(mine["transformer.ffns.1.lin1.weight"], theirs["transformer.ffns.2.lin1.weight"])


def test_a_model_whose_layers_share_their_weights_is_refused(hub: Path) -> None:
    checkpoint, chosen = dense(hub / SHARED, num_layers=3)
    with pytest.raises(UserError, match="the layers of albert share their weights, so none can be left out"):
        models.student_skeleton(QA, checkpoint.config, chosen)


def test_a_layer_that_cannot_stand_in_another_place_is_refused(hub: Path) -> None:
    checkpoint, chosen = dense(hub / "modernbert-base", layers=[1, 2])
    with pytest.raises(UserError, match=r"model.layers=\[1, 2\]: model.layers.1.attn_norm.weight of modernbert has no "
                                        r"place in the student: .* let the list begin with 0"):  # fmt: skip
        models.student_skeleton(QA, checkpoint.config, chosen)
    config = AutoConfig.for_model("funnel", block_sizes=[2, 2], d_model=32, n_head=2, d_head=16, d_inner=64)
    with pytest.raises(UserError, match="the configuration of funnel has no single number of layers"):
        models.student_skeleton(QA, config, StudentLayers([0, 1], 4))


@given(of=st.integers(1, 60), data=st.data())
def test_even_layers_are_ascending_with_the_first_and_the_last(of: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(1, of))
    chosen = evenly(number, of)
    assert len(chosen) == len(set(chosen)) == number
    assert chosen == sorted(chosen)
    assert chosen[0] == 0
    if number > 1:
        assert chosen[-1] == of - 1
        assert max(abs(layer - i * (of - 1) / (number - 1)) for i, layer in enumerate(chosen)) <= 0.5
        gaps = [b - a for a, b in itertools.pairwise(chosen)]
        assert max(gaps) - min(gaps) <= 1


def test_even_layers_are_those_of_distilbert() -> None:
    assert evenly(6, 12) == [0, 2, 4, 7, 9, 11]
    assert [evenly(number, 6) for number in (1, 2, 3, 4, 5, 6)] == [
        [0], [0, 5], [0, 2, 5], [0, 2, 3, 5], [0, 1, 2, 4, 5], [0, 1, 2, 3, 4, 5],
    ]  # fmt: skip


def test_all_layers_are_no_choice(hub: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert dense(hub / "minilm-l6")[1] is None
    assert not caplog.records
    assert dense(hub / "minilm-l6", num_layers=6)[1] is None
    assert "model.num_layers=6: these are all layers of" in caplog.text


@pytest.mark.parametrize(("settings", "words"), [
    ({"num_layers": 7}, r"model.num_layers=7: .*minilm-l6 \(model.path\) has 6 layers; choose a number below"),
    ({"layers": [0, 6]}, r"model.layers=\[0, 6\]: .* has no layer 6: it has 0 to 5"),
    ({"layers": [2, 1]}, r"model.layers=\[2, 1\]: name each layer once, ascending, counted from 0"),
    ({"layers": [1, 1]}, "name each layer once"),
    ({"layers": [-1, 1]}, "counted from 0"),
    ({"num_layers": 0}, "model.num_layers=0 must be at least 1"),
    ({"num_layers": 2, "layers": [0, 1]}, r"model.num_layers=2: model.layers=\[0, 1\] names them; leave one out"),
])  # fmt: skip
def test_layers_that_do_not_exist_are_refused(settings: dict, words: str, hub: Path) -> None:
    with pytest.raises(UserError, match=words):
        dense(hub / "minilm-l6", **settings)
