"""A run compared with its reproduction: circumstances, stages and scores."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runner import models
from runner.records.result import Result
from runner.records.runs import MadeBy, Run
from runner.system import files


@dataclass
class Comparison:
    """The outcome of a reproduction, next to that of the run."""

    run: str
    """The run's folder."""
    reproduction: str
    """The reproduction's folder."""
    circumstances: list[str]
    """What differs from the run's circumstances, known before anything was computed."""
    stages: dict[str, bool]
    """Whether each stage made the same, in the order of the stages."""
    scores: dict[str, tuple[float, float]]
    """Scores then and now, by model and metric: fractions."""
    tolerance: float | None
    """Largest difference of scores that counts as reproduced; None: only equal bits do."""

    @property
    def first(self) -> str | None:
        """The first stage whose output differs."""
        return next((stage for stage, same in self.stages.items() if not same), None)

    @property
    def furthest(self) -> float:
        """The largest difference of two scores."""
        return max(abs(now - then) for then, now in self.scores.values())

    @property
    def same(self) -> bool:
        """Whether all recorded stages and scores are equal, bit for bit."""
        return self.first is None and self.furthest == 0

    @property
    def reproduced(self) -> bool:
        """Whether the outcome is equal, or within the tolerance."""
        return self.same or (self.tolerance is not None and self.furthest <= self.tolerance)

    @property
    def verdict(self) -> str:
        """The outcome in a few words, as MLflow records it."""
        if self.same:
            return "bit for bit"
        return f"differs first: {self.first or 'scores'}"


def differences(then: MadeBy, now: MadeBy) -> Iterator[str]:
    """Differences of two processes and of what they start from."""
    if then.data != now.data:
        yield "dataset.path: the examples differ"
    for key in now.checkpoints:
        if then.checkpoints.get(key) != now.checkpoints[key]:
            yield f"{key}: the checkpoint differs, or its files were changed"
    yield from _changed("version of the stage {}", then.stages, now.stages)
    yield from _changed("{}", then.packages, now.packages)
    yield from _changed("{}", *({"hardware": m.hardware, "instructions": m.instructions} for m in (then, now)))
    yield from _changed("source of the plugin {}", then.plugins, now.plugins)
    if then.ranks != now.ranks:
        yield (
            f"ranks: {then.ranks} then, {now.ranks} now "
            f"(torchrun --nproc-per-node {then.ranks} -m runner.reproduce ... gives the same number)"
        )
    if then.threads != now.threads:
        yield f"threads: {then.threads} then, {now.threads} now (OMP_NUM_THREADS={then.threads} gives the same number)"
    if then.code != now.code:
        yield f"code of the runner: {then.code or 'unknown'} then, {now.code or 'unknown'} now"


def _changed(name: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in {**then, **now}:
        if then.get(key) != now.get(key):
            yield f"{name.format(key)}: {then.get(key, 'none')} then, {now.get(key, 'none')} now"


def damage(run: Run) -> Iterator[str]:
    """Whether the saved model was changed since the run."""
    problem = files.integrity_error(run.folder / "model")
    if problem is None and weights(run.folder) != run.result["stages"].get("prune", weights(run.folder)):
        problem = "its weights are not those that the run made"
    if problem is not None:
        yield f"{run.folder / 'model'} was changed since: {problem}"


def weights(folder: Path) -> str:
    """Hash of the weights that a run saved."""
    path = str(folder / "model")
    return models.find(path, "the saved model", models.Model(path)).weights


def compare(run: Run, now: Result, circumstances: list[str], tolerance: float | None) -> Comparison:
    """Stages and scores of a run and of its reproduction."""
    then = run.result["stages"]
    names = dict.fromkeys([*then, *now.stages])
    same = {stage: then.get(stage) == now.stages.get(stage) for stage in names}
    scores = {}
    for model, before, after in (
        ("dense", run.result["dense"], now.dense),
        ("sparse", run.result["sparse"], now.sparse),
    ):
        scores |= {f"{model} {metric}": (value, (after or {})[metric]) for metric, value in (before or {}).items()}
    return Comparison(str(run.folder), now.folder, circumstances, same, scores, tolerance)


def show(comparison: Comparison) -> None:
    """Print the tables and the conclusion."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, color_system=None, markup=False)
    stages = Table("Stage", "", box=box.SIMPLE_HEAD)
    for stage, same in comparison.stages.items():
        stages.add_row(stage, "same" if same else "differs")
    console.print(stages)
    scores = Table("Score", box=box.SIMPLE_HEAD)
    for title in ("Then", "Now", "Difference"):
        scores.add_column(title, justify="right")
    for name, (then, now) in comparison.scores.items():
        scores.add_row(name, f"{then:.6f}", f"{now:.6f}", f"{now - then:+.6f}" if now != then else "same")
    console.print(scores)
    for line in conclusion(comparison):
        console.print(line, soft_wrap=True)


def conclusion(comparison: Comparison) -> Iterator[str]:
    """The outcome in sentences."""
    first, furthest, tolerance = comparison.first, comparison.furthest, comparison.tolerance
    if comparison.same:
        yield f"Reproduced bit for bit: all {len(comparison.stages)} stages and the scores are the same."
        return
    how = f"{first} differs first" if first else "the scores differ"
    far = f"the scores differ by at most {furthest:.6f}" if furthest else "the scores are the same"
    if tolerance is not None:
        far += f", which is {'within' if comparison.reproduced else 'more than'} the tolerance of {tolerance:g}"
    yield f"{'Reproduced, not bit for bit' if comparison.reproduced else 'Not reproduced'}: {how}; {far}."
    if comparison.circumstances:
        yield "Circumstances that differ, and may be the reason:"
        yield from (f"  {line}" for line in comparison.circumstances)
    elif first:
        yield "No circumstance is known to differ: one of the two machines did not compute as it should."
