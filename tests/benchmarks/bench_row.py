"""What a row of the table costs, beside the usual script's: seconds by stage, memory, and F1 with its uncertainty.

    PRUNE_DISTILL_HUB=FOLDER python tests/benchmarks/bench_row.py [--questions 1200] [--seeds 0,1,2] [--output DIR]

FOLDER holds models/<owner>/<name>/ and datasets/<owner>/<name>/, as `tests/loopback_hub.py` would serve them. Two kinds
of runs, one after the other and never side by side: short ones, which alternate, for what variants of the script's
training would cost; and for each seed a whole training by `reference_recipe.py` and by `python -m runner`, on the same
questions. Each run's figures are kept in DIR/parts/, and a bench that was stopped goes on from there.

The script scores no dense model, we do: its total is that much smaller than ours. Our seeds share features, the
teacher's logits and the dense score; so the first one pays for all, and its cache is made anew with it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from runner.data.squad_scores import f1

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = Path(__file__).with_name("reference_recipe.py")
HUB_VARIABLE = "PRUNE_DISTILL_HUB"
MODEL, DATASET = "models/prune-distill/minilm-l6-squad", "datasets/rajpurkar/squad/plain_text"
COLUMNS = ("id", "context", "question", "answers")
BATCH = 16
TIMING_QUESTIONS = 200
RESAMPLES = 10_000
SHARED_STAGES = ("prepare", "train", "update", "evaluate")
VARIANTS: dict[str, list[str]] = {
    "reference": [],
    "reference, bf16": ["--precision", "bf16"],
    "reference, to 384": ["--padding", "384"],
    "reference, evaluation to 384": ["--eval-padding", "384", "--max-steps", "0"],
}
"""Short runs of the reference: name -> its options. The first is what the others are compared with."""
OURS, OURS_WITH_DROPOUT = "ours", "ours, dropout of attention kept"


# --- what is run --------------------------------------------------------------------------------------------


@dataclass
class Bench:
    """What all runs have in common."""

    model: Path
    output: Path
    pattern: str
    epochs: float
    learning_rate: float
    attention_dropout: bool
    """Of ours: whether to keep it, as the reference does."""

    def reference(self, data: Data, seed: int, epochs: float, options: Sequence[str], to: Path) -> list[str]:
        """The command of a training by the reference."""
        return [
            *(sys.executable, str(REFERENCE), "--model", str(self.model), "--output", str(to)),
            *("--train", str(data.folder / "train.json"), "--eval", str(data.folder / "dev.json")),
            *("--pattern", self.pattern, "--epochs", str(epochs), "--learning-rate", str(self.learning_rate)),
            *("--batch-size", str(BATCH), "--seed", str(seed), *options),
        ]

    def ours(self, data: Data, seed: int, epochs: float, cache: Path, to: Path) -> list[str]:
        """The command of a training by the runner."""
        return [
            *(sys.executable, "-m", "runner", "model=hub", f"model.path='{self.model}'"),
            *(f"model.finetuned='{self.model}'", f"dataset.path='{data.folder}'", f"pattern={self.pattern}"),
            *("recipe=published", "schedule=short"),
            *(f"train.num_train_epochs={epochs}", f"train.learning_rate={self.learning_rate}"),
            *(f"train.per_device_train_batch_size={BATCH}", f"seed={seed}", f"output_dir='{to}'"),
            *(f"cache_dir='{cache}'", f"tracking.uri='sqlite:///{self.output / 'mlflow.db'}'"),
            *([] if self.attention_dropout else ["model.attention_dropout=0"]),
        ]


@dataclass
class Data:
    """A folder with train.json and dev.json, JSON lines."""

    folder: Path
    fingerprint: str
    dev: list[dict[str, Any]]


def find_hub() -> Path:
    """The hub's folder. Exits if there is none, or without what this needs."""
    value = os.environ.get(HUB_VARIABLE)
    if not value:
        raise SystemExit(f"{HUB_VARIABLE} is not set: the folder of a hub with {MODEL} and {DATASET}")
    missing = [name for name in (MODEL, DATASET) if not (Path(value) / name).is_dir()]
    if missing:
        raise SystemExit(f"{HUB_VARIABLE}={value}: {' and '.join(missing)} are not in this folder")
    return Path(value).resolve()


def read_split(hub: Path, split: str, count: int) -> list[dict[str, Any]]:
    """`count` questions of a split, the same at each call; all if there are no more."""
    import datasets

    files = [str(file) for file in sorted((hub / DATASET).glob(f"{split}-*.parquet"))]
    rows = datasets.concatenate_datasets([datasets.Dataset.from_parquet(file) for file in files])  # type: ignore[arg-type]
    chosen = sorted(random.Random(0).sample(range(len(rows)), min(count, len(rows))))
    return [{name: row[name] for name in COLUMNS} for row in rows.select(chosen).to_list()]


def write_data(folder: Path, train: list[dict[str, Any]], dev: list[dict[str, Any]]) -> Data:
    """Both splits as JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    for name, questions in (("train", train), ("dev", dev)):
        text = "".join(json.dumps(question) + "\n" for question in questions)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        digest.update(text.encode())
    return Data(folder, digest.hexdigest(), dev)


# --- running it ---------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """What a run took and reached."""

    seconds: dict[str, float]
    """By stage."""
    wall: float
    """Seconds from the process's start to its end."""
    steps: int
    examples: int
    """Windows seen in training, each as often as it was."""
    tokens: int
    """Computed in training, padding included."""
    real_tokens: int
    questions: int
    """Evaluated."""
    peak_memory_bytes: int
    sparsity: float
    f1: float
    predictions: dict[str, str]

    @property
    def total(self) -> float:
        """Seconds of all stages."""
        return sum(self.seconds.values())

    @property
    def training(self) -> float:
        """Seconds of the training with the teacher, which the reference runs inside of it."""
        return self.seconds["train"] + self.seconds.get("teacher", 0.0)

    @property
    def per_question(self) -> float:
        """Seconds of the evaluation by question."""
        return self.seconds["evaluate"] / self.questions


def figures_of_reference(result: Mapping[str, Any], wall: float) -> Figures:
    """From the JSON that the reference writes."""
    same = (
        "seconds",
        "steps",
        "examples",
        "tokens",
        "real_tokens",
        "peak_memory_bytes",
        "sparsity",
        "f1",
        "predictions",
    )
    return Figures(wall=wall, questions=result["eval_examples"], **{name: result[name] for name in same})


def figures_of_ours(
    result: Mapping[str, Any], predictions: Mapping[str, str], examples: int, wall: float
) -> tuple[Figures, float]:
    """From a run's result.json and predictions.json; and the dense model's F1.

    Args:
        examples: that the training saw, which the result does not tell.
    """
    cost = result["cost"]
    same = ("seconds", "steps", "tokens", "real_tokens", "peak_memory_bytes")
    figures = Figures(
        wall=wall,
        examples=examples,
        questions=len(predictions),
        sparsity=result["verification"]["sparsity"],
        f1=result["sparse"]["f1"],
        predictions=dict(predictions),
        **{name: cost[name] for name in same},
    )
    return figures, result["dense"]["f1"]


def run_process(name: str, command: Sequence[str], output: Path) -> float:
    """Run a command to its end, its output in a file of its own. Returns seconds; exits if it fails."""
    log = output / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "NO_COLOR": "1"}
    begin = time.perf_counter()
    with log.open("w", encoding="utf-8") as lines:
        done = subprocess.run(
            command, cwd=output, env=environment, stdin=subprocess.DEVNULL, stdout=lines, stderr=lines, check=False
        )
    if done.returncode:
        last = log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
        raise SystemExit("\n".join([f"{name} ended with {done.returncode}; the last lines of {log}:", *last]))
    return time.perf_counter() - begin


def kept(bench: Bench, name: str, settings: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns, or returned before with the same settings."""
    file = bench.output / "parts" / f"{name}.json"
    settings = {**settings, "threads": os.environ.get("OMP_NUM_THREADS")}
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        if before["settings"] == settings:
            print(f"{name}: found, made {before['made']}", flush=True)
            return before["made_of"]
    print(f"{name} ...", flush=True)
    part = {"settings": settings, "made_of": make(), "made": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_json(file, part)
    return part["made_of"]


def write_json(file: Path, value: Any) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(file)


def reference_run(
    bench: Bench, name: str, data: Data, seed: int, epochs: float, options: Sequence[str] = ()
) -> Figures:
    """One run of the reference."""
    to = bench.output / "reference.json"
    command = bench.reference(data, seed, epochs, options, to)

    def make() -> dict[str, Any]:
        wall = run_process(name, command, bench.output)
        return {"result": json.loads(to.read_text(encoding="utf-8")), "wall": wall}

    made = kept(bench, name, {"command": command[1:], "data": data.fingerprint}, make)
    return figures_of_reference(made["result"], made["wall"])


def our_run(
    bench: Bench, name: str, data: Data, seed: int, epochs: float, cache: Path, cold: bool, examples: int
) -> tuple[Figures, float]:
    """One run of ours, and the dense model's F1. A cold one begins with an empty cache."""
    to = bench.output / "runs" / name
    command = bench.ours(data, seed, epochs, cache, to)

    def make() -> dict[str, Any]:
        # What is left of a run that was stopped would make this one look cheaper.
        for folder in (to, *([cache] if cold else [])):
            shutil.rmtree(folder, ignore_errors=True)
        wall = run_process(name, command, bench.output)
        (file,) = to.glob("*/result.json")
        parts = {key: json.loads((file.parent / f"{key}.json").read_text()) for key in ("result", "predictions")}
        shutil.rmtree(to)  # checkpoints are large
        return {**parts, "wall": wall}

    made = kept(bench, name, {"command": command[1:], "data": data.fingerprint, "cold": cold}, make)
    return figures_of_ours(made["result"], made["predictions"], examples, made["wall"])


def time_variants(bench: Bench, data: Data, rounds: int) -> dict[str, Figures]:
    """Short runs of one epoch, round after round; of each variant the run with the quickest training."""
    runs: dict[str, list[Figures]] = {name: [] for name in (*VARIANTS, OURS, OURS_WITH_DROPOUT)}
    for turn in range(rounds):
        for name, options in VARIANTS.items():
            runs[name].append(reference_run(bench, short_name(name, turn), data, 0, 1, options))
        examples = runs["reference"][0].examples
        cache = bench.output / "timing-cache"
        for name, dropout in ((OURS, False), (OURS_WITH_DROPOUT, True)):
            so = replace(bench, attention_dropout=dropout)
            runs[name].append(our_run(so, short_name(name, turn), data, 0, 1, cache, cold=True, examples=examples)[0])
    return {name: quickest(found) for name, found in runs.items()}


def short_name(variant: str, turn: int) -> str:
    """The name of a short run's part."""
    return f"timing-{variant.replace(', ', '-').replace(' ', '-')}-{turn}"


def quickest(runs: Sequence[Figures]) -> Figures:
    """The least seconds of each stage: what disturbs a run only makes it slower."""
    seconds = {stage: min(run.seconds[stage] for run in runs) for stage in runs[0].seconds}
    return replace(runs[0], seconds=seconds, wall=min(run.wall for run in runs))


@dataclass
class Whole:
    """The whole trainings of all seeds, in the order of the seeds."""

    seeds: list[int]
    reference: list[Figures]
    ours: list[Figures]
    dense_f1: float


def run_whole(bench: Bench, data: Data, seeds: list[int]) -> Whole:
    """For each seed the reference's training, then ours."""
    reference, ours, dense = [], [], 0.0
    for seed in seeds:
        theirs = reference_run(bench, f"reference-s{seed}", data, seed, bench.epochs)
        cold, cache = seed == seeds[0], bench.output / "cache"
        part = f"ours-{'dropout-' if bench.attention_dropout else ''}s{seed}"
        mine, dense = our_run(bench, part, data, seed, bench.epochs, cache, cold, theirs.examples)
        reference.append(theirs)
        ours.append(mine)
    return Whole(seeds, reference, ours, dense)


# --- figures ------------------------------------------------------------------------------------------------


def question_scores(dev: Iterable[Mapping[str, Any]], predictions: Mapping[str, str]) -> np.ndarray:
    """F1 of each question, in [0, 1]."""
    return np.array([max(f1(predictions[row["id"]], text) for text in set(row["answers"]["text"])) for row in dev])


def bootstrap(difference: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the mean of [seeds, questions], both drawn again with replacement."""
    chance = np.random.default_rng(seed)
    seeds, questions = difference.shape
    means = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = difference[chance.integers(seeds, size=seeds)].mean(0)
        means[i] = drawn[chance.integers(questions, size=questions)].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def compare_f1(whole: Whole, dev: list[dict[str, Any]]) -> dict[str, Any]:
    """F1 of both, and of ours - reference the mean and its interval."""
    theirs, mine = (
        np.stack([question_scores(dev, run.predictions) for run in runs]) for runs in (whole.reference, whole.ours)
    )
    low, high = bootstrap(mine - theirs)
    return {
        "dense": whole.dense_f1,
        "reference": theirs.mean(1).tolist(),
        "ours": mine.mean(1).tolist(),
        "difference": float((mine - theirs).mean()),
        "interval": [low, high],
    }


def stage_sums(runs: Sequence[Figures]) -> dict[str, float]:
    """Seconds by stage, over all seeds."""
    stages = dict.fromkeys(stage for run in runs for stage in run.seconds)
    return {stage: sum(run.seconds.get(stage, 0.0) for run in runs) for stage in stages}


def rates(runs: Sequence[Figures]) -> dict[str, float]:
    """Over all seeds: tokens by second of training with its teacher, padding; and the highest peak of memory."""
    seconds = sum(run.training for run in runs)
    tokens, real = sum(run.tokens for run in runs), sum(run.real_tokens for run in runs)
    return {
        "tokens_per_second": tokens / seconds if seconds else 0.0,
        "real_tokens_per_second": real / seconds if seconds else 0.0,
        "padding": 1 - real / tokens if tokens else 0.0,
        "peak_memory_bytes": max(run.peak_memory_bytes for run in runs),
        "wall": sum(run.wall for run in runs),
    }


def extrapolated(whole: Whole, timing: Mapping[str, Figures]) -> dict[str, float]:
    """Seconds in all of the reference's variants: its whole runs, with one stage scaled as the short runs say."""
    sums, plain = stage_sums(whole.reference), timing["reference"]
    out = {}
    for name in VARIANTS.keys() - {"reference"}:
        stage = "train" if timing[name].steps else "evaluate"
        share = timing[name].seconds[stage] / plain.seconds[stage]
        out[name] = sum(sums.values()) + sums[stage] * (share - 1)
    return {name: out[name] for name in VARIANTS if name in out}


# --- the table ----------------------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns, the first to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]


def ratio(reference: float, ours: float) -> str:
    return f"{reference / ours:.2f}x" if reference and ours else "-"


def stage_rows(whole: Whole) -> list[list[str]]:
    """Seconds of both by stage, over all seeds."""
    theirs, mine = stage_sums(whole.reference), stage_sums(whole.ours)
    examples = sum(run.examples for run in whole.reference)

    def row(name: str, reference: float, ours: float) -> list[str]:
        by_example = [f"{1e3 * seconds / examples:.1f}" if seconds else "-" for seconds in (reference, ours)]
        seconds = [f"{value:.1f}" if value else "-" for value in (reference, ours)]
        return [name, *seconds, *by_example, ratio(reference, ours)]

    rows = [["stage", "reference s", "ours s", "reference ms/ex.", "ours ms/ex.", "ratio"]]
    rows += [row(stage, theirs[stage], mine.get(stage, 0.0)) for stage in SHARED_STAGES]
    rows += [row(f"{stage} (ours alone)", 0.0, value) for stage, value in mine.items() if stage not in SHARED_STAGES]
    rows.append(row("train + teacher", theirs["train"], mine["train"] + mine.get("teacher", 0.0)))
    rows.append(row("total", sum(theirs.values()), sum(mine.values())))
    rows.append(row("processes", rates(whole.reference)["wall"], rates(whole.ours)["wall"]))
    return rows


def rate_rows(whole: Whole) -> list[list[str]]:
    """Throughput and memory of both."""
    theirs, mine = rates(whole.reference), rates(whole.ours)
    kinds = (("tokens_per_second", 1, "tokens/s, padding included"), ("real_tokens_per_second", 1, "tokens/s, without"),
             ("padding", 0.01, "padding, %"), ("peak_memory_bytes", 2**20, "peak memory, MiB"))  # fmt: skip
    rows = [["training (with the teacher)", "reference", "ours"]]
    return rows + [[name, *(f"{values[key] / unit:.1f}" for values in (theirs, mine))] for key, unit, name in kinds]


def timing_rows(timing: Mapping[str, Figures]) -> list[list[str]]:
    """The short runs, which alternate on the same windows."""
    rows = [["short runs", "train ms/ex.", "teacher", "tokens/s", "without padding", "padding", "eval ms/q.", "MiB"]]
    for name, run in timing.items():
        trained = ["-"] * 5
        if run.steps:
            by_example = [1e3 * run.seconds.get(stage, 0.0) / run.examples for stage in ("train", "teacher")]
            speeds = rates([run])
            trained = [f"{by_example[0]:.1f}", f"{by_example[1]:.1f}" if by_example[1] else "-"]
            trained += [f"{speeds[key]:.0f}" for key in ("tokens_per_second", "real_tokens_per_second")]
            trained.append(f"{speeds['padding']:.1%}")
        rows.append([name, *trained, f"{1e3 * run.per_question:.1f}", f"{run.peak_memory_bytes / 2**20:.0f}"])
    return rows


def variant_rows(whole: Whole, variants: Mapping[str, float]) -> list[list[str]]:
    """Totals of what the reference could have been."""
    ours = sum(stage_sums(whole.ours).values())
    rows = [["total, extrapolated from the short runs", "s", "ratio to ours"]]
    return rows + [[name, f"{seconds:.1f}", ratio(seconds, ours)] for name, seconds in variants.items()]


def f1_lines(whole: Whole, scores: Mapping[str, Any]) -> list[str]:
    """F1 by seed, and the difference."""
    rows = [["F1", *(f"seed {seed}" for seed in whole.seeds), "mean"]]
    for name in ("reference", "ours"):
        rows.append([name, *(f"{value:.4f}" for value in (*scores[name], float(np.mean(scores[name]))))])
    low, high = scores["interval"]
    return [
        *table(rows),
        f"dense {scores['dense']:.4f}; ours - reference {scores['difference']:+.4f}, 95 % interval "
        f"{low:+.4f} to {high:+.4f} (paired bootstrap over questions and seeds)",
        f"sparsity {whole.reference[0].sparsity:.4f} and {whole.ours[0].sparsity:.4f}",
    ]


def report(bench: Bench, data: Data, whole: Whole, timing: Mapping[str, Figures]) -> dict[str, Any]:
    """All figures, with the printed table as `table`."""
    scores, variants = compare_f1(whole, data.dev), extrapolated(whole, timing)
    lines = [
        f"{bench.pattern}, {bench.epochs:g} epochs, {whole.reference[0].steps} steps, seeds {whole.seeds}, "
        f"{len(data.dev)} questions evaluated; sums over seeds",
        *("", *table(stage_rows(whole)), "", *table(rate_rows(whole))),
        *("", *table(timing_rows(timing)), "", *table(variant_rows(whole, variants)), "", *f1_lines(whole, scores)),
    ]

    def plain(run: Figures) -> dict[str, Any]:
        return {key: value for key, value in asdict(run).items() if key != "predictions"}

    return {
        "pattern": bench.pattern,
        "epochs": bench.epochs,
        "learning_rate": bench.learning_rate,
        "seeds": whole.seeds,
        "f1": scores,
        "seconds": {"reference": stage_sums(whole.reference), "ours": stage_sums(whole.ours)},
        "rates": {"reference": rates(whole.reference), "ours": rates(whole.ours)},
        "extrapolated_seconds": variants,
        "runs": {"reference": [plain(run) for run in whole.reference], "ours": [plain(run) for run in whole.ours]},
        "timing": {name: plain(run) for name, run in timing.items()},
        "table": lines,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=1200, help="of train")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--eval", type=int, default=10570, help="questions of the dev set")
    parser.add_argument("--pattern", default="4x1")
    parser.add_argument("--timing-steps", type=int, default=20, help="steps of a short run")
    parser.add_argument("--rounds", type=int, default=2, help="short runs of each kind")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--attention-dropout", action="store_true", help="keep it in ours, as the reference does")
    parser.add_argument("--output", type=Path, default=Path("outputs/bench-row"))
    options = parser.parse_args()
    hub, output = find_hub(), options.output.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the run of the moment is ended too
    bench = Bench(
        hub / MODEL, output, options.pattern, options.epochs, options.learning_rate, options.attention_dropout
    )
    train, dev = read_split(hub, "train", options.questions), read_split(hub, "validation", options.eval)
    short = write_data(output / "timing-data", train[: options.timing_steps * BATCH], dev[:TIMING_QUESTIONS])
    data = write_data(output / "data", train, dev)
    timing = time_variants(bench, short, options.rounds)
    whole = run_whole(bench, data, [int(seed) for seed in options.seeds.split(",")])
    result = report(bench, data, whole, timing)
    write_json(output / f"row{'-dropout' if bench.attention_dropout else ''}.json", result)
    print("\n".join(["", *result["table"]]))


if __name__ == "__main__":
    main()
