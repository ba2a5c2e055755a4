"""The result of a run: `result.json` in its folder, and the lines that show it."""

from __future__ import annotations

import glob
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pruning import TimePrediction
from results import columns
from runner.models.footprint import Footprint
from runner.models.layers import StudentLayers
from runner.models.structure import describe_left_out
from runner.models.verify import Verification
from runner.speed.measure import Speed
from runner.system import files

FILE = "result.json"


@dataclass
class Result:
    """Everything that a finished run reports."""

    model: str
    dataset: str
    pattern: str
    seed: int
    metric: str
    dense: dict[str, float]
    """Scores of the dense model: fractions, or correlations."""
    sparse: dict[str, float] | None
    """Scores of the pruned model's last weights; None with prune=false."""
    relative_drop: float | None
    """(sparse - dense) / dense, of the main metric; None with prune=false, and unless the dense score is above 0."""
    verification: Verification | None
    """Zeros and violations counted on the saved file; None with prune=false."""
    identity: str
    group: str
    folder: str
    mlflow_run: str | None
    """None until the run is uploaded, if the MLflow server was away."""
    cost: dict[str, Any]
    """Seconds by stage, tokens, memory: see `runner.training.cost.Cost`."""
    footprint: Footprint | None = None
    """Bytes and multiply-accumulates of the pruned model; None with prune=false."""
    stages: dict[str, str] = field(default_factory=dict)
    """A hash of each stage's output, in the order of the stages: a reproduction compares them."""
    notes: list[str] = field(default_factory=list)
    """What so few evaluation examples cannot show."""
    made_by: dict[str, Any] = field(default_factory=dict)
    """What a reproduction needs: see `runner.records.runs.MadeBy`."""
    speed: Speed | None = None
    """Times of the saved model on a CPU; None unless benchmark=cpu."""
    unlabelled_examples: int = 0
    """Training examples without labels, which only the distillation used."""
    student_layers: StudentLayers | None = None
    """Layers of the dense model that the pruned one started from; None: all."""
    predicted: TimePrediction | None = None
    """Times before and after pruning by the table in allocation.latency; None without one."""

    def save(self) -> None:
        """Write it to its folder."""
        files.write_json(Path(self.folder) / FILE, asdict(self))

    @classmethod
    def load(cls, file: Path) -> Result | None:
        """The result in a file; None if the file is missing, damaged, or of another version."""
        values = files.read_json(file)
        if values is None:
            return None
        try:
            verification, footprint = values["verification"], values["footprint"]
            values["verification"] = Verification(**verification) if verification else None
            speed = values.get("speed")
            chosen = values.get("student_layers")
            values["student_layers"] = StudentLayers(**chosen) if chosen else None
            predicted = values.get("predicted")
            values["predicted"] = TimePrediction.from_plain(predicted) if predicted else None
            values["speed"] = Speed.from_plain(speed) if speed else None
            return cls(**{**values, "footprint": Footprint(**footprint) if footprint else None})
        except (KeyError, TypeError):
            return None

    @property
    def summary(self) -> str:
        """The result in a few aligned lines."""
        name = columns.written(self.metric)
        lines = {f"dense {name}": f"{self.dense[self.metric]:.4f}"}
        if self.sparse is not None and self.verification is not None:
            lines |= {
                f"sparse {name}": f"{self.sparse[self.metric]:.4f}",
                "relative drop": "-" if self.relative_drop is None else f"{self.relative_drop:+.2%}",
                "zeros": f"{self.verification.linear_ratio:.4f} of all Linear and Conv weights, "
                f"{self.verification.violations} violations of the pattern (counted on the file)",
            }
            if self.student_layers is not None and (weighed := self.footprint) is not None:
                share = f"{weighed.parameters:,} of {weighed.parameters_dense:,} parameters"
                lines["student"] = f"{self.student_layers} of the dense model, {share}"
            if (weighed := self.footprint) is not None and weighed.once_cut:
                lines["once cut"] = weighed.once_cut
            if self.predicted is not None:
                lines["predicted"] = str(self.predicted)
            if (left_out := describe_left_out(self.verification.left_out)) is not None:
                lines["left out"] = left_out
        if self.speed is not None:
            lines |= {f"time, {setting}": text for setting, text in self.speed.summary.items()}
        if self.unlabelled_examples:
            lines["without labels"] = f"{self.unlabelled_examples:,} further training examples, distilled only"
        lines |= {"model": f"{self.folder}/model", "MLflow run": self.mlflow_run or "not uploaded yet"}
        width = max(16, *map(len, lines))
        title = f"{self.model} on {self.dataset}, {self.pattern}, seed {self.seed}"
        return "\n".join([title, *(f"  {key:<{width}}  {value}" for key, value in lines.items())])


def stored(output_dir: Path, name: str) -> list[Path]:
    """Result files of all runs of a name, whatever their identity."""
    return sorted(output_dir.glob(f"{glob.escape(name)}-*/{FILE}"))
