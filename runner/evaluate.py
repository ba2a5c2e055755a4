"""Score a model; `run()` uses it for dense and sparse alike.

python -m runner.evaluate FOLDER_OR_ID [dataset=squad] [dataset.max_eval_samples=1000] ...
"""

from __future__ import annotations

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock

from pruning import Prediction
from runner import models
from runner.data.task import Dataset, Scores
from runner.system import files
from runner.system.device import Precision, computing, device
from runner.system.errors import writing
from runner.system.versions import VERSIONS

if TYPE_CHECKING:
    import datasets
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 8192}


def score(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    examples: datasets.Dataset,
    cache: Path | None,
    title: str,
) -> Scores:
    """Metrics (fractions) and predictions of a model on the examples, computed in float32."""
    features = task.features(examples, tokenizer, cache, labels=False)
    return task.score(examples, features, logits(model, tokenizer, task, features, title))


def score_once(
    checkpoint: models.Checkpoint,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    examples: datasets.Dataset,
    fingerprint: str,
    cache: Path,
    title: str,
) -> Scores:
    """As `score`, but found again if this checkpoint was scored on these examples before. Of several processes that
    ask at once, one scores and the others wait.

    Args:
        fingerprint: of the examples.
    """
    made_of = [VERSIONS["prepare"], VERSIONS["evaluate"], checkpoint.fingerprint, fingerprint]
    made_of += [task.settings(), task.score_settings()]
    made_of += [field.name for field in fields(Scores)]
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = cache / "scores" / f"{key}.json"
    with writing(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            found = files.read_json(file)
            if found is not None:
                return Scores(**found)
            model = models.load(task.architecture, checkpoint)
            scores = score(model, tokenizer, task, examples, cache / "features", title)
            files.write_json(file, asdict(scores))
            return scores


def logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, task: Dataset, features: datasets.Dataset, title: str
) -> list[np.ndarray]:
    """[features, choices] or [features, tokens, choices] per head, in the order of the features, padded with the lowest
    float; in float32."""
    import numpy as np

    heads: list[np.ndarray] = []
    for rows, found in predictions(model, tokenizer, task, features, title, Precision.float32):
        if not heads:  # the longest come first
            lowest = np.finfo(np.float32).min
            heads = [np.full((len(features), *head.shape[1:]), lowest, np.float32) for head in found.logits]
        for head, values in zip(heads, found.logits, strict=True):
            head[rows, : values.shape[1]] = values.float().cpu().numpy()
    return heads


def predictions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Dataset,
    features: datasets.Dataset,
    title: str,
    precision: Precision,
) -> Iterator[tuple[np.ndarray, Prediction]]:
    """What a model says about the features: the rows of a batch and its prediction, the longest features first.

    Batches hold features of similar length, so that little is computed on padding.
    """
    import numpy as np
    from tqdm.auto import tqdm

    where = device()
    model.to(where)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    model.eval()
    names = [name for name in tokenizer.model_input_names if name in features.column_names]
    inputs = features.select_columns(names)
    lengths = np.asarray(features["length"])
    order = np.argsort(-lengths, kind="stable")
    with tqdm(total=len(order), desc=title, unit="window", dynamic_ncols=True) as bar:
        at = 0
        while at < len(order):
            rows = order[at : at + max(1, BATCH_TOKENS[where.type] // int(lengths[order[at]]))]
            batch = tokenizer.pad(inputs[rows], padding=True, return_tensors="pt").to(where)
            with torch.inference_mode(), computing(precision):
                found = task.prediction(model(**batch), batch)
            yield rows, found
            at += len(rows)
            bar.update(len(rows))


def main(arguments: list[str]) -> dict[str, Any]:
    """Compose the configuration for this model, score it, print and return the metrics. Printed is also what a setting
    that is chosen on these examples would give, such as SQuAD v2.0's threshold: for a hold-out of train."""
    from runner.config.compose import compose_experiment
    from runner.experiment import set_up_process
    from runner.system.errors import UserError

    if not arguments or arguments[0].startswith("-") or "=" in arguments[0]:
        raise UserError("usage: python -m runner.evaluate FOLDER_OR_ID [dataset=NAME] [dataset.KEY=VALUE] ...")
    path, *overrides = arguments
    experiment, _ = compose_experiment(["model=hub", f"model.path='{path}'", *overrides])
    set_up_process()
    checkpoint = models.find(experiment.model.path, "model", experiment.model, experiment.model.revision)
    net = models.skeleton(experiment.dataset.architecture, checkpoint.config)
    models.check_positions(net, checkpoint, experiment.dataset.max_seq_length)
    examples = experiment.dataset.read(train=False)
    experiment.dataset.configure(checkpoint.config, examples.evaluation, f"model {checkpoint.path}")
    tokenizer = models.load_tokenizer(checkpoint)
    model = models.load(experiment.dataset.architecture, checkpoint)
    cache = Path(experiment.cache_dir) / "features"
    scores = score(model, tokenizer, experiment.dataset, examples.evaluation, cache, "Scoring")
    told = {"model": path, "examples": len(examples.evaluation), **scores.metrics}
    print(json.dumps(told | ({"if_chosen_on_these_examples": scores.choosing} if scores.choosing else {}), indent=2))
    return scores.metrics


if __name__ == "__main__":
    from runner.system.process import exit_status

    sys.exit(exit_status(lambda: main(sys.argv[1:])))
