"""What the machine offers: device, precision, allocator."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path

import torch

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


def best_precision(kept: Path | None = None) -> Precision:
    """The quickest precision that trains as well as float32 on this machine.

    Args:
        kept: a folder that keeps what was measured: else a busy moment could make the same run another one.
    """
    where = device().type
    if where == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return Precision.bf16
        return Precision.fp16 if torch.cuda.get_device_capability() >= (7, 0) else Precision.float32
    if where == "cpu" and bf16_speedup(kept) >= BF16_PAYS:
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
def bf16_speedup(kept: Path | None = None) -> float:
    """How many times faster than in float32 this CPU multiplies matrices in bf16; 0 without instructions for it.

    Measured, for the instructions do not tell: processors with AVX512-BF16 were seen at 2.5 and at 0.5.

    Args:
        kept: a folder in which an earlier process may have kept it, on a CPU of this name.
    """
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return 0.0
    if kept is not None:
        with suppress(OSError, ValueError):
            return float(_bf16_file(kept).read_text(encoding="utf-8"))
    return round(_measured_bf16_speedup(), 2)


def keep_bf16_speedup(folder: Path) -> None:
    """Keep the measurement, if one was made, for the next processes that share the folder."""
    if device().type != "cpu" or not bf16_speedup(folder) or _bf16_file(folder).is_file():
        return
    partial = _bf16_file(folder).with_suffix(f".tmp-{os.getpid()}")
    with suppress(OSError):  # a disk that cannot be written to is told where it matters
        folder.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{bf16_speedup(folder)}\n", encoding="utf-8")
        partial.replace(_bf16_file(folder))


def _bf16_file(folder: Path) -> Path:
    name = hashlib.sha256(f"{_cpu()}, torch {torch.__version__}".encode()).hexdigest()[:16]
    return folder / f"bf16-{name}.txt"


def _measured_bf16_speedup(rounds: int = 10) -> float:
    a, b = torch.rand(1024, 768), torch.rand(768, 768)
    a16, b16 = a.bfloat16(), b.bfloat16()

    def seconds(work: Callable[[], object]) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    # In turns: else a moment in which others use the cores would count for one of the two only.
    both = [(seconds(lambda: a @ b), seconds(lambda: a16 @ b16)) for _ in range(rounds)]
    return min(one for one, _ in both) / min(other for _, other in both)


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Around a forward pass: autocast where the precision asks for it, TF32 only where it is named."""
    kinds = {Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}
    with matmul_in(precision), torch.autocast(device().type, kinds.get(precision), enabled=precision in kinds):
        yield


@contextmanager
def matmul_in(precision: Precision) -> Iterator[None]:
    """Allow TF32 in the products of float32 matrices meanwhile, if that is the precision; else forbid it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision is Precision.tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def keep_freed_memory() -> bool:
    """Tell glibc's allocator not to return large buffers to the system, from which each step would ask them again.

    Returns:
        Whether it was told. Not where another allocator is preloaded, or another C library is used.
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
    """Bytes: the most that this process has held, on the GPU if it computes there; None where nobody says (Windows)."""
    if device().type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def describe() -> str:
    """The hardware in a few words, for the record."""
    if device().type == "cuda":
        return hardware()
    return f"{hardware()}, {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"


def hardware() -> str:
    """The name of what is computed on."""
    return torch.cuda.get_device_name() if device().type == "cuda" else _cpu()


def instructions() -> str:
    """The instructions that torch uses on this CPU, on which the order of sums depends: AVX2, AVX512 and the like."""
    return torch.backends.cpu.get_cpu_capability()


def _cpu() -> str:
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as lines:
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return platform.processor() or "CPU"  # not Linux
