"""One prune-and-distill training in the way of the usual scripts: what this project's runs are measured against.

    python tests/benchmarks/reference_recipe.py --model FOLDER --train train.json --eval dev.json --output out.json

Stands alone: torch, transformers, datasets and numpy, nothing of this project. Written from the description of the
usual question-answering scripts with a snip-momentum pruner beside them, slow where these are slow, and correct:
features are tokenised anew in each run, batches are random and padded to their longest (`--padding 384`: all to the
full length), the dense teacher runs beside the student at each step, dropout is the model's own, AdamW is not fused,
masks are multiplied into the weights after each step, the global threshold is taken anew where the cap of a layer
binds, batches of the evaluation are unsorted and padded to their longest (`--eval-padding 384`: to the full length),
spans and scores are computed in Python loops.

It departs from these scripts in two places, so that scores can be compared: padding is kept out of the distillation
loss's softmax (they have it inside), and a weight that was pruned stays so. FILE is JSON lines of
{id, context, question, answers: {text, answer_start}}.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import string
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    get_linear_schedule_with_warmup,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

MAX_LENGTH, DOC_STRIDE = 384, 128
N_BEST, MAX_ANSWER_LENGTH = 20, 30
EVAL_BATCH = 16
MOMENTUM = 0.9
MAX_PER_LAYER = 0.98
INPUTS = ("input_ids", "token_type_ids", "attention_mask")
NOT_PRUNED = ("pooler", "embeddings", "qa_outputs")


# --- features -----------------------------------------------------------------------------------------------


def read_lines(file: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """The questions of a JSON-lines file, at most `limit`."""
    with file.open(encoding="utf-8") as lines:
        questions = [json.loads(line) for line in lines if line.strip()]
    return questions[:limit]


def tokenize(batch: Mapping[str, list], tokenizer: PreTrainedTokenizerBase) -> Any:
    """Questions with windows of their paragraphs, not padded."""
    return tokenizer(
        [question.lstrip() for question in batch["question"]],
        batch["context"],
        truncation="only_second",
        max_length=MAX_LENGTH,
        stride=DOC_STRIDE,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )


def train_windows(batch: Mapping[str, list], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """Windows with the tokens of the answer, which this recipe's loss does not look at but its scripts prepare."""
    encoded = tokenize(batch, tokenizer)
    offsets, rows = encoded.pop("offset_mapping"), encoded.pop("overflow_to_sample_mapping")
    nowhere = [tokens.index(tokenizer.cls_token_id) for tokens in encoded["input_ids"]]
    spans = [
        answer_span(batch["answers"][row], offsets[i], encoded.sequence_ids(i), nowhere[i])
        for i, row in enumerate(rows)
    ]
    return {name: encoded[name] for name in encoded} | {
        "start_positions": [start for start, _ in spans],
        "end_positions": [end for _, end in spans],
    }


def answer_span(
    answers: Mapping[str, list], offsets: list[tuple[int, int]], sequence_ids: list[int | None], cls: int
) -> tuple[int, int]:
    """First and last token of the first answer, or [CLS] twice if the window does not hold all of it."""
    if not answers["answer_start"]:
        return cls, cls
    begin = answers["answer_start"][0]
    stop = begin + len(answers["text"][0])
    first, last = 0, len(sequence_ids) - 1
    while sequence_ids[first] != 1:
        first += 1
    while sequence_ids[last] != 1:
        last -= 1
    if offsets[first][0] > begin or offsets[last][1] < stop:
        return cls, cls
    while first < len(offsets) and offsets[first][0] <= begin:
        first += 1
    while offsets[last][1] >= stop:
        last -= 1
    return first - 1, last + 1


def eval_windows(batch: Mapping[str, list], indices: list[int], tokenizer: PreTrainedTokenizerBase) -> dict[str, list]:
    """Windows with the index of their example, and character offsets that are None outside of the paragraph."""
    encoded = tokenize(batch, tokenizer)
    rows = encoded.pop("overflow_to_sample_mapping")
    for i, offsets in enumerate(encoded["offset_mapping"]):
        inside = encoded.sequence_ids(i)
        encoded["offset_mapping"][i] = [pair if inside[k] == 1 else None for k, pair in enumerate(offsets)]
    return {name: encoded[name] for name in encoded} | {"example_id": [indices[row] for row in rows]}


def features_of(questions: list[dict[str, Any]], windows: Callable[..., dict[str, list]], indices: bool) -> Any:
    """All windows of these questions, tokenised without any cache."""
    examples = datasets.Dataset.from_list(questions)
    return examples.map(
        windows,
        batched=True,
        with_indices=indices,
        remove_columns=examples.column_names,
        load_from_cache_file=False,
        keep_in_memory=True,
    )


def collate(rows: list[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, padding: str) -> dict[str, Tensor]:
    """The model's inputs of a batch, padded to its longest, or to the full length."""
    inputs = [{name: row[name] for name in INPUTS if name in row} for row in rows]
    if padding == "longest":
        return dict(tokenizer.pad(inputs, padding=True, return_tensors="pt"))
    return dict(tokenizer.pad(inputs, padding="max_length", max_length=MAX_LENGTH, return_tensors="pt"))


# --- pruning ------------------------------------------------------------------------------------------------


@dataclass
class Blocks:
    """`rows` x `cols` blocks of a [out, in] weight: rows are outputs."""

    rows: int
    cols: int

    def reduce(self, values: Tensor) -> Tensor:
        """[out, in] -> the mean of each block."""
        out, width = values.shape
        return values.view(out // self.rows, self.rows, width // self.cols, self.cols).mean((1, 3))

    def spread(self, kept: Tensor) -> Tensor:
        """A mask of blocks -> a mask of weights."""
        return kept.repeat_interleave(self.rows, 0).repeat_interleave(self.cols, 1)

    def pruned(self, scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks of blocks, true where pruned: one threshold over all layers, of which none loses more than the cap.

        A layer above the cap loses just that many blocks, and the threshold is taken anew over the others.
        """
        left = round(sparsity * sum(score.numel() for score in scores.values()))
        free, out = dict(scores), {}
        while free:
            threshold = lowest(torch.cat([score.flatten() for score in free.values()]), left)
            found = {name: score <= threshold for name, score in free.items()}
            caps = {name: int(MAX_PER_LAYER * score.numel()) for name, score in free.items()}
            over = [name for name in free if int(found[name].sum()) > caps[name]]
            if not over:
                return out | found
            for name in over:
                score = free.pop(name)
                out[name] = score <= lowest(score.flatten(), caps[name])
                left -= caps[name]
        return out


@dataclass
class Groups:
    """Of every `m` consecutive weights along the input axis, at most `n` are kept."""

    n: int
    m: int

    def reduce(self, values: Tensor) -> Tensor:
        """[out, in], as it is: each weight has its own score."""
        return values

    def spread(self, kept: Tensor) -> Tensor:
        """[out, in], as it is."""
        return kept

    def pruned(self, scores: dict[str, Tensor], sparsity: float) -> dict[str, Tensor]:
        """Masks, true where pruned: each group's m - n lowest are candidates, the cheapest groups go first."""
        gone = self.m - self.n
        cheap = {n: s.view(-1, self.m).topk(gone, dim=1, largest=False) for n, s in scores.items()}
        sums = {name: candidates.values.sum(1) for name, candidates in cheap.items()}
        total = sum(score.numel() for score in scores.values())
        threshold = lowest(torch.cat(list(sums.values())), round(sparsity * total / gone))
        out = {}
        for name, score in scores.items():
            mask = torch.zeros_like(score, dtype=torch.bool).view(-1, self.m)
            mask.scatter_(1, cheap[name].indices, (sums[name] <= threshold)[:, None].expand(-1, gone))
            out[name] = mask.view_as(score)
        return out


def lowest(values: Tensor, count: int) -> Tensor:
    """The value up to which `count` of them lie; -inf for none."""
    return values.kthvalue(min(count, values.numel())).values if count > 0 else torch.tensor(-math.inf)


def read_pattern(text: str) -> Blocks | Groups:
    """4x1: blocks of four outputs by one input. 2:4: two of four are kept."""
    found = re.fullmatch(r"(\d+)([x:])(\d+)", text)
    if found is None:
        raise SystemExit(f"--pattern {text}: NxM such as 4x1, or N:M such as 2:4")
    first, second = int(found[1]), int(found[3])
    return Blocks(first, second) if found[2] == "x" else Groups(first, second)


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """The weights of the encoder's Linear layers, by name."""
    return {
        name: module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and not set(name.split(".")) & set(NOT_PRUNED)
    }


class SnipMomentum:
    """Scores, masks and the schedule of one model."""

    def __init__(self, weights: dict[str, Tensor], pattern: Blocks | Groups, updates: dict[int, float]) -> None:
        """`updates`: optimizer steps taken before a mask update -> sparsity from then on."""
        self.weights, self.pattern, self.updates = weights, pattern, updates
        self.scores = {name: torch.zeros_like(pattern.reduce(w.detach())) for name, w in weights.items()}
        self.masks = {name: torch.ones_like(w) for name, w in weights.items()}

    @torch.no_grad()
    def observe(self) -> None:
        """Between backward and the optimizer's step: S <- 0.9 S + |w g|, the mean over each block."""
        for name, weight in self.weights.items():
            assert weight.grad is not None
            self.scores[name] = MOMENTUM * self.scores[name] + self.pattern.reduce((weight * weight.grad).abs())

    @torch.no_grad()
    def apply(self) -> None:
        """After the optimizer's step: pruned weights are zero again."""
        for name, weight in self.weights.items():
            weight.mul_(self.masks[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Before the forward pass of this step: new masks, if they are due. What is pruned comes first and stays so."""
        if step not in self.updates:
            return
        scores = {
            name: score.masked_fill(self.pattern.reduce(self.masks[name]) == 0, -math.inf)
            for name, score in self.scores.items()
        }
        for name, pruned in self.pattern.pruned(scores, self.updates[step]).items():
            self.masks[name] = self.pattern.spread(~pruned).float()
        self.apply()

    def sparsity(self) -> float:
        """The part of the weights that is zero."""
        zeros = sum(int((weight == 0).sum()) for weight in self.weights.values())
        return zeros / sum(weight.numel() for weight in self.weights.values())


def cubic_updates(steps: int, target: float, start: float, frequency: float, cooldown: float) -> dict[int, float]:
    """Optimizer steps taken before a mask update -> sparsity: 1 - (1 - t/n)^3 of the target at update t of 0..n.

    `start`, `frequency` and `cooldown` are parts of the training.
    """
    if not steps:
        return {}
    begin, every, end = round(start * steps), max(1, round(frequency * steps)), steps - round(cooldown * steps)
    count = (end - begin) // every
    if count < 1:
        raise SystemExit(f"{steps} steps are too few for mask updates from step {begin} to {end} every {every}")
    return {begin + t * every: target * (1 - (1 - t / count) ** 3) for t in range(count + 1)}


# --- training -----------------------------------------------------------------------------------------------


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("prepare", "train", "update", "evaluate"), 0.0)
    )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - begin


@dataclass
class Work:
    """What a training computed."""

    steps: int = 0
    examples: int = 0
    tokens: int = 0
    """Padding included."""
    real_tokens: int = 0


def new_optimizer(model: nn.Module, options: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW, with weight decay but on biases and LayerNorm."""
    parameters = list(model.named_parameters())
    spared = [p for name, p in parameters if name.endswith("bias") or "LayerNorm" in name]
    decayed = [p for name, p in parameters if not (name.endswith("bias") or "LayerNorm" in name)]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options.learning_rate, betas=(0.9, 0.9))


def distillation_loss(student: Any, teacher: Any, attention_mask: Tensor, temperature: float) -> Tensor:
    """KL of start and end, softened, over the tokens that are not padding; times T^2."""
    padding, lowest_float = attention_mask == 0, torch.finfo(torch.float32).min

    def log_softmax(logits: Tensor) -> Tensor:
        return F.log_softmax((logits.float() / temperature).masked_fill(padding, lowest_float), dim=-1)

    def divergence(ours: Tensor, theirs: Tensor) -> Tensor:
        return F.kl_div(log_softmax(ours), log_softmax(theirs), reduction="batchmean", log_target=True)

    start = divergence(student.start_logits, teacher.start_logits)
    end = divergence(student.end_logits, teacher.end_logits)
    return (start + end) / 2 * temperature**2


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    loader: DataLoader,
    pruner: SnipMomentum,
    steps: int,
    options: argparse.Namespace,
    clock: Clock,
) -> Work:
    """The plain loop; `clock` gets the time of mask updates apart."""
    optimizer = new_optimizer(student, options)
    scheduler = get_linear_schedule_with_warmup(optimizer, math.ceil(options.warmup * steps), steps)
    work, last = Work(), steps if options.max_steps is None else min(steps, options.max_steps)
    student.train()
    teacher.eval()
    batches = endless(loader)
    while work.steps < last:
        with clock.stage("update"):
            pruner.update(work.steps)
        with clock.stage("train"):
            batch = next(batches)
            loss = one_step(student, teacher, batch, pruner, optimizer, options)
            scheduler.step()
        work.steps += 1
        work.examples += len(batch["input_ids"])
        work.tokens += batch["attention_mask"].numel()
        work.real_tokens += int(batch["attention_mask"].sum())
        if work.steps % 20 == 0 or work.steps == last:
            spent = clock.seconds["train"] / work.steps
            print(f"step {work.steps} of {steps}: loss {loss:.4f}, {spent:.2f} s a step", flush=True)
    with clock.stage("update"):
        pruner.update(work.steps if work.steps == steps else -1)  # without a cool-down the last one comes after the end
    return work


def one_step(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    batch: dict[str, Tensor],
    pruner: SnipMomentum,
    optimizer: torch.optim.Optimizer,
    options: argparse.Namespace,
) -> float:
    """Forward, backward, scores, optimizer, masks. Returns the loss."""
    with torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bf16"):
        outputs = student(**batch)
        with torch.no_grad():
            taught = teacher(**batch)
    loss = options.distill_weight * distillation_loss(outputs, taught, batch["attention_mask"], options.temperature)
    loss.backward()
    pruner.observe()
    optimizer.step()
    pruner.apply()
    optimizer.zero_grad()
    return loss.item()


def endless(loader: DataLoader) -> Iterator[dict[str, Tensor]]:
    """The batches of one epoch after another."""
    while True:
        yield from loader


# --- evaluation ---------------------------------------------------------------------------------------------


def all_logits(model: PreTrainedModel, loader: DataLoader) -> tuple[np.ndarray, np.ndarray]:
    """Start and end logits, [windows, full length] each, in float32."""
    model.eval()
    heads: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for batch in loader:
        with torch.no_grad():
            outputs = model(**batch)
        for head, logits in zip(heads, (outputs.start_logits, outputs.end_logits), strict=True):
            # Filled up as these scripts do, so that batches can be put together.
            head.append(F.pad(logits, (0, MAX_LENGTH - logits.shape[1]), value=-100.0).numpy())
        if len(heads[0]) % 100 == 0:
            print(f"evaluation: batch {len(heads[0])} of {len(loader)}", flush=True)
    return np.concatenate(heads[0]), np.concatenate(heads[1])


def plain_answers(
    examples: Sequence[Mapping[str, Any]],
    features: Sequence[Mapping[str, Any]],
    start_logits: np.ndarray,
    end_logits: np.ndarray,
    n_best: int,
    max_answer_length: int,
) -> dict[str, str]:
    """Question id -> the text of the best span: of all pairs of `n_best` start and end tokens the highest sum.

    Args:
        examples: with "id" and "context".
        features: with "example_id", the index of the example, and "offset_mapping", None outside of the paragraph.
        start_logits, end_logits: [features, tokens], at least as many tokens as a feature has.
    """
    windows: dict[int, list[int]] = {i: [] for i in range(len(examples))}
    for i, feature in enumerate(features):
        windows[feature["example_id"]].append(i)
    answers = {}
    for index, example in enumerate(examples):
        spans = []
        for i in windows[index]:
            offsets = features[i]["offset_mapping"]
            spans += window_spans(start_logits[i], end_logits[i], offsets, n_best, max_answer_length)
        spans.sort(key=lambda span: -span["score"])
        best = spans[0]["offsets"] if spans else (0, 0)
        answers[example["id"]] = example["context"][best[0] : best[1]]
    return answers


def window_spans(
    start: np.ndarray, end: np.ndarray, offsets: Sequence[Any], n_best: int, max_answer_length: int
) -> list[dict[str, Any]]:
    """The valid pairs of one window's `n_best` start and end tokens."""
    spans = []
    starts = np.argsort(-start, kind="stable")[:n_best].tolist()
    ends = np.argsort(-end, kind="stable")[:n_best].tolist()
    for first in starts:
        for last in ends:
            if first >= len(offsets) or last >= len(offsets) or offsets[first] is None or offsets[last] is None:
                continue
            if last < first or last - first + 1 > max_answer_length:
                continue
            spans.append({"score": start[first] + end[last], "offsets": (offsets[first][0], offsets[last][1])})
    return spans


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(prediction: str, answer: str) -> float:
    """F1 over bags of words, in [0, 1]."""
    predicted, expected = normalized(prediction).split(), normalized(answer).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


def scores(examples: Sequence[Mapping[str, Any]], answers: Mapping[str, str]) -> dict[str, float]:
    """`f1` and `exact_match`, fractions: the mean over questions of the best over each one's answers."""
    words = exact = 0.0
    for example in examples:
        answer, texts = answers[example["id"]], example["answers"]["text"]
        words += max(word_f1(answer, text) for text in texts)
        exact += max(float(normalized(answer) == normalized(text)) for text in texts)
    return {"f1": words / len(examples), "exact_match": exact / len(examples)}


# --- the run ------------------------------------------------------------------------------------------------


def load(folder: str) -> PreTrainedModel:
    """The fine-tuned model, in float32."""
    return AutoModelForQuestionAnswering.from_pretrained(folder, dtype=torch.float32)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Prepare, train, evaluate; what `--output` gets."""
    clock, pattern = Clock(), read_pattern(options.pattern)
    target = options.sparsity if isinstance(pattern, Blocks) else 1 - pattern.n / pattern.m
    set_seed(options.seed)
    with clock.stage("prepare"):
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        student, teacher = load(options.model), load(options.model)
        examples = read_lines(options.eval, options.eval_limit)
        lessons = features_of(read_lines(options.train), partial(train_windows, tokenizer=tokenizer), False)
        questions = features_of(examples, partial(eval_windows, tokenizer=tokenizer), True)
        padded = partial(collate, tokenizer=tokenizer, padding=options.padding)
        loader = DataLoader(lessons, options.batch_size, shuffle=True, collate_fn=padded)
        steps = math.ceil(options.epochs * len(loader))
        updates = cubic_updates(steps, target, options.start, options.frequency, options.cooldown)
        pruner = SnipMomentum(prunable(student), pattern, updates)
    print(f"{len(lessons)} windows, {steps} steps, {len(updates)} mask updates", flush=True)
    work = train(student, teacher, loader, pruner, steps, options, clock)
    with clock.stage("evaluate"):
        padded = partial(collate, tokenizer=tokenizer, padding=options.eval_padding)
        start, end = all_logits(student, DataLoader(questions, EVAL_BATCH, collate_fn=padded))
        answers = plain_answers(examples, list(questions), start, end, N_BEST, MAX_ANSWER_LENGTH)
        reached = scores(examples, answers)
    return {
        "seconds": clock.seconds,
        **vars(work),
        "total_steps": steps,
        "eval_examples": len(examples),
        "sparsity": pruner.sparsity(),
        **reached,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        * (1 if sys.platform == "darwin" else 1024),
        "predictions": answers,
    }


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a fine-tuned BERT for question answering")
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--pattern", default="4x1", help="4x1, 2:4, ...")
    parser.add_argument("--sparsity", type=float, default=0.8, help="of blocks; that of N:M follows")
    parser.add_argument("--epochs", type=float, default=10)
    parser.add_argument("--learning-rate", type=float, default=7e-5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--weight-decay", type=float, default=1e-7)
    for name, default in (("warmup", 0.1), ("start", 0.1), ("frequency", 0.02), ("cooldown", 0.3)):
        parser.add_argument(f"--{name}", type=float, default=default, help="a part of the training")
    parser.add_argument("--distill-weight", type=float, default=4.5)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("float32", "bf16"), default="float32")
    parser.add_argument("--padding", choices=("longest", str(MAX_LENGTH)), default="longest")
    parser.add_argument("--eval-padding", choices=("longest", str(MAX_LENGTH)), default="longest")
    parser.add_argument("--max-steps", type=int, help="stop after so many steps of the whole training, for timings")
    parser.add_argument("--eval-limit", type=int, help="evaluate on the first so many questions")
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    datasets.disable_progress_bars()
    disable_progress_bar()
    result = run(options)
    options.output.write_text(json.dumps(result, indent=1), encoding="utf-8")
    shown = {key: value for key, value in result.items() if key != "predictions"}
    print(json.dumps(shown), flush=True)


if __name__ == "__main__":
    main()
