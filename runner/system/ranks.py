"""Data-parallel training: a process per rank, started by torchrun or accelerate launch.

Rank 0 runs the program and decides everything. The others `follow`: they wait until rank 0 calls a function
`on_all_ranks`, which it does for trainings. So only one process reads options, writes files, logs and scores, and no
two ranks can take different branches. Without a launcher there is no process group, and `on_all_ranks` is a plain call.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported later, its default arguments would hold our group
from torch.distributed import PrefixStore, Store, rendezvous  # type: ignore  # documented, but not in its __all__

from runner.system.errors import UserError
from runner.system.interrupts import SIGNALS, Interrupted, ignore_signals, raise_on_signals

T = TypeVar("T")

WAIT = timedelta(days=7)
"""Timeout of collectives in a training. Rank 0 writes checkpoints and logs to a server while the others wait, for which
torch's 10 to 30 minutes may be short. A launcher ends all ranks when one has died."""
PATIENCE = 10.0
"""Seconds that a failing rank waits for the status of rank 0: if rank 0 failed first, that failure is reported."""
_POLL = 0.1  # seconds

_REFUSED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a ParallelismConfig",
}
_MPI = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_DECIDED_HERE = {"ACCELERATE_MIXED_PRECISION": "train.precision", "ACCELERATE_DYNAMO_BACKEND": "train.torch_compile"}

log = logging.getLogger(__name__)


def world_size() -> int:
    """Number of ranks that a launcher such as torchrun started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """The number of this process among the ranks; 0 without a launcher."""
    return int(os.environ.get("RANK", "0"))


def check_launcher() -> None:
    """Refuse a launcher's configuration that the engine does not support, and ignore its precision and compiler.

    Raises:
        UserError: weights would be split over ranks, so that no rank has the whole matrices to prune; or ranks cannot
            share the device.
    """
    asked = [name for variable, name in _REFUSED.items() if os.environ.get(variable, "").lower() in ("true", "1")]
    if os.environ.get("PJRT_DEVICE", "").upper() == "TPU":
        asked.append("TPUs")
    if world_size() == 1 and any(int(os.environ.get(variable, "1")) > 1 for variable in _MPI):
        asked.append("MPI ranks")  # which Trainer would use as its ranks
    if asked:
        raise UserError(
            f"the launcher asks for {' and '.join(asked)}, which this runner does not support: its ranks hold whole "
            "models (data-parallel training, on CPUs or NVIDIA GPUs); use torchrun, or accelerate launch --multi_gpu"
        )
    if world_size() > 1 and not torch.cuda.is_available() and torch.backends.mps.is_available():
        raise UserError("several ranks cannot share an Apple GPU: run without a launcher")
    for variable, key in _DECIDED_HERE.items():  # Trainer would obey these variables
        value = os.environ.pop(variable, "no")
        if value.lower() != "no":
            log.warning("%s=%s is left out: %s decides", variable, value, key)


# --- the program: rank 0 leads, the others follow -----------------------------------------------------------


@dataclass
class _Line:
    """Messages from rank 0 to the others, in the launcher's store, which they can read at any time without blocking."""

    store: Store
    calls: int = 0
    """Number of messages sent, or received."""

    def send(self, text: str) -> None:
        self.store.set(f"message/{self.calls}", text)

    def receive(self) -> str | None:
        """The next message, or None if it was not sent yet."""
        key = f"message/{self.calls}"
        return self.store.get(key).decode() if self.store.check([key]) else None


_CALL = "call"  # any other message is the exit status of rank 0
_line: _Line | None = None


def lead(program: Callable[[], int]) -> int:
    """Run the program as rank 0, or as the only process. Returns its exit status, with which the others end too."""
    global _line
    if world_size() == 1:
        return program()
    raise_on_signals()
    with group() as store:
        _line, status = _Line(store), 1
        try:
            status = program()
        except SystemExit as ended:
            status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
            raise
        finally:
            ignore_signals()  # the launcher sends one when the first rank has ended
            with suppress(RuntimeError):  # the launcher is gone
                _line.send(str(status))
        if status == 0:
            _wait_to_end()
    return status


def follow() -> None:
    """Run every rank but the first: join the calls of rank 0 until it ends, without logging, which rank 0 does.

    Raises:
        SystemExit: rank 0 ended with another status than 0.
        Exception: this rank failed by itself.
    """
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for variable in _DECIDED_HERE:
        os.environ.pop(variable, None)
    asked: list[int] = []
    for number in SIGNALS:  # rank 0 gets the signal too, and decides
        signal.signal(number, lambda number, frame: asked.append(number))
    with group() as store:
        line = _Line(store)
        try:
            while (status := _next(line, asked)) == _CALL:
                line.calls += 1
                work, arguments = _broadcast(None)
                work(*arguments)
        except (Exception, Interrupted) as error:
            last = _last_status(line)
            if last is not None and int(last):
                sys.exit(int(last))
            if isinstance(error, Interrupted):
                sys.exit(error.status)
            raise
        finally:
            ignore_signals()
        if int(status):
            sys.exit(int(status))
        _wait_to_end()


def on_all_ranks(work: Callable[..., T], *arguments: Any, **own: Any) -> T:
    """Call a function of a module on all ranks at once; called by rank 0.

    Args:
        arguments: pickled for the other ranks.
        own: keyword arguments for rank 0 alone.

    Returns:
        The function's value on rank 0.
    """
    if world_size() > 1:
        assert _line is not None
        _line.send(_CALL)
        _line.calls += 1
        _broadcast((work, arguments))
    return work(*arguments, **own)


def _next(line: _Line, asked: list[int]) -> str:
    """Wait for the next message of rank 0; after a signal for at most PATIENCE."""
    end = None
    while (message := line.receive()) is None:
        if asked:
            end = end or time.monotonic() + PATIENCE
            if time.monotonic() > end:  # rank 0 was killed, or did not get the signal
                raise Interrupted(asked[0])
        time.sleep(_POLL)
    return message


def _wait_to_end() -> None:
    """Wait until all ranks know the status: the store ends with rank 0 if no launcher holds it."""
    with suppress(RuntimeError):  # a rank has ended already: the work is done
        barrier()


def _last_status(line: _Line) -> str | None:
    """The exit status of rank 0 if it has ended, or None."""
    end = time.monotonic() + PATIENCE
    try:
        while time.monotonic() < end:
            if (message := line.receive()) is not None and message != _CALL:
                return message
            time.sleep(_POLL)
    except RuntimeError:  # the store is gone, and rank 0 with it
        return "1"
    return None


@contextmanager
def group() -> Iterator[Store]:
    """The process group of all ranks, which Trainer finds and uses.

    Yields:
        A store that they share.
    """
    store, number, size = next(rendezvous("env://"))
    from runner.system.device import device

    # Numbers that ranks exchange between steps stay on the CPU, so that they do not wait for the GPU.
    backend = "cpu:gloo,cuda:nccl" if device().type == "cuda" else "gloo"
    dist.init_process_group(backend, store=PrefixStore("group", store), rank=number, world_size=size, timeout=WAIT)
    well = False
    try:
        yield PrefixStore("line", store)
        well = True
    finally:
        # gloo's threads may abort a process that ends with them. NCCL would wait for ranks that wait for this one.
        if well or backend == "gloo":
            gc.collect()  # the model of a finished training is in a cycle, and holds the group and its threads
            dist.destroy_process_group()


# --- within a call on all ranks -------------------------------------------------------------------------------


def broadcast(decide: Callable[[], T]) -> T:
    """Compute a value on rank 0, and return it on all ranks."""
    if world_size() == 1:
        return decide()
    return _broadcast(decide() if rank() == 0 else None)


def _broadcast(value: Any) -> Any:
    values = [value]
    dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
    return values[0]


def barrier() -> None:
    """Wait until all ranks have called this."""
    all_max(0)


def all_max(number: int) -> int:
    """The highest number of all ranks."""
    return _reduced([number], dist.ReduceOp.MAX)[0]


def all_sum(numbers: list[int]) -> list[int]:
    """The sum over all ranks of each number."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def _reduced(numbers: list[int], how: Any) -> list[int]:
    if world_size() == 1:
        return numbers
    values = torch.tensor(numbers, dtype=torch.int64)
    dist.all_reduce(values, how)
    return values.tolist()


def check_same(weights: Mapping[str, torch.Tensor]) -> None:
    """Compare a sum over the bits of each weight between the ranks. What is pruned is zero, so it compares masks too.

    Args:
        weights: float32, the same names on all ranks.

    Raises:
        RuntimeError: they differ. Raised on all ranks.
    """
    if world_size() == 1:
        return
    sums = [w.detach().contiguous().view(torch.int32).sum(dtype=torch.int64) for w in weights.values()]
    mine = torch.stack(sums).cpu()
    of_all = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(of_all, mine)
    differs = (torch.stack(of_all) != of_all[0]).any(dim=0).tolist()
    names = [name for name, differing in zip(weights, differs, strict=True) if differing]
    if names:
        raise RuntimeError(
            f"the ranks' weights have come to differ: {len(names)} of {len(weights)}, such as {names[0]}"
        )
