"""The machine: device, precision, memory, and their names."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import torch

from runner.system.files import atomic_write
from runner.system.fingerprint import SHORT, hash_text

BF16_PAYS = 1.4
"""How much faster bf16 matrix products must be on a CPU before autocast, which also has to convert, is worth it."""


class Precision(Enum):
    """What a training computes in. Weights and the optimizer's state are float32 in all of them."""

    float32 = "float32"
    tf32 = "tf32"
    bf16 = "bf16"
    fp16 = "fp16"


def device() -> torch.device:
    """The one device that a process uses, as Trainer chooses it."""
    if os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("true", "1"):  # accelerate launch --cpu
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def best_precision(cache: Path | None = None) -> Precision:
    """The quickest precision that trains as well as float32 on this machine.

    Args:
        cache: a folder that stores the measurement: otherwise a busy moment could give a run another precision.
    """
    where = device().type
    if where == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision.bf16
        return Precision.fp16 if torch.cuda.get_device_capability() >= (7, 0) else Precision.float32
    if where == "cpu" and bf16_speedup(cache) >= BF16_PAYS:
        return Precision.bf16
    return Precision.float32


def why_not(precision: Precision) -> str | None:
    """Why this machine cannot compute in a precision, or None if it can."""
    where = device().type
    if precision in (Precision.tf32, Precision.fp16) and where != "cuda":
        return f"it needs an NVIDIA GPU, and this process computes on {where}"
    if precision is Precision.tf32 and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} does not have it"
    return None


@functools.cache
def bf16_speedup(cache: Path | None = None) -> float:
    """How many times faster than in float32 this CPU multiplies matrices in bf16; 0 without instructions for it.

    It is measured, since the instructions do not determine it: processors with AVX512-BF16 were seen at 2.5 and at 0.5.

    Args:
        cache: a folder in which an earlier process may have stored it, on a CPU of this name.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return 0.0
    if cache is not None:
        with suppress(OSError, ValueError):
            return float(_bf16_file(cache).read_text(encoding="utf-8"))
    return round(_measured_bf16_speedup(), 2)


def keep_bf16_speedup(folder: Path) -> None:
    """Store the measurement, if one was made, for the next processes that share the folder."""
    if device().type != "cpu" or not bf16_speedup(folder) or _bf16_file(folder).is_file():
        return
    with suppress(OSError):  # a full disk is reported by the writes that a run needs
        folder.mkdir(parents=True, exist_ok=True)
        atomic_write(_bf16_file(folder), f"{bf16_speedup(folder)}\n")


def _bf16_file(folder: Path) -> Path:
    return folder / f"bf16-{hash_text(f'{cpu()}, torch {torch.__version__}', SHORT)}.txt"


def _measured_bf16_speedup(rounds: int = 10) -> float:
    a, b = torch.rand(1024, 768), torch.rand(768, 768)
    a16, b16 = a.bfloat16(), b.bfloat16()

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    # In turns: a moment in which other processes use the cores must count for both.
    both = [(seconds(lambda: a @ b), seconds(lambda: a16 @ b16)) for _ in range(rounds)]
    return min(one for one, _ in both) / min(other for _, other in both)


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Compute a forward pass in a precision: with autocast for bf16 and fp16, with TF32 only for tf32."""
    kinds = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    with matmul_in(precision), torch.autocast(device().type, kinds.get(precision), enabled=precision in kinds):
        yield


@contextmanager
def matmul_in(precision: Precision) -> Iterator[None]:
    """Allow TF32 in products of float32 matrices if that is the precision; else forbid it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> bool:
    """Set glibc's allocator to keep large buffers, which each step would otherwise request from the system again.

    Returns:
        Whether it was set: not with another allocator preloaded, or another C library.
    """
    preloaded = os.environ.get("LD_PRELOAD", "")
    if any(name in preloaded for name in ("tcmalloc", "jemalloc", "mimalloc")):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # no glibc: macOS, Windows, musl
        return False
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    return bool(mallopt(mmap_max, 0) and mallopt(trim_threshold, 2**31 - 1))


def peak_memory() -> int | None:
    """Peak memory of this process in bytes, of the GPU if it computes there; None if unknown (Windows)."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe() -> str:
    """The hardware and the number of CPU threads, for the record."""
    if device().type == "cuda":
        return hardware()
    return f"{hardware()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def hardware() -> str:
    """The name of the GPU or CPU that computes."""
    return torch.cuda.get_device_name() if device().type == "cuda" else cpu()


def instructions() -> str:
    """The instruction set that torch uses on this CPU, such as AVX2 or AVX512: the order of sums depends on it."""
    return torch.backends.cpu.get_cpu_capability()


def cpu() -> str:
    """The name of the CPU."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return platform.processor() or "CPU"  # not Linux
