"""The machine on which times are measured: its CPU, the versions of the runtimes, and what else it does."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch

from runner.system.device import cpu

RUNTIMES = ("torch", "onnxruntime", "openvino", "nncf")
"""Packages that run or quantise the model."""
FEATURES = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_tile": "AMX",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX BF16",
}
"""Capabilities as torch names them, and their common names: those on which the speed of these models depends."""


@dataclass(frozen=True)
class Machine:
    """The machine on which times were measured."""

    cpu: str
    """Name of the CPU."""
    features: list[str]
    """Instructions that matter here, by their common names."""
    versions: dict[str, str]
    """Versions of the runtimes that are installed."""
    load: float | None
    """Processes that ran or waited in the last minute, on average, when the measurement began; None: unknown."""
    cores: int
    """CPU cores that this process may use."""
    memory_bytes: int | None
    """Memory of the machine; None: unknown."""
    gpu: str | None = None
    """Name, compute capability and memory of the GPU; None: the times are of the CPU."""

    def __str__(self) -> str:
        load = "" if self.load is None else f", load {self.load:.1f}"
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.0f} GiB of memory"
        gpu = "" if self.gpu is None else f"{self.gpu}\n"
        return (
            f"{gpu}{self.cpu} ({', '.join(self.features) or 'no AVX2'}), {self.cores} cores{load}{memory}\n"
            f"{', '.join(f'{name} {number}' for name, number in self.versions.items())}"
        )


def machine(*, gpu: bool = False) -> Machine:
    """This machine now.

    Args:
        gpu: whether its GPU is what is timed.
    """
    has = torch.cpu.get_capabilities()
    features = [name for key, name in FEATURES.items() if has.get(key)]
    if has.get("architecture") == "aarch64":
        features.insert(0, "NEON")
    versions, memory, load = {}, None, None
    for name in RUNTIMES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    with suppress(OSError, AttributeError):  # not on Windows
        load = os.getloadavg()[0]
    with suppress(OSError, ValueError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(cpu(), features, versions, load, available_cores(), memory, gpu_name() if gpu else None)


def gpu_name() -> str:
    """The GPU that torch uses: name, compute capability, memory."""
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return f"{about.name} (compute capability {about.major}.{about.minor}, {about.total_memory / 2**30:.0f} GiB)"


def available_cores() -> int:
    """CPU cores that this process may use."""
    with suppress(AttributeError):  # not Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
