"""What the engine costs, as ratios measured side by side in one process on one thread: `make bench`.

An update is timed whole: scores, selection, caps, ties, masks, and their application to weights and Adam's moments.
Every figure is the best of some rounds in which reference and engine take turns.
"""

import argparse
import logging
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from pruning import (
    Block,
    Criterion,
    DiagonalFisher,
    Global,
    Gradual,
    Magnitude,
    Movement,
    NofM,
    Pattern,
    Plan,
    Platon,
    Pruner,
    SnipMomentum,
    TrainingLength,
)

LENGTH = TrainingLength(steps=1000)
SCHEDULE = Gradual(decay="linear", start="100", frequency="100", end="900")


def shapes(width: int, layers: int) -> list[tuple[int, int]]:
    """The prunable weights of a BERT of this width."""
    return ([(width, width)] * 4 + [(4 * width, width), (width, 4 * width)]) * layers


def best(rounds: int, *timed: Callable[[], object]) -> list[float]:
    """Seconds of each, the best of some rounds in which they take turns."""
    times = [float("inf")] * len(timed)
    for _ in range(rounds):
        for i, call in enumerate(timed):
            start = time.perf_counter()
            call()
            times[i] = min(times[i], time.perf_counter() - start)
    return times


class Bench:
    """A pruner in the middle of a training: weights, Adam's moments and scores are all there."""

    def __init__(self, sizes: list[tuple[int, int]], pattern: Pattern, criterion: Criterion, uneven: bool = False):
        random = torch.Generator().manual_seed(0)
        self.parameters: dict[str, nn.Parameter] = {}
        for i, size in enumerate(sizes):
            weight = torch.randn(size, generator=random)
            if uneven and i % 3 == 0:
                weight *= 0.01  # a third of the layers would be wiped out: the caps bind
            self.parameters[f"layer.{i:03}.weight"] = nn.Parameter(weight)
        self.optimizer = torch.optim.AdamW(self.parameters.values(), lr=0.0)
        self.pruner = Pruner(Plan(self.parameters, pattern, Global()), SCHEDULE, LENGTH, criterion)
        self.pruner.attach(self.optimizer)
        for p in self.parameters.values():
            p.grad = torch.randn(p.shape, generator=random)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def scores(self) -> Tensor:
        """All block scores in one tensor."""
        return torch.cat([state["score"].flatten() for state in self.pruner.scores.state.values()])

    def update_from(self, before: float, after: float) -> Callable[[], None]:
        """The update from one sparsity to another, as often as it is called."""
        pruner, target = self.pruner, self.pruner.pattern.target
        if before:
            pruner.prune(before / target)
        masks = pruner.masks
        saved = dict(masks._masks), dict(masks._bits), dict(pruner._fractions)

        def update() -> None:
            masks._masks, masks._bits, pruner._fractions = dict(saved[0]), dict(saved[1]), dict(saved[2])
            pruner.prune(after / target)

        return update


def bench_blocks(name: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    for uneven, target in ((False, 2), (True, 3)):
        for before, after in ((0.0, 0.4), (0.7, 0.8)):
            bench = Bench(sizes, Block(4, 1, target_sparsity=0.8), SnipMomentum(), uneven)
            scores = bench.scores()
            count = round(after * scores.numel())
            reference, ours = best(rounds, partial(scores.kthvalue, count), bench.update_from(before, after))
            what = "caps bind" if uneven else "no cap binds"
            line(f"{name} 4x1, {before:.0%} to {after:.0%}, {what}", ours, reference, "kthvalue", target)
            bench.pruner.detach()  # else optimizer and pruner hold each other, and the next is as large
            del bench, scores


def bench_groups(name: str, sizes: list[tuple[int, int]], rounds: int) -> None:
    for before, after in ((0.0, 0.25), (0.4, 0.5)):
        bench = Bench(sizes, NofM(2, 4), SnipMomentum())
        groups = bench.scores().view(-1, 4)  # a copy
        reference, ours = best(rounds, partial(groups.sort, dim=1), bench.update_from(before, after))
        line(f"{name} 2:4, {before:.0%} to {after:.0%}", ours, reference, "sort along groups", 3)
        bench.pruner.detach()
        del bench, groups


def bench_growth(rounds: int) -> None:
    first = None
    for layers in (18, 36, 72, 144):
        bench = Bench(shapes(384, layers // 6), Block(4, 1, target_sparsity=0.8), SnipMomentum())
        (ours,) = best(rounds, bench.update_from(0.7, 0.8))
        first = first or ours / layers
        print(f"  {layers:3} layers of width 384: {ours * 1e3:7.1f} ms, {ours / layers / first:.2f}x per layer")


def bench_step(rounds: int) -> None:
    from transformers import BertConfig, BertForQuestionAnswering

    for bf16 in (False, True):
        torch.manual_seed(0)
        model = BertForQuestionAnswering(BertConfig())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        weights = {n: p for n, p in model.named_parameters() if p.dim() == 2 and "encoder" in n}
        pruner = Pruner(Plan(weights, Block(4, 1, target_sparsity=0.8)), SCHEDULE, LENGTH)
        spent = [0.0]
        for hook in ("_before_step", "_after_step"):
            setattr(pruner, hook, clocked(getattr(pruner, hook), spent))
        pruner.attach(optimizer)
        tokens = torch.randint(0, 30000, (8, 128))
        labels = torch.randint(0, 128, (8,))
        shares, totals = [], []
        for step in range(rounds + 2):
            spent[0], start = 0.0, time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(input_ids=tokens, start_positions=labels, end_positions=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                pruner.prune(0.5)  # from here on masks are there and scores still kept: the dearest part of a training
            elif step > 1:
                totals.append(time.perf_counter() - start - spent[0])
                shares.append(spent[0])
        ours, reference = min(shares), min(totals)
        print(
            f"  {'bf16 autocast' if bf16 else 'float32':13} BERT-base 8 x 128: {ours * 1e3:.0f} ms of "
            f"{reference * 1e3:.0f} ms, {ours / reference:.2%}" + ("" if bf16 else " (target: 2 %)")
        )


def clocked(call: Callable, spent: list[float]) -> Callable:
    def timed(*args):
        start = time.perf_counter()
        try:
            return call(*args)
        finally:
            spent[0] += time.perf_counter() - start

    return timed


def bench_memory() -> None:
    for pattern in (Block(4, 1), NofM(2, 4)):
        for criterion in (SnipMomentum(), Movement(), Platon(), DiagonalFisher(), Magnitude()):
            bench = Bench([(768, 768)], pattern, criterion)
            bench.pruner.prune(0.5)
            state = sum(t.nbytes for s in bench.pruner.scores.state.values() for t in s.values())
            masks = bench.pruner.masks
            stored = sum(t.nbytes for part in (masks._masks, masks._bits) for t in part.values())
            per = 768 * 768
            print(
                f"  {pattern!s:4} {type(criterion).__name__:15} {state / per:5.2f} bytes a weight of scores, "
                f"{stored / per:4.2f} of masks (the weight: 4, Adam's moments: 8)"
            )


def line(what: str, ours: float, reference: float, name: str, target: float) -> None:
    print(f"  {what:45} {ours:6.3f} s, {ours / reference:5.2f}x {name} ({reference:.3f} s; target: {target}x)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="BERT-large too, 16 GB")
    parser.add_argument("--only", choices=("update", "growth", "step", "memory"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    if options.only in (None, "update"):
        print("One mask update")
        for name, sizes in (("BERT-base", shapes(768, 12)), ("BERT-large", shapes(1024, 24)))[: 1 + options.large]:
            bench_blocks(name, sizes, options.rounds)
            bench_groups(name, sizes, options.rounds)
    if options.only in (None, "growth"):
        print("An update's cost by number of layers")
        bench_growth(options.rounds)
    if options.only in (None, "step"):
        print("What hooks add to a training step")
        bench_step(options.rounds)
    if options.only in (None, "memory"):
        print("Memory")
        bench_memory()


if __name__ == "__main__":
    main()
