"""Multiply-accumulates against the formula for BERT, bytes against gzip itself."""

import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from runner import models
from runner.models import footprint
from runner.system.errors import UserError
from tests.conftest import save_small_model

ARCHITECTURE = "AutoModelForQuestionAnswering"


@pytest.mark.parametrize("tokens", [1, 17, 384])
@pytest.mark.parametrize(("layers", "hidden", "wide"), [(12, 768, 3072), (4, 256, 1024), (2, 32, 64)])
def test_macs_of_bert_are_those_of_the_formula(layers: int, hidden: int, wide: int, tokens: int) -> None:
    sizes = {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": wide, "num_attention_heads": 2}
    net = models.skeleton(ARCHITECTURE, AutoConfig.for_model("bert", **sizes))
    of_matrices = tokens * (layers * (4 * hidden**2 + 2 * hidden * wide) + 2 * hidden)  # the head has two rows
    of_attention = layers * 2 * tokens**2 * hidden  # Q K^T, and the weights times V
    assert footprint.macs(net, tokens) == of_matrices + of_attention
    assert set(footprint.uses(net, tokens).values()) == {tokens}


def test_shared_layers_count_each_time_they_are_used() -> None:
    config = AutoConfig.for_model("albert", num_hidden_layers=3, hidden_size=32, intermediate_size=64,
                                  num_attention_heads=2, embedding_size=16)  # fmt: skip
    used = footprint.uses(models.skeleton(ARCHITECTURE, config), 10)
    assert {count for name, count in used.items() if "albert_layers" in name} == {30}
    assert used["albert.encoder.embedding_hidden_mapping_in.weight"] == 10


def test_a_model_that_looks_at_numbers_on_its_way_is_counted_too(tmp_path: Path) -> None:
    config = AutoConfig.for_model("deberta-v2", num_hidden_layers=2, hidden_size=32, intermediate_size=64,
                                  num_attention_heads=2, vocab_size=100)  # fmt: skip
    import transformers

    transformers.AutoModelForQuestionAnswering.from_config(config).save_pretrained(tmp_path)
    found = footprint.footprint(tmp_path, ARCHITECTURE, 16)
    assert found.macs_dense > 16 * 2 * (4 * 32**2 + 2 * 32 * 64)
    assert found.macs_dense - found.macs_sparse < 100  # nothing was pruned


def test_what_is_zero_remains_neither_as_bytes_nor_as_multiply_accumulates(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    whole = footprint.footprint(folder, ARCHITECTURE, 20)
    file = folder / "model.safetensors"
    assert whole.bytes == file.stat().st_size
    assert whole.compressed_bytes == pytest.approx(len(gzip.compress(file.read_bytes(), 6)), rel=0.001)
    model: Any = models.load(ARCHITECTURE, models.find(str(folder), "model", models.Model(path=str(folder))))
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[:, :60] = 0
    model.save_pretrained(folder)
    pruned = footprint.footprint(folder, ARCHITECTURE, 20)
    assert (pruned.bytes, pruned.macs_dense) == (whole.bytes, whole.macs_dense)
    assert whole.macs_sparse - pruned.macs_sparse == 20 * 32 * 60
    assert whole.compressed_bytes - pruned.compressed_bytes > 32 * 60 * 3


def test_large_files_are_compressed_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(torch.randint(0, 4, (300_000,), dtype=torch.uint8).numpy()))
    whole = footprint.compressed(file)
    monkeypatch.setattr(footprint, "_CHUNK", 2**16)
    assert whole < footprint.compressed(file) < 1.02 * whole


def test_what_remains_is_counted_with_and_without_the_parts_that_compute_nothing(tmp_path: Path) -> None:
    folder = save_small_model(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.weight"][:, :10] = 0
    tensors["bert.encoder.layer.1.attention.output.dense.weight"][:, 16:] = 0
    net = models.skeleton(ARCHITECTURE, AutoConfig.from_pretrained(folder))
    left = footprint.remaining(net, tensors)
    assert left is not None
    assert left.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert left.macs_per_token == 2 * (4 * 32**2 + 2 * 32 * 64) + 2 * 32 + 2 * 2 * 128 * 32
    assert (left.dead.channels, left.dead.heads) == (10, 1)
    assert left.parameters - left.parameters_cut == 10 * (2 * 32 + 1) + 16 * 4 * 32 + 3 * 16
    assert left.macs_per_token - left.macs_per_token_cut == 10 * 2 * 32 + 16 * 4 * 32 + 2 * 128 * 16


def test_what_is_gone_is_read_from_the_records(tmp_path: Path) -> None:
    assert footprint.gone(tmp_path) == []
    (tmp_path / "pruning.json").write_text('{"student_layers": {"layers": [0, 5], "of": 6}}')
    (tmp_path / "export.json").write_text('{"to": "transformers", "cut": {"channels": 4, "all_channels": 64}}')
    assert footprint.gone(tmp_path) == [
        "it has 2 of 6 layers (0, 5) of the dense model",
        "4 of 64 channels, 0 of 0 heads were cut out of it by the export",
    ]
    for damaged in ("[]", "{", '{"cut": {"nothing": 1}}'):
        (tmp_path / "export.json").write_text(damaged)
        with pytest.raises(UserError, match=r"export\.json is damaged"):
            footprint.gone(tmp_path)


@pytest.mark.parametrize("kind", ["deberta-v2", "albert"])
def test_what_remains_of_a_family_that_is_not_cut(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, num_hidden_layers=2, hidden_size=32, intermediate_size=64,
                                  num_attention_heads=2, vocab_size=100, embedding_size=32)  # fmt: skip
    net = models.skeleton(ARCHITECTURE, config)
    left = footprint.remaining(net, {})
    assert left is not None
    assert left.parameters == left.parameters_cut == net.num_parameters()
    assert left.macs_per_token == left.macs_per_token_cut > 2 * (4 * 32**2 + 2 * 32 * 64)
    assert (left.dead.channels, left.dead.heads, left.dead.all_heads) == (0, 0, 4 if kind == "deberta-v2" else 2)


def test_what_remains_of_a_family_that_nobody_knows() -> None:
    config = AutoConfig.for_model("ibert", num_hidden_layers=2, hidden_size=32, intermediate_size=64,
                                  num_attention_heads=2, vocab_size=100)  # fmt: skip
    net = models.skeleton(ARCHITECTURE, config)
    left = footprint.remaining(net, {name: torch.zeros_like(p, device="cpu") for name, p in net.named_parameters()})
    assert left is not None
    assert left.parameters == left.parameters_cut
    assert "no heads or channels of the architecture 'ibert' are known" in left.dead.reason


# name -> layers with weights of their own, attention (values, then output) and feed-forward (up, down), settings
FAMILIES: dict[str, tuple[int, list[str], list[str], dict[str, Any]]] = {
    "bert": (2, ["layer.{}.attention.self.value", "layer.{}.attention.output.dense"],
             ["layer.{}.intermediate.dense", "layer.{}.output.dense"], {}),
    "mpnet": (2, ["layer.{}.attention.attn.v", "layer.{}.attention.attn.o"],
              ["layer.{}.intermediate.dense", "layer.{}.output.dense"], {}),
    "albert": (1, ["albert_layers.{}.attention.value", "albert_layers.{}.attention.dense"],
               ["albert_layers.{}.ffn", "albert_layers.{}.ffn_output"], {"embedding_size": 16}),
    "modernbert": (2, ["layers.{}.attn.Wqkv", "layers.{}.attn.Wo"], ["layers.{}.mlp.Wi", "layers.{}.mlp.Wo"],
                   {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}),
    "deberta-v2": (2, ["layer.{}.attention.self.value_proj", "layer.{}.attention.output.dense"],
                   ["layer.{}.intermediate.dense", "layer.{}.output.dense"], {}),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("every", [False, True])
def test_heads_that_compute_nothing_and_channels_that_are_gone_count_nothing(
    kind: str, every: bool, tmp_path: Path
) -> None:
    import transformers

    layers, attention, feed_forward, settings = FAMILIES[kind]
    config = AutoConfig.for_model(kind, num_hidden_layers=2, hidden_size=32, intermediate_size=64, vocab_size=100,
                                  num_attention_heads=4, **settings)  # fmt: skip
    torch.manual_seed(0)
    net = transformers.AutoModelForQuestionAnswering.from_config(config)
    heads, tokens = 4 if every else 1, 16  # dead in the first layer
    with torch.no_grad():
        for p in net.parameters():
            torch.nn.init.normal_(p)
        for name, p in net.named_parameters():
            if name.endswith(f"{attention[1].format(0)}.weight"):
                p[:, : 8 * heads] = 0
            elif name.endswith(f"{feed_forward[1].format(0)}.weight"):
                p[:, :10] = 0
            elif name.endswith(f"{feed_forward[0].format(0)}.weight"):
                p[:10] = 0
    net.save_pretrained(tmp_path)
    found = footprint.footprint(tmp_path, ARCHITECTURE, tokens)
    often = tokens * (2 // layers)
    zeros = 8 * heads * 32 + 2 * 10 * 32
    products = found.macs_dense - footprint.work_of(net, tokens).of_weights
    if kind != "deberta-v2":  # it also multiplies with distances
        assert products == 2 * 2 * tokens**2 * 32
    saved = products // (2 * 4) * heads * (2 // layers)  # of the heads of the first layer
    assert found.macs_dense - found.macs_sparse == often * zeros + saved

    cut_heads = heads - every  # one of a layer remains
    assert found.dead.startswith(f"10 of {64 * layers} channels")
    assert f"{cut_heads} of {4 * layers} heads" in found.dead
    gated = kind == "modernbert"
    assert found.parameters is not None
    assert found.macs_cut is not None
    assert found.bytes_cut is not None
    of_weights = cut_heads * 8 * 4 * 32 + 10 * (3 if gated else 2) * 32
    left = often * of_weights + products // 8 * cut_heads * (2 // layers)
    if kind != "deberta-v2":
        assert found.macs_dense - found.macs_cut == left
    biases = 0 if gated else cut_heads * 8 * 3 + 10
    assert found.parameters - found.parameters_cut == of_weights + biases
    assert found.bytes - found.bytes_cut == 4 * (of_weights + biases)
    assert f"compute nothing; without them {found.parameters_cut:,} of {found.parameters_dense:,}" in found.once_cut


def test_weights_that_are_shared_count_once(tmp_path: Path) -> None:
    import transformers

    config = AutoConfig.for_model("t5", d_model=32, num_layers=2, num_heads=4, d_kv=8, d_ff=24, vocab_size=100)
    net = transformers.T5ForTokenClassification(config)
    with torch.no_grad():
        net.transformer.encoder.block[1].layer[1].DenseReluDense.wo.weight[:, :5] = 0  # type: ignore[union-attr]
    net.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    left = footprint.remaining(models.skeleton("AutoModelForTokenClassification", config), tensors)
    assert left is not None
    assert left.parameters == net.num_parameters()
    assert left.parameters - left.parameters_cut == 5 * 2 * 32
    assert left.bytes_cut == 4 * left.parameters_cut
