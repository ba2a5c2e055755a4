"""`python -m runner.inspect`: what it finds in saved models whose zeros are known, and what it says of their claims."""

import json
import shutil
import socket
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning import LayerReport, parse
from runner.inspect import BLOCKS, GROUPS, Inspection, inspect, main, strongest
from runner.system.errors import UserError
from tests.conftest import Cli, save_small_model

LAYER = "bert.encoder.layer"
QUERY, KEY, VALUE = (f"{LAYER}.0.attention.self.{name}.weight" for name in ("query", "key", "value"))
CONTEXT, WIDE, NARROW = (
    f"{LAYER}.0.{n}.weight" for n in ("attention.output.dense", "intermediate.dense", "output.dense")
)
QUERY_1, KEY_1, VALUE_1 = (f"{LAYER}.1.attention.self.{name}.weight" for name in ("query", "key", "value"))
CONTEXT_1, WIDE_1, NARROW_1 = (
    f"{LAYER}.1.{n}.weight" for n in ("attention.output.dense", "intermediate.dense", "output.dense")
)
SOURCE = torch.Generator()


def half(*shape: int) -> Tensor:
    """A bool tensor of which exactly half is True, at random but the same each time; neither all of a row nor none."""
    SOURCE.manual_seed(sum(size * 7**i for i, size in enumerate(shape)))
    while True:
        chosen = torch.rand(shape, generator=SOURCE).flatten().argsort().view(shape) < torch.Size(shape).numel() // 2
        if len(shape) == 1 or all(bool((chosen.any(d) & ~chosen.all(d)).all()) for d in range(2)):
            return chosen


def blocks(shape: torch.Size, rows: int, cols: int) -> Tensor:
    """Where half of the blocks of a matrix are."""
    return half(shape[0] // rows, shape[1] // cols).repeat_interleave(rows, 0).repeat_interleave(cols, 1)


def two_of_four(weight: Tensor) -> Tensor:
    """Where the two lowest of each group of four are."""
    groups = weight.abs().unflatten(1, (-1, 4))
    return (groups.argsort(2).argsort(2) < 2).flatten(1)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with another pattern in each layer: 2 layers, H=32, 256 inside."""
    folder = save_small_model(tmp_path_factory.mktemp("zoo") / "model", intermediate_size=256)
    tensors = load_file(folder / "model.safetensors")
    for name, rows, cols in ((QUERY, 4, 1), (WIDE, 16, 16), (WIDE_1, 4, 1), (NARROW_1, 1, 8), (KEY_1, 2, 2)):
        tensors[name][blocks(tensors[name].shape, rows, cols)] = 0
    tensors[KEY][two_of_four(tensors[KEY])] = 0
    tensors[VALUE][half(32)] = 0
    tensors[CONTEXT][:, torch.arange(32) % 7 < 3] = 0  # not in groups or blocks of any size
    tensors[NARROW][half(32, 256)] = 0  # no pattern
    tensors[VALUE_1][0, 0] = 0  # one zero, by chance
    tensors[CONTEXT_1][:] = 0
    i, j = (tensors[WIDE_1] != 0).nonzero()[100].tolist()
    tensors[WIDE_1][i, j] = 0  # zero by chance, not pruned
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def found(zoo: Path) -> Inspection:
    return inspect(zoo)


def naive_blocks(matrix: np.ndarray, rows: int, cols: int) -> int | None:
    """How many blocks hold both zeros and other values; None if there are no such blocks."""
    out, width = matrix.shape
    if out % rows or width % cols:
        return None
    parts = [matrix[i : i + rows, j : j + cols] for i in range(0, out, rows) for j in range(0, width, cols)]
    return sum(1 for part in parts if (part == 0).any() and (part != 0).any())


def naive_groups(matrix: np.ndarray, n: int, m: int) -> int | None:
    """How many groups have more than n non-zero values; None if there are no such groups."""
    out, width = matrix.shape
    if width % m:
        return None
    groups = [matrix[i, j : j + m] for i in range(out) for j in range(0, width, m)]
    return sum(1 for group in groups if np.count_nonzero(group) > n)


def naive(matrix: np.ndarray) -> dict[str, int]:
    """The patterns that hold, with exceptions: a thousandth of the zero blocks may be broken, and no group."""
    zeros, holding = int((matrix == 0).sum()), {}
    for text in (*BLOCKS, *GROUPS):
        if ":" in text:
            broken, allowed = naive_groups(matrix, *map(int, text.split(":"))), 0.0
        else:
            sizes = {"rows": (1, matrix.shape[1]), "columns": (matrix.shape[0], 1)}
            rows, cols = sizes[text] if text in sizes else tuple(map(int, text.split("x")))
            broken, allowed = naive_blocks(matrix, rows, cols), zeros / (rows * cols) / 1000
        if zeros and broken is not None and broken <= allowed:
            holding[text] = broken
    return holding


# --- patterns -----------------------------------------------------------------------------------------------


def test_patterns_and_zeros_are_those_of_a_naive_count(zoo: Path, found: Inspection) -> None:
    tensors = load_file(zoo / "model.safetensors")
    names = [layer.name for layer in found.layers]
    assert sorted(names) == sorted(
        [n for n, t in tensors.items() if "encoder" in n and t.dim() == 2] + ["qa_outputs.weight"]
    )
    assert len(names) == 13
    total = 0
    for layer in found.layers:
        matrix = tensors[layer.name].numpy()
        zeros = int((matrix == 0).sum())
        assert layer.shape == matrix.shape
        assert (layer.zeros, layer.sparsity) == (zeros, zeros / matrix.size)
        assert layer.patterns == naive(matrix), layer.name
        total += zeros
    assert found.linear_ratio == total / sum(tensors[name].numel() for name in names)
    assert found.overall_ratio == total / sum(tensor.numel() for tensor in tensors.values())
    assert 0 < found.overall_ratio < found.linear_ratio < 1


@pytest.mark.parametrize(("name", "expected"), [
    (QUERY, ["4x1"]), (KEY, ["2:4"]), (VALUE, ["rows"]), (CONTEXT, ["columns"]), (WIDE, ["16x16"]), (NARROW, []),
    (NARROW_1, ["1x8"]), (KEY_1, ["2x2"]), (QUERY_1, []), (VALUE_1, []), ("qa_outputs.weight", []),
    (CONTEXT_1, ["1:16", "32x32", "columns", "rows"]),
])  # fmt: skip
def test_the_strongest_pattern_of_a_layer_is_the_one_that_was_made(
    name: str, expected: list[str], found: Inspection
) -> None:
    (layer,) = [layer for layer in found.layers if layer.name == name]
    assert strongest(layer.patterns) == expected
    assert set(layer.patterns.values()) <= {0}


def test_a_zero_by_chance_is_an_exception_and_not_the_end_of_a_pattern(found: Inspection) -> None:
    (layer,) = [layer for layer in found.layers if layer.name == WIDE_1]
    assert layer.patterns == {"4x1": 1, "2x1": 1}
    assert layer.zeros == 32 * 256 // 2 + 1


def test_exceptions_are_few(zoo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    i, j = (tensors[WIDE_1] != 0).nonzero()[-1].tolist()
    tensors[WIDE_1][i, j] = 0  # a second
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (layer,) = [layer for layer in inspect(folder).layers if layer.name == WIDE_1]
    assert layer.patterns == {"2x1": 2} == naive(tensors[WIDE_1].numpy())  # of 1024 zero blocks, and of 2048


def test_patterns_of_the_model_hold_in_every_layer_with_zeros(tmp_path: Path, found: Inspection) -> None:
    assert found.patterns == []  # of the zoo
    folder = save_small_model(tmp_path / "model", intermediate_size=256)
    assert inspect(folder).patterns == []  # dense
    assert inspect(folder).linear_ratio == 0
    tensors = load_file(folder / "model.safetensors")
    tensors[QUERY][blocks(tensors[QUERY].shape, 8, 1)] = 0
    tensors[WIDE][blocks(tensors[WIDE].shape, 4, 4)] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert inspect(folder).patterns == ["4x1"]  # of the one it follows, and the other too


def test_strongest_leaves_out_what_follows_from_another() -> None:
    assert strongest(["4x1", "2x1"]) == ["4x1"]
    assert strongest(["1x4", "4x1"]) == ["1x4", "4x1"]
    assert strongest(["16x16", "8x8", "4x4", "2x2", "16x1", "1x16", "4x1", "1x2"]) == ["16x16"]
    assert strongest(["rows", "1x32", "1x2"]) == ["rows"]
    assert strongest(["columns", "32x1", "2x1"]) == ["columns"]
    assert strongest(["rows", "4x1"]) == ["4x1", "rows"]
    assert strongest(["2:4", "4:8", "3:4"]) == ["2:4"]
    assert strongest(["1:2", "2:4", "4:8"]) == ["1:2"]
    assert strongest(["1:8", "1:4", "1:2", "2:16", "2:8", "4:16", "2:4", "3:4"]) == ["1:8"]
    assert strongest(["2:8", "2:4"]) == ["2:8"]
    assert strongest(["2:4", "4x1"]) == ["2:4", "4x1"]
    assert strongest([]) == []


def test_what_is_left_out_as_implied_does_follow() -> None:
    """Of any two patterns, on random matrices that follow one of them."""
    source = torch.Generator().manual_seed(0)
    for text in (*BLOCKS, *GROUPS):
        pattern = parse(text)
        saliency = torch.rand(64, 64, generator=source)
        mask = pattern.keep(saliency, pattern.max_sparsity if ":" in text else 0.5)
        for other in (*BLOCKS, *GROUPS):
            if other not in strongest([text, other]):
                assert parse(other).violations(saliency * mask) == 0, (text, other)


# --- what is said -------------------------------------------------------------------------------------------


def claim(folder: Path, name: str, *, units: int, pruned_units: int, zeros: int, pattern: str) -> dict:
    """An entry of pruning.json, as the runner writes it."""
    shape = tuple(load_file(folder / "model.safetensors")[name].shape)
    row = LayerReport(name, shape, pattern, units, pruned_units, zeros, 0)
    return {**asdict(row), "sparsity": row.sparsity, "of a later version": 1}


def write_claims(folder: Path, *layers: dict) -> None:
    (folder / "pruning.json").write_text(json.dumps({"pattern": {"name": "4x1"}, "layers": list(layers)}))


def test_claims_are_compared_with_the_file(zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(zoo, tmp_path / "model"))
    assert (inspect(folder).claims, inspect(folder).broken_claims) == (None, [])
    true = [
        claim(folder, QUERY, units=256, pruned_units=128, zeros=512, pattern="4x1"),
        claim(folder, KEY, units=256, pruned_units=256, zeros=512, pattern="2:4"),
        claim(folder, WIDE_1, units=2048, pruned_units=1024, zeros=4096, pattern="4x1"),  # and one zero by chance
        {**claim(folder, QUERY_1, units=0, pruned_units=0, zeros=0, pattern=""), "skipped": "it is frozen"},
    ]
    write_claims(folder, *true)
    assert (inspect(folder).claims, inspect(folder).broken_claims) == ("4x1", [])
    assert main([str(folder)]) == 0
    assert "pruning.json says 4x1: the file agrees" in capsys.readouterr().out

    wrong = [
        claim(folder, QUERY, units=256, pruned_units=200, zeros=800, pattern="4x1"),  # too few zeros
        claim(folder, NARROW, units=2048, pruned_units=1024, zeros=4096, pattern="4x1"),  # in no blocks
        claim(folder, VALUE, units=256, pruned_units=128, zeros=512, pattern="2:4"),  # rows, not groups
    ]
    lost = {**true[0], "name": f"{LAYER}.7.output.dense.weight"}
    write_claims(folder, *true, *wrong, lost)
    broken = inspect(folder).broken_claims
    assert [text.split(":")[0] for text in broken] == [QUERY, NARROW, VALUE, lost["name"]]
    assert "512 zeros, but the pruner made 800" in broken[0]
    assert "units break 4x1" in broken[1]
    assert "units break 2:4" in broken[2]
    assert "it is not in the file" in broken[3]
    assert main([str(folder)]) == 1
    output = capsys.readouterr().out
    assert "pruning.json says 4x1: the file disagrees" in output
    assert all(text in output for text in broken)


def test_the_table_names_every_layer_and_its_patterns(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(zoo)]) == 0
    output = capsys.readouterr().out
    lines = {line.split()[0]: line for line in output.splitlines() if ".weight" not in line and line.strip()}
    for name, words in ((QUERY, ["32 x 32", "0.5000", "4x1"]), (WIDE, ["256 x 32", "16x16"]), (QUERY_1, ["dense"]),
                        (WIDE_1, ["4x1 (1 exceptions)"]), (NARROW, ["unstructured"]),
                        ("qa_outputs.weight", ["2 x 32", "dense"])):  # fmt: skip
        line = lines[name.removesuffix(".weight")]
        assert [word for word in words if word not in line] == []
    assert "no pattern in all of the 11 layers with zeros (of 13)" in output
    assert "pruning.json" not in output


def test_json_is_the_inspection(zoo: Path, found: Inspection, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(zoo), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output == json.loads(json.dumps(asdict(found)))
    assert output.keys() == {
        "folder", "layers", "linear_ratio", "overall_ratio", "patterns", "claims", "broken_claims", "left_out",
        "gone", "bytes", "remaining",
    }  # fmt: skip
    (layer,) = [layer for layer in output["layers"] if layer["name"] == QUERY]
    assert layer == {"name": QUERY, "shape": [32, 32], "zeros": 512, "sparsity": 0.5, "patterns": {"4x1": 0, "2x1": 0}}


def test_the_real_command_line_ends_with_its_status(cli: Cli, zoo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo, tmp_path / "model"))
    write_claims(folder, claim(folder, QUERY, units=256, pruned_units=200, zeros=800, pattern="4x1"))
    done = cli("-m", "runner.inspect", "model", "--json")
    assert (done.returncode, done.stderr) == (1, "")
    output = json.loads(done.stdout)
    assert (output["folder"], output["claims"], len(output["broken_claims"])) == ("model", "4x1", 1)
    done = cli("-m", "runner.inspect", "nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: nowhere: there is no such folder\n")


def test_the_folder_of_a_run_stands_for_its_model(
    zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(zoo, tmp_path / "run" / "model")
    assert main([str(tmp_path / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == str(tmp_path / "run" / "model")


# --- files --------------------------------------------------------------------------------------------------


def test_a_model_in_several_files_is_one(zoo: Path, found: Inspection, tmp_path: Path) -> None:
    folder = tmp_path / "sharded"
    transformers.AutoModelForQuestionAnswering.from_pretrained(zoo).save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) > 3
    assert not (folder / "model.safetensors").exists()
    several = asdict(inspect(folder))
    assert several == {**asdict(found), "folder": str(folder)}


def test_nothing_is_loaded_but_the_file(
    zoo: Path, found: Inspection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("model.safetensors", "config.json"):
        shutil.copy(zoo / name, folder)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("this is not needed to count zeros")

    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", refuse)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert asdict(inspect(folder)) == {**asdict(found), "folder": str(folder)}
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_the_embedded_model_is_dense() -> None:
    folder = Path(__file__).parents[2] / "runner" / "demo" / "tiny"  # without a head, in bfloat16
    found = inspect(folder)
    assert len(found.layers) >= 24
    assert (found.linear_ratio, found.patterns) == (0, [])


def test_a_convolution_is_seen_as_a_matrix(tmp_path: Path) -> None:
    config = transformers.SqueezeBertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        embedding_size=32, q_groups=1, k_groups=1, v_groups=1, post_attention_groups=1, intermediate_groups=1,
        output_groups=1,
    )  # fmt: skip
    transformers.SqueezeBertForQuestionAnswering(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (name,) = [name for name in tensors if name.endswith("attention.query.weight")]
    assert tensors[name].dim() == 3
    tensors[name][blocks(torch.Size((32, 32)), 4, 1)] = 0
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    (layer,) = [layer for layer in inspect(tmp_path).layers if layer.zeros]
    assert (layer.name, layer.shape, layer.sparsity) == (name, (32, 32, 1), 0.5)
    assert strongest(layer.patterns) == ["4x1"]


def test_what_is_no_saved_model_is_told(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        main([str(tmp_path / "nowhere")])
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UserError, match=r"empty: there are no weights \(\*\.safetensors\)"):
        main([str(empty)])
    shutil.copy(zoo / "model.safetensors", empty)
    with pytest.raises(UserError, match=r"empty: there is no config\.json"):
        main([str(empty)])
    config = json.loads((zoo / "config.json").read_text())
    (empty / "config.json").write_text(json.dumps({**config, "architectures": ["BertForNothing"]}))
    with pytest.raises(UserError, match="transformers has no model BertForNothing"):
        main([str(empty)])
    save_file({"some.weight": torch.ones(4, 4)}, empty / "model.safetensors")
    shutil.copy(zoo / "config.json", empty)
    with pytest.raises(UserError, match="none of its tensors is a weight of a Linear or Conv layer"):
        main([str(empty)])


@pytest.mark.parametrize("broken", ["model.safetensors", "config.json", "pruning.json"])
def test_a_file_that_is_not_whole_is_told(broken: str, zoo: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(zoo, tmp_path / "model"))
    write_claims(folder)
    content = (folder / broken).read_bytes()
    (folder / broken).write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=str(folder)):
        main([str(folder)])
