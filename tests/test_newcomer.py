"""Adding a pattern is one class and one YAML file; so is a criterion, and a schedule. A copy of the code gets one each.
A dataset of a known kind is one YAML file, a model too; a kind of task is one module and one YAML file.

No list, table or test of the original has to be touched: what is not in the named files is the original, byte for byte.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.conftest import save_small_model

ROOT = Path(__file__).parent.parent
PACKAGES = ("conf", "pruning", "results", "runner")

CLASSES = {
    "pruning/blocks.py": '''

@dataclass
class Banded(Pattern):
    """Bands of `width` diagonals, which go round at the edge: (i, j) is in unit (j - i) % columns // width."""

    width: int = 4
    """Diagonals in a band."""
    target_sparsity: float | None = field(default=0.5, kw_only=True)
    """Fraction of the weights that are zero at the end."""

    def __str__(self) -> str:
        return f"band{self.width}"

    @classmethod
    def parse(cls, text: str, target_sparsity: float | None) -> Self | None:
        found = re.fullmatch(r"band(\\d+)", text)
        if found is None:
            return None
        return cls(int(found[1]), target_sparsity=0.5 if target_sparsity is None else target_sparsity)

    def unit_size(self, shape: torch.Size) -> int:
        return self.width * shape[0]

    def misfit(self, shape: torch.Size) -> str | None:
        if len(shape) != 2:
            return not_a_matrix(self, shape)
        return f"{shape[1]} columns are no bands of {self.width} diagonals" if shape[1] % self.width else None

    def pool(self, values: Tensor, reduction: Reduction = torch.mean) -> Tensor:
        out, width = values.shape
        starts = torch.arange(out, device=values.device)[:, None]
        diagonals = (starts + torch.arange(width, device=values.device)) % width
        return reduction(values.gather(1, diagonals).view(out, -1, self.width), dim=(0, 2))

    def tile(self, matrix: Tensor, pooled: Tensor) -> tuple[Tensor, Tensor]:
        out, width = matrix.shape
        starts = torch.arange(out, device=pooled.device)[:, None]
        return matrix, pooled[(torch.arange(width, device=pooled.device) - starts) % width // self.width]

    def violations(self, weight: Tensor) -> int:
        rolled = torch.stack([row.roll(-i) for i, row in enumerate(weight)])
        zeros = (rolled == 0).unfold(1, self.width, self.width).sum(dim=(0, 2))
        return int(((zeros > 0) & (zeros < self.unit_size(weight.shape))).sum())
''',
    "pruning/criteria.py": '''

@dataclass
class PeakGradient(Criterion):
    """The largest |dL/dw| so far."""

    patience: int = 0
    """A parameter, for the sake of it."""

    needs_gradient: ClassVar[bool] = True

    def observation(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs()

    def accumulate(self, state: dict[str, Tensor], pooled: Tensor) -> None:
        state["peak"] = torch.maximum(pooled, state.get("peak", pooled))

    def saliency(self, layer: Layer) -> Tensor | None:
        return layer.state.get("peak")
''',
    "pruning/schedules.py": '''

@dataclass
class TwoSteps(Schedule):
    """Half of the target at `start`, all of it at `second`."""

    second: str = "50%"
    """The other update."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_lengths("second")

    def steps(self, length: TrainingLength) -> dict[int, float]:
        return {self.in_steps("start", length): 0.5, self.in_steps("second", length): 1.0}

    def sparsity(self, progress: float, target: float) -> float:
        return target * progress
''',
}
FILES = {
    "conf/pattern/banded.yaml": "defaults:\n  - /schema/pattern/Banded\nwidth: 8\ntarget_sparsity: 0.75\n",
    "conf/criterion/peak.yaml": "defaults:\n  - /schema/criterion/PeakGradient\n",
    "conf/schedule/two_steps.yaml": "defaults:\n  - /schema/schedule/TwoSteps\nstart: 20%\n",
}


def hashes(root: Path) -> dict[str, str]:
    """Of every file of the four packages, by path; not of what Python compiles by the way."""
    files = [p for package in PACKAGES for p in sorted((root / package).rglob("*")) if p.is_file()]
    return {
        file.relative_to(root).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if "__pycache__" not in file.parts
    }


@pytest.fixture
def newcomer(tmp_path: Path) -> Path:
    """A copy of the code with a pattern, a criterion and a schedule that nobody there knows of."""
    root = tmp_path / "code"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    for path, text in CLASSES.items():
        with (root / path).open("a", encoding="utf-8") as file:
            file.write(text)
    for path, text in FILES.items():
        (root / path).write_text(text, encoding="utf-8")
    return root


def python(code: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder` with the packages below `code`."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def bands(weight: Tensor, width: int) -> list[list[float]]:
    """The weights of each band, one by one."""
    columns = weight.shape[1]
    found: list[list[float]] = [[] for _ in range(columns // width)]
    for i, row in enumerate(weight.tolist()):
        for j, value in enumerate(row):
            found[(j - i) % columns // width].append(value)
    return found


@pytest.mark.slow
def test_a_pattern_a_criterion_and_a_schedule_are_a_class_and_a_yaml_each(newcomer: Path, tmp_path: Path) -> None:
    before, after = hashes(ROOT), hashes(newcomer)
    assert len(before) > 80
    touched = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert touched == {*CLASSES, *FILES}
    assert len(touched) == 6

    work = tmp_path / "work"
    work.mkdir()
    done = python(
        newcomer, work, "-m", "runner", "model=tiny", "dataset=demo", "dataset.train_examples=64",
        "dataset.eval_examples=16", "pattern=banded", "criterion=peak", "criterion.patience=3", "schedule=two_steps",
        "schedule.second=60%", "train.max_steps=20", "train.per_device_train_batch_size=8", "finetune.max_steps=3",
        "finetune.per_device_train_batch_size=8", "model.prunable=[*.0.*]",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = [p.parent for p in (work / "outputs").glob("*/result.json")]
    assert run.name.startswith("tiny-demo-band8-s0-")
    result = json.loads((run / "result.json").read_text())
    assert result["pattern"] == "band8"
    assert result["verification"]["violations"] == 0
    pruning = json.loads((run / "model" / "pruning.json").read_text())
    assert pruning["pattern"] == {"name": "band8", "target_sparsity": 0.75, "width": 8}
    assert pruning["criterion"] == {"name": "PeakGradient", "reduce": "mean", "patience": 3}
    assert (pruning["schedule"]["name"], pruning["schedule"]["second"]) == ("TwoSteps", "60%")
    assert pruning["updates"] == {"4": 0.375, "12": 0.75}

    # Counted on the file by other means: whole bands, three quarters of all weights to within half the largest band.
    tensors = load_file(run / "model" / "model.safetensors")
    assert len(pruning["layers"]) == 6
    zeros = total = 0
    for layer in pruning["layers"]:
        assert (layer["skipped"], layer["pattern"], layer["violations"]) == (None, "band8", 0)
        found = bands(tensors[layer["name"]], 8)
        gone = [band for band in found if not any(band)]
        assert all(all(band) for band in found if band not in gone)
        assert (layer["units"], layer["pruned_units"]) == (len(found), len(gone))
        zeros, total = zeros + layer["zeros"], total + tensors[layer["name"]].numel()
        assert layer["zeros"] == int(torch.count_nonzero(tensors[layer["name"]] == 0))
    assert abs(zeros - 0.75 * total) <= 8 * 512 / 2
    assert result["verification"]["sparsity"] == pytest.approx(zeros / total)

    done = python(newcomer, work, "-m", "runner.inspect", str(run / "model"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pruning.json says band8: the file agrees" in done.stdout
    assert hashes(newcomer) == after  # and running it changes none of its files


@pytest.mark.slow
def test_help_lists_the_newcomers(newcomer: Path, tmp_path: Path) -> None:
    done = python(newcomer, tmp_path, "-m", "runner", "--help")
    assert done.returncode == 0, done.stderr
    for group, option in (("pattern", "banded"), ("criterion", "peak"), ("schedule", "two_steps")):
        (entry,) = re.findall(rf"^  {group} .*\n(?:   +.*\n)+", done.stdout, re.MULTILINE)  # indented lines
        assert option in re.split(r"[,\s]+", entry)


# --- a dataset, a model, a kind of task ---------------------------------------------------------------------

POINTER = '''"""Which word of a text is meant: one of its tokens."""

from dataclasses import dataclass
from typing import ClassVar

from pruning import Prediction
from runner.data.scores import Scores
from runner.data.task import Dataset


@dataclass
class Pointer(Dataset):
    """Texts, each with the number of one of its words."""

    metric: str = "accuracy"

    architecture: ClassVar[str] = "AutoModelForTokenClassification"
    pipeline_tag: ClassVar[str] = "token-classification"
    label_names: ClassVar[tuple[str, ...]] = ("labels",)
    metrics: ClassVar[tuple[str, ...]] = ("accuracy",)

    def named(self, splits):
        return splits.mapped(lambda part: part.renamed({"id": "id", "text": "text", "word": "word"}))

    def groups(self, examples):
        return examples["text"]

    def checked(self, part):
        return part

    def configure(self, config, examples, given):
        config.num_labels = 1

    def tokenized(self, batch, indices, tokenizer, labels):
        made = tokenizer([text.split() for text in batch["text"]], is_split_into_words=True, truncation=True)
        place = [made.word_ids(i).index(word) for i, word in enumerate(batch["word"])]
        return dict(made) | ({"labels": place} if labels else {"place": place})

    def heads(self, outputs, tokens):
        return Prediction((outputs.logits[..., 0],), choices=tokens, tokens=tokens)

    def logits_of(self, features, classes):
        return sum(features["length"])

    def score(self, examples, features, logits):
        right = (logits[0].argmax(1) == features["place"]).astype(float).tolist()
        by_example = dict(zip(examples["id"], right, strict=True))
        return Scores({"accuracy": sum(right) / len(right)}, by_example, by_example)
'''

SMALL = ("recipe=published", "schedule=short", "train.num_train_epochs=1", "finetune.num_train_epochs=1", "pattern=2:4")


def write_lines(file: Path, rows: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def row_of(work: Path) -> dict:
    done = python(ROOT, work, "-m", "results", "--format", "json")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)
    return row


@pytest.mark.slow
def test_a_dataset_is_one_file_and_a_model_is_one_file(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    save_small_model(tmp_path / "small")
    write_lines(tmp_path / "train.jsonl", [{"review": f"film {i} is {w}", "stars": w} for i in range(20) for w in "ab"])
    (mine / "dataset").mkdir(parents=True)
    (mine / "model").mkdir()
    (mine / "dataset/reviews.yaml").write_text(
        f"defaults:\n  - /schema/dataset/Classify\npath: {tmp_path / 'train.jsonl'}\ntext: review\nlabel: stars\n"
    )
    (mine / "model/small.yaml").write_text(f"defaults:\n  - /schema/model/Model\npath: {tmp_path / 'small'}\n")
    done = python(ROOT, tmp_path, "-m", "runner", "--config-dir", str(mine), "model=small", "dataset=reviews", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.relative_to(mine).as_posix() for path in mine.rglob("*.yaml")) == [
        "dataset/reviews.yaml", "model/small.yaml",
    ]  # fmt: skip
    row = row_of(tmp_path)
    assert (row["model"], row["dataset"], row["pattern"], row["metric"]) == ("small", "reviews", "2:4", "accuracy")


@pytest.mark.slow
def test_a_kind_of_task_is_one_module_and_one_yaml(tmp_path: Path) -> None:
    code, work = tmp_path / "code", tmp_path / "work"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "runner/data/pointer.py").write_text(POINTER)
    (code / "conf/dataset/pointer.yaml").write_text("defaults:\n  - /schema/dataset/Pointer\n")
    before, after = hashes(ROOT), hashes(code)
    touched = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert touched == {"runner/data/pointer.py", "conf/dataset/pointer.yaml"}

    work.mkdir()
    save_small_model(work / "small")
    rows: list[dict[str, object]] = [{"id": f"{i}", "text": f"an odd word here {i}", "word": i % 4} for i in range(40)]
    write_lines(work / "train.jsonl", rows)
    done = python(
        code, work, "-m", "runner", "model=hub", f"model.path={work / 'small'}", "dataset=pointer",
        f"dataset.path={work / 'train.jsonl'}", *SMALL,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    row = row_of(work)
    assert (row["dataset"], row["metric"], row["pattern"]) == ("train.jsonl", "accuracy", "2:4")
    (run,) = [p.parent for p in (work / "outputs").glob("*/result.json")]
    assert json.loads((run / "result.json").read_text())["stages"].keys() >= {"teacher", "prune"}
    assert len(json.loads((run / "predictions.json").read_text())) == 4
