"""The names under which `runner` writes to MLflow and `results` reads, and how both write a metric and what
few examples cannot show.

`runner` imports this module and `results.pictures` only. A name that changes here changes on both sides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

# Tags of an MLflow run.
KIND = "prune_distill.kind"  # one of the four below
IDENTITY = "prune_distill.identity"  # hash of all that determines the result, seed included
FOLDER = "folder"  # the run's output folder, on the machine that made it
GROUP = "prune_distill.group"  # hash without the seed: runs of one group are pooled
METRIC = "prune_distill.metric"  # the dataset's main metric, such as "f1"
VERIFIED = "prune_distill.verified"  # "true" once the saved model was read back and recounted
DENSE_MODEL = "prune_distill.dense"  # hash of what made the dense model: equal in runs that pruned the same one
# Hash of data, dense model, distillation and steps, without the seed: equal in a run and its same-budget dense control.
CONTROL = "prune_distill.control"
BUDGET = "prune_distill.budget"  # hash of data, dense model and steps
CONTINUES = "prune_distill.continues"  # the MLflow run that has the part before an interruption, with its store
CONTINUED_BY = "prune_distill.continued_by"  # of an interrupted run: the MLflow run that has all of it
REPRODUCES = "prune_distill.reproduces"  # a reproduction's original: its MLflow run, or its folder
REPRODUCED = "prune_distill.reproduced"  # a reproduction's outcome: "bit for bit", or the stage that differs first
# Which parts of the run were made under other versions, on other hardware, or with other threads or ranks, one a line.
OTHER_CIRCUMSTANCES = "prune_distill.other_circumstances"
STUDENT_LAYERS = "prune_distill.student_layers"  # which of the dense model's layers the student has, if not all
TRAIN_EXAMPLES, EVALUATION_EXAMPLES = "examples.train", "examples.evaluation"  # how many the run used
UNLABELLED_EXAMPLES = "examples.unlabelled"  # how many more it used without labels, if any
RARE_CLASSES = "examples.rare_classes"  # the note on classes with few evaluation examples, if there are any
OFFICIAL_TRAIN, OFFICIAL_EVALUATION = "official.train", "official.evaluation"  # how many the official splits have

# Values of KIND.
PRUNED = "pruned"  # dense and sparse scored: a row of the table
DENSE_ONLY = "dense"  # prune=false: nothing was pruned
SWEEP = "sweep"  # the parent of a sweep's runs
REPRODUCTION = "reproduction"  # a run repeated to compare the outcome: no row, and no further seed

# Params that label a run. The others are what people compare by.
MODEL = "model"
DATASET = "dataset"
PATTERN = "pattern"
SEED = "seed"
LABELS = (MODEL, DATASET, PATTERN)

# Metrics. Scores and sparsities are fractions in [0, 1]; scores that are correlations lie in [-1, 1].
RELATIVE_DROP = "relative_drop"  # (sparse - dense) / dense; not logged where it is undefined
RATIO = "sparsity/linear"  # zeros in pruned weights / elements of all Linear and Conv weights
OVERALL_RATIO = "sparsity/all"  # the same zeros / elements of all parameters
TARGET = "sparsity/target"  # zeros / elements of the weights that the pattern prunes
VIOLATIONS = "pattern/violations"  # counted on the saved file; 0 in a verified run, but for a mix that was asked for
PADDING = "padding"  # share of padding in the tokens that the training computed
THROUGHPUT = "tokens_per_second"  # training throughput, without padding
BYTES = "size/bytes"  # size of the saved weights: zeros are stored, so only fewer layers make it smaller
PARAMETERS = "size/parameters"  # of the saved model, zeros included
PARAMETERS_DENSE = "size/parameters_dense"  # of the dense model
BYTES_CUT = "size/bytes_cut"  # size without heads and channels that compute nothing, as exports cut them out
PARAMETERS_CUT = "size/parameters_cut"  # parameters without these, other zeros included
COMPRESSED = "size/compressed_bytes"  # size of that file after gzip
MACS_DENSE = "macs/dense"  # multiply-accumulates of the dense model for one example of the longest length
MACS_SPARSE = "macs/sparse"  # without those with a pruned weight, and attention's products in heads that are gone
MACS_CUT = "macs/cut"  # multiply-accumulates of what exports leave, other zeros included
STEPS = "optimizer_steps"  # of the training that prunes, as planned; 0 for pruning without training
MEMORY = "peak_memory_bytes"  # of the process, or of the GPU that it used

CPU = "prune_distill.cpu"  # a tag: the CPU on which the metrics below were measured
LATENCY = "latency/"  # milliseconds of a call: CPU time with one thread, else time on the clock
SPEEDUP = "speedup/"  # how many times faster than the best dense runtime of the same batch, length and threads
PREDICTED = "predicted_speedup"  # by a table of times, of the model with its pruned heads and channels cut out
SPARSE = "sparse"  # the name of the sparse runtime
SPARSE_LINEARS = "sparse linears"  # its name where single layers are sparse, the rest runs in torch

# A tag of the experiment: columns for its list of runs in MLflow's UI, at the address ...?viewStateShareKey=results.
VIEW = "mlflow.sharedViewState.results"

# Metrics by step of the training that prunes; those of the fine-tuning are under "finetune/".
LOSS = "train/loss"
SPARSITY = "train/sparsity"
LEARNING_RATE = "train/learning_rate"
VALIDATION = "train/validation_"  # with the metric's name: the score on the hold-out, where train.evaluate asks for it
VALIDATION_SPARSITY = "train/validation_sparsity"  # sparsity at the step of such a score

# Artifacts.
CARD = "model_card.md"  # a copy of the one next to the weights
CONFIG = "config.yaml"  # the whole configuration, resolved
OVERRIDES = "overrides.txt"  # the command line's, one a line
# A list with an entry for each weight: name, shape, pattern, units, pruned_units, zeros, violations, skipped, sparsity.
LAYERS = "layers.json"
# A list with an entry for each mask update: step, sparsity, and weights removed and returned by name of the layer.
UPDATES = "updates.json"
PREDICTIONS = "predictions.json"  # of the sparse model: example id -> answer
DENSE_PREDICTIONS = "dense_predictions.json"  # of the dense model
# {"id": [...], "dense": [...], "sparse": [...]}, a fraction for each example: the main metric where that is their mean,
# else whether the answer is right (or empty lists). In the second case "statistics" is added: {"name": NAME, "dense":
# [[...], ...], "sparse": ...}; `results.bootstrap.FROM_MEANS[NAME]` computes the main metric from the means over the
# examples.
SCORES = "scores.json"
EXAMPLES_HTML, EXAMPLES_JSON = "examples.html", "examples.json"  # which examples were lost and won, by slice
COMPARISON = "reproduction.json"  # how a reproduction compares with the original

# How metrics are written in the middle of a sentence. Any other is written as its name, with spaces.
_WRITTEN = {
    "macro_f1": "macro F1",
    "f1": "F1",
    "matthews_correlation": "Matthews correlation",
    "pearson": "Pearson correlation",
    "spearmanr": "Spearman correlation",
}
ZERO = 1e-9  # scores up to this are 0 but for rounding
CORRELATIONS = frozenset({"matthews_correlation", "pearson", "spearmanr"})  # 0 is chance, and they may be negative


def written(metric: str) -> str:
    """A metric in the middle of a sentence: "exact match", "F1", "Matthews correlation". "f1_mismatched" and
    "has_answer_f1", which are of a part of the examples, become "F1 mismatched" and "has answer F1"."""
    for name, text in _WRITTEN.items():
        metric = re.sub(rf"(?<![^_]){name}(?![^_])", text, metric)
    return metric.replace("_", " ")


def title(metric: str) -> str:
    """A metric by itself: "Exact match", "F1", "Matthews correlation"."""
    text = written(metric)
    return text[:1].upper() + text[1:]


def relative_drop(dense: float, sparse: float) -> float | None:
    """(sparse - dense) / dense, a signed fraction; None unless the dense score is above 0: a share of zero, or of a
    negative correlation, is undefined."""
    return (sparse - dense) / dense if dense > ZERO else None


def stage(name: str) -> str:
    """The tag that holds a hash of what a stage made: `stage("prune")` is "prune_distill.stage.prune"."""
    return f"prune_distill.stage.{name}"


def seconds(stage: str) -> str:
    """The metric's name for the wall-clock time of a stage: `seconds("train")` is "seconds/train"."""
    return f"seconds/{stage}"


def latency(runtime: str, precision: str, batch: int, length: int, threads: int) -> str:
    """The metric's name for the time of a call: "latency/onnx_runtime_int8_b1_l128_t1"."""
    return f"{LATENCY}{_setting(runtime, precision, batch, length, threads)}"


def speedup(runtime: str, precision: str, batch: int, length: int, threads: int) -> str:
    """The metric's name for the ratio to the best dense runtime: "speedup/sparse_bfloat16_b1_l128_t1"."""
    return f"{SPEEDUP}{_setting(runtime, precision, batch, length, threads)}"


def setting(name: str) -> tuple[str, str, int, int, int] | None:
    """Runtime ("onnx_runtime"), precision, batch, length and threads in a name by `latency` or `speedup`; None for any
    other metric."""
    pattern = rf"(?:{LATENCY}|{SPEEDUP})(.+)_([a-z0-9]+)_b(\d+)_l(\d+)_t(\d+)"
    if (found := re.fullmatch(pattern, name)) is None:
        return None
    return found[1], found[2], int(found[3]), int(found[4]), int(found[5])


def _setting(runtime: str, precision: str, batch: int, length: int, threads: int) -> str:
    name = re.sub(r"[^a-z0-9.]+", "_", runtime.lower())
    return f"{name}_{precision}_b{batch}_l{length}_t{threads}"


def dense(metric: str) -> str:
    """The metric's name for the dense model: `dense("f1")` is "dense/f1"."""
    return f"dense/{metric}"


def sparse(metric: str) -> str:
    """The metric's name for the pruned model: `sparse("f1")` is "sparse/f1"."""
    return f"sparse/{metric}"


SIDES = (dense(""), sparse(""))
"""How the names of all scores begin."""
OUTCOMES = (RELATIVE_DROP, RATIO)
"""Figures of a run that stand next to its scores wherever runs are listed."""


# --- what few examples cannot show: notes of the table, the model card and the record ------------------------------

FEW_EXAMPLES = 300
"""With fewer evaluation examples not even a change in 1 % of them can be excluded: see `most_changing`."""
FEW_OF_CLASS = 10
"""With fewer examples one answer moves the recall of their class by more than 10 points."""
_NAMED = 5


def most_changing(examples: int) -> float:
    """The share of all examples that may change, at 95 % confidence, although none of so many does: the rule of three
    (Hanley and Lippman-Hand 1983)."""
    return min(1.0, 3 / examples)


def none_changes(examples: int, dense: float | None) -> str:
    """The note where no example scores differently.

    Args:
        dense: the dense score if it is a mean over the examples; else no drop follows from a share of changed examples.
    """
    share = most_changing(examples)
    drop = f", a drop of {min(1.0, share / dense):.2%}" if dense is not None and dense > ZERO else ""
    return (
        f"no example scores differently than with the dense model, which is no proof that none would: {examples:,} "
        f"examples leave room for a change in {share:.2%} of all (rule of three, 95 %){drop}"
    )


def few_examples(examples: int | None) -> str | None:
    """The note on a small evaluation set; None if it is not small."""
    if examples is None or examples >= FEW_EXAMPLES:
        return None
    return (
        f"scored on {examples:,} examples, fewer than {FEW_EXAMPLES}: even if none of them changed, a change in "
        f"{most_changing(examples):.2%} of all could not be excluded (rule of three)"
    )


def rare_classes(counts: Mapping[str, int]) -> str | None:
    """The note on classes with few evaluation examples, the rarest first; None if there are none."""
    rare = sorted((count, name) for name, count in counts.items() if count < FEW_OF_CLASS)
    if not rare:
        return None
    named = [f"{''.join(c if c.isprintable() else ' ' for c in name[:40])} ({count})" for count, name in rare[:_NAMED]]
    more = f" and {len(rare) - _NAMED} more" if len(rare) > _NAMED else ""
    return f"classes with fewer than {FEW_OF_CLASS} evaluation examples: {', '.join(named)}{more}"
