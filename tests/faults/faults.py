"""Harm a small real run at many points, give the same command again, and compare what it ends with.

    python tests/faults/faults.py [--points 200] [--damage 40] [--full 40] [--seed 0] [--keep DIR]

Each trial runs the real command line in processes of its own. There are three kinds:

* points: the first process is killed (SIGKILL), from outside after a random time or inside at a random call of one of
  `POINTS`; the second must end well, with the weights, the scores and the logged steps of a run that was never
  interrupted.
* damage: of a run that has ended a random file of the cache or of a checkpoint is damaged, and result.json removed; it
  must end with the same weights and scores again.
* full: at a random call of one of `POINTS` all but a few kB of the disk are taken; the run must end with one line that
  names the place, or continue without that space. With the space given back, the same command must end as in the
  first kind. Output, cache and MLflow's database are on a small tmpfs; if it cannot be mounted, these are skipped.

Not collected by pytest; `make fault-test` runs it, and tests/runner/system/test_faults.py a handful of trials.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update({"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"})

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

ARGUMENTS = (
    "pattern=4x1", "dataset=demo", "dataset.train_examples=96", "dataset.eval_examples=24", "recipe=published",
    "schedule=short",
    "train.max_steps=40", "train.per_device_train_batch_size=8", "train.save_steps=6", "train.logging_steps=5",
    "train.save_total_limit=2", "finetune.max_steps=12", "finetune.per_device_train_batch_size=8",
    "finetune.save_steps=4", "finetune.logging_steps=3",
    # The automatic precision is measured, and a busy machine measures differently each time.
    "train.precision=float32", "finetune.precision=float32",
)  # fmt: skip
POINTS = {
    "tokenising": ["runner.data.question_answering:Span.tokenized"],
    "training": ["runner.training.trainer:DistillTrainer.compute_loss", "torch.optim.lr_scheduler:LRScheduler.step"],
    "checkpoint": [
        "runner.training.trainer:DistillTrainer._save_checkpoint", "pruning.transformers:save_file",
        "runner.system.files:publish",
        "runner.system.files:_crc32", "runner.system.files:_flush", "runner.training.checkpoints:rotate",
        "transformers.trainer:Trainer._save_rng_state", "transformers.trainer:Trainer._save_optimizer_and_scheduler",
    ],
    "mask update": ["pruning.pruner:Pruner.prune", "pruning.masks:Masks.set", "pruning.masks:Masks.enforce"],
    "cache": [
        "runner.stages.finetune:save_model", "runner.training.teacher_logits:_write",
        "runner.training.teacher_logits:_compute", "runner.stages.score:score",
        "runner.data.arrow:mapped_once", "runner.system.files:write_json", "runner.system.files:temporary_path",
        "runner.system.files:remove",
    ],
    "verify": ["runner.stages.prune:verify", "runner.stages.record:_describe_pruning"],
    "evaluate": ["runner.training.inference:predictions", "runner.data.question_answering:Span.score"],
    "logging": [
        "runner.tracking.tracker:Tracker.flush", "runner.tracking.tracker:Tracker.params",
        "runner.tracking.tracker:Tracker.metrics", "runner.tracking.tracker:Tracker.text",
        "runner.stages.record:_log_artifacts", "runner.records.folder:RunFolder.save",
    ],
}  # fmt: skip
"""Phase -> functions; a process is harmed before or after a call of one."""
DAMAGES = ("cut to half", "emptied", "one bit flipped", "removed", "replaced by a folder", "replaced by other JSON")


@dataclass
class Kill:
    """The call or time at which the first process is killed."""

    phase: str
    target: str = ""
    call: int = 0
    after: bool = False
    delay: float = 0.0
    """Seconds, if it is killed from outside."""

    def __str__(self) -> str:
        if not self.target:
            return f"outside, after {self.delay:.2f} s"
        return f"{self.phase}: {'after' if self.after else 'before'} call {self.call} of {self.target}"

    def attempt(self, folder: Path, model: Path, whole: Outcome) -> str | None:
        """Kill, run again and compare. Returns the problem, or None."""
        arguments = command(folder, model)
        folder.mkdir(parents=True)

        def first() -> int:
            if self.target:
                harmed_at(self, lambda: os.kill(os.getpid(), signal.SIGKILL))
            return run(arguments)

        status, _ = in_child(first, folder / "log.txt", None if self.target else self.delay)
        if self.target and status != -signal.SIGKILL:
            return f"it was not killed, but ended with {status}"
        status, _ = in_child(lambda: run(arguments), folder / "log.txt")
        return f"started again, it ended with {status}" if status else difference(outcome(folder), whole)


@dataclass
class Full:
    """The call at which the disk of the first process becomes full."""

    point: Kill
    left: int
    """Bytes that are left on the disk."""

    def __str__(self) -> str:
        return f"{self.left} bytes left {self.point}"

    phase = "full"

    def attempt(self, folder: Path, model: Path, whole: Outcome) -> str | None:
        """Fill the disk, free it, run again and compare. Returns the problem, or None."""
        arguments = command(folder, model)
        folder.mkdir(parents=True)
        filler, log = folder / "filler", model.parent / "full.txt"
        log.unlink(missing_ok=True)

        def first() -> int:
            harmed_at(self.point, lambda: fill(filler, self.left))
            return run(arguments)

        status, _ = in_child(first, log)
        text = log.read_text()
        if not filler.exists():
            return f"the disk was not filled, and it ended with {status}"
        filler.unlink()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        if status not in (0, 1):
            return f"it ended with {status}"
        if "Traceback" in text or len(errors) != status or not all(str(folder) in line for line in errors):
            return f"it ended with {status}, and printed {errors or text[-300:]}"
        status, _ = in_child(lambda: run(arguments), log)
        return f"started again, it ended with {status}" if status else difference(outcome(folder), whole)


@dataclass
class Damage:
    """A file of a finished run that is damaged."""

    place: int
    """The number of the file among all files in the order of their names."""
    kind: str

    def __str__(self) -> str:
        return f"file {self.place} {self.kind}"

    phase = "damage"

    def attempt(self, folder: Path, model: Path, whole: Outcome) -> str | None:
        """Damage a file, run again and compare. Returns the problem, or None."""
        shutil.copytree(folder.with_name("whole"), folder)
        (result,) = (folder / "outputs").glob("*/result.json")
        result.unlink()
        file = damageable(folder)[self.place]
        {
            "cut to half": lambda: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
            "emptied": lambda: file.write_bytes(b""),
            "one bit flipped": lambda: flip(file),
            "removed": file.unlink,
            "replaced by a folder": lambda: (file.unlink(), file.mkdir()),
            "replaced by other JSON": lambda: file.write_text("{}"),
        }[self.kind]()
        status, _ = in_child(lambda: run(command(folder, model)), folder / "log.txt")
        name = file.relative_to(folder)
        if status:
            return f"{name}: started again, it ended with {status}"
        again = outcome(folder)
        same = again.weights == whole.weights and again.scores == whole.scores
        return None if same else f"{name}: the weights or scores differ"


def damageable(folder: Path) -> list[Path]:
    """The files of the cache and of the checkpoints."""
    (checkpoints,) = (folder / "outputs").glob("*/checkpoints")
    files = [file for place in (folder / "cache", checkpoints) for file in place.rglob("*") if file.is_file()]
    return sorted(file for file in files if file.suffix != ".lock")


def flip(file: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def fill(filler: Path, left: int) -> None:
    """Fill a disk until `left` bytes are free."""
    with filler.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(filler).free - left)


@dataclass
class Outcome:
    """The results of a run."""

    weights: bytes
    scores: Any
    steps: dict[str, list[tuple[int, float]]]
    statuses: list[str]


def command(folder: Path, model: Path) -> list[str]:
    """The command line of a run below a folder."""
    return [*ARGUMENTS, "model=hub", f"model.path={model}", f"output_dir={folder}/outputs", f"cache_dir={folder}/cache",
            f"tracking.uri=sqlite:///{folder}/mlflow.db"]  # fmt: skip


def in_child(work: Callable[[], int], log: Path, delay: float | None = None) -> tuple[int, float]:
    """Run a function in a process of its own, its output in a file.

    Args:
        delay: seconds after which the process is killed, if it still runs.

    Returns:
        The exit status (negative: the signal that ended it), and the seconds that it took.
    """
    begin, child = time.monotonic(), os.fork()
    if child == 0:
        status = 70
        try:
            with log.open("a") as lines:
                os.dup2(lines.fileno(), 1)
                os.dup2(lines.fileno(), 2)
                status = work()
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    if delay is not None:
        while time.monotonic() - begin < delay:
            if os.waitpid(child, os.WNOHANG)[0]:
                return 0, time.monotonic() - begin
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - begin


def run(arguments: list[str]) -> int:
    """Run the command line in this process."""
    from runner.__main__ import main

    sys.argv = ["runner", *arguments]
    return main()


def harmed_at(point: Kill, harm: Callable[[], None]) -> None:
    """Call `harm` at the point's call in this process."""
    holder, name = resolve(point.target)
    original, calls = getattr(holder, name), 0

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls
        if mine == point.call and not point.after:
            harm()
        result = original(*given, **named)
        if mine == point.call and point.after:
            harm()
        return result

    setattr(holder, name, counted)


def resolve(target: str) -> tuple[Any, str]:
    """`module:Class.method` as (class, method); `module:function` as (module, function)."""
    module, _, path = target.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    return holder, name


def counted_calls(arguments: list[str], folder: Path) -> dict[str, int]:
    """How often each point is called in a run that is not interrupted."""
    file = folder / "calls.json"

    def work() -> int:
        calls: Counter[str] = Counter()
        for target in (target for targets in POINTS.values() for target in targets):
            holder, name = resolve(target)
            original = getattr(holder, name)

            def counting(*given: Any, original: Any = original, target: str = target, **named: Any) -> Any:
                calls[target] += 1
                return original(*given, **named)

            setattr(holder, name, counting)
        status = run(arguments)
        file.write_text(json.dumps(calls))
        return status

    status, _ = in_child(work, folder / "log.txt")
    if status:
        raise SystemExit(f"the run without interruption ended with {status}: see {folder}/log.txt")
    return json.loads(file.read_text())


def outcome(folder: Path) -> Outcome:
    """Read the results of a run."""
    (place,) = (folder / "outputs").glob("*/result.json")
    result = json.loads(place.read_text())
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        statuses = [status for (status,) in database.execute("select status from runs")]
        rows = database.execute("select key, step, value from metrics where step > 0 order by key, step").fetchall()
    steps: dict[str, list[tuple[int, float]]] = {}
    for key, step, value in rows:
        steps.setdefault(key, []).append((step, value))
    weights = (place.parent / "model" / "model.safetensors").read_bytes()
    return Outcome(weights, [result["dense"], result["sparse"], result["verification"]], steps, statuses)


def difference(mine: Outcome, whole: Outcome) -> str | None:
    """The difference between an interrupted run and a whole one, or None."""
    if mine.weights != whole.weights:
        return "the weights differ"
    if mine.scores != whole.scores:
        return "the scores differ"
    if mine.steps != whole.steps:
        keys = [key for key in whole.steps if mine.steps.get(key) != whole.steps[key]]
        return f"the logged steps of {', '.join(keys)} differ"
    if mine.statuses != whole.statuses:
        return f"MLflow runs are {mine.statuses}"
    return None


def kills(count: int, calls: dict[str, int], seconds: float, chance: random.Random) -> list[Kill]:
    """Kills: a quarter from outside, the others over all phases in turn."""
    outside = [Kill("outside", delay=chance.uniform(0, seconds)) for _ in range(count // 4)]
    return outside + points(count - len(outside), calls, chance)


def points(count: int, calls: dict[str, int], chance: random.Random) -> list[Kill]:
    """Kills at random calls, over all phases in turn."""
    chosen, phases = [], list(POINTS)
    for i in range(count):
        phase = phases[i % len(phases)]
        target = POINTS[phase][i // len(phases) % len(POINTS[phase])]
        chosen.append(Kill(phase, target, chance.randint(1, calls[target]), chance.random() < 0.5))
    return chosen


def damages(count: int, files: int, chance: random.Random) -> list[Damage]:
    """Damage of random files, over all kinds in turn."""
    return [Damage(chance.randrange(files), DAMAGES[i % len(DAMAGES)]) for i in range(count)]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[str | None]:
    """Mount a tmpfs of `size` bytes; yields the reason if that fails, or None."""
    folder.mkdir()
    try:
        call = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        why = done.stderr.strip() or None
    except FileNotFoundError as error:
        why = str(error)
    try:
        yield why
    finally:
        if why is None:
            subprocess.run(["umount", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=200, help="trials in which it is killed")
    parser.add_argument("--damage", type=int, default=40, help="trials in which a file is damaged")
    parser.add_argument("--full", type=int, default=40, help="trials in which the disk is full")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder for the files of trials that lost something")
    options = parser.parse_args()
    import torch

    from tests.conftest import save_small_model

    torch.set_num_threads(1)
    # Modules that every child needs, imported once. Nothing is run in this process that starts threads.
    for name in ("runner.training.loop", "runner.experiment", "runner.training.teacher_logits", "mlflow", "datasets"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        model = save_small_model(folder / "model")
        (folder / "whole").mkdir()
        begin = time.monotonic()
        calls = counted_calls(command(folder / "whole", model), folder / "whole")
        seconds, whole = time.monotonic() - begin, outcome(folder / "whole")
        uncalled = [target for targets in POINTS.values() for target in targets if not calls.get(target)]
        if uncalled:
            raise SystemExit(f"never called: {', '.join(uncalled)}")
        chance = random.Random(options.seed)
        chosen: list[Kill | Damage | Full] = [*kills(options.points, calls, seconds, chance)]
        chosen += damages(options.damage, len(damageable(folder / "whole")), chance)
        space = 4 * sum(file.stat().st_size for file in (folder / "whole").rglob("*") if file.is_file())
        with small_disk(folder / "small", space) as why:
            if why is None:
                chosen += [Full(point, chance.randrange(2**14)) for point in points(options.full, calls, chance)]
            elif options.full:
                print(f"no trial with a full disk: a small one cannot be mounted: {why}")
            lost = tried(chosen, folder, model, whole)
    phases = Counter(trial.phase for trial in chosen)
    print(f"tried: {len(chosen)} ({', '.join(f'{n} {phase}' for phase, n in phases.items())}); lost: {lost}")
    return 1 if lost else 0


def tried(chosen: Sequence[Kill | Damage | Full], folder: Path, model: Path, whole: Outcome) -> int:
    """Make all trials, and print the result of each.

    Returns:
        The number of trials that lost something; their files stay in `folder`.
    """
    lost = 0
    for i, trial in enumerate(chosen):
        place = folder / ("small" if isinstance(trial, Full) else "") / f"trial-{i}"
        problem = trial.attempt(place, model, whole)
        print(f"{i + 1:4} of {len(chosen)}  {trial}: {problem or 'nothing lost'}", flush=True)
        if problem is not None and place.parent != folder:
            shutil.copytree(place, folder / place.name)
            shutil.copy(folder / "full.txt", folder / place.name / "log.txt")
        if problem is None or place.parent != folder:
            shutil.rmtree(place)
        lost += problem is not None
    return lost


if __name__ == "__main__":
    sys.exit(main())
