"""The compiled encoder: encoder.c is compiled on first use for this CPU, into the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock

SOURCES = Path(__file__).with_name("encoder.c"), Path(__file__).with_name("vectors.h")
"""What is compiled, and what it includes."""

_AVX512 = ("avx512_f", "avx512_bw", "avx512_vl", "avx512_dq")
INSTRUCTION_SETS = {
    "avx512_bf16": (*_AVX512, "avx512_vnni", "avx512_bf16"),
    "avx512_vnni": (*_AVX512, "avx512_vnni"),
    "avx512": _AVX512,
    "avx2": ("avx2", "fma3"),
    "neon": (),
}
"""Instruction set -> the CPU's features that it needs; the best first."""
_FLAGS = {"fma3": "-mfma", "avx512_f": "-mavx512f"}
_BASE = ("-std=gnu11", "-O3", "-fno-strict-aliasing", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


class Unavailable(Exception):
    """The sparse runtime cannot run here; its text is the reason."""


@dataclass(frozen=True)
class Library:
    """encoder.c as a shared library."""

    code: ctypes.CDLL
    instructions: str
    """The instruction set, a key of INSTRUCTION_SETS."""
    compiler: str
    """The compiler's first line of `--version`."""

    def __str__(self) -> str:
        return f"{self.instructions}, {self.compiler}"


def supported() -> list[str]:
    """Instruction sets that this CPU has, the best first."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return ["neon"]
    has = torch.cpu.get_capabilities()
    return [name for name, needs in INSTRUCTION_SETS.items() if needs and all(has.get(need) for need in needs)]


def precisions(instructions: str) -> tuple[str, ...]:
    """Precisions of a matrix product that an instruction set has, the default first."""
    if instructions == "avx512_bf16":
        return ("bfloat16", "int8", "float32")
    return ("float32", "int8") if instructions == "avx512_vnni" else ("float32",)


@cache
def library(instructions: str | None = None) -> Library:
    """Compile encoder.c, unless the cache has it, and load it.

    Args:
        instructions: a key of INSTRUCTION_SETS; None: the best that this CPU and a compiler have.

    Raises:
        Unavailable: the CPU lacks the instructions, or no compiler is found or works.
    """
    available = supported()
    if instructions is not None and instructions not in available:
        raise Unavailable(
            f"this CPU has no {instructions}; it has {', '.join(available) or 'none of the supported ones'}"
        )
    if not available:
        raise Unavailable(f"no kernels for this CPU ({platform.machine()}): they need AVX2 or NEON")
    failures = []
    for name in [instructions] if instructions else available:
        for command in compilers():
            try:
                return _compiled(name, tuple(command))
            except subprocess.CalledProcessError as error:
                lines = error.stderr.strip().splitlines()
                failures.append(f"{' '.join(command)}: {lines[0] if lines else f'exit status {error.returncode}'}")
            except OSError as error:
                failures.append(f"{' '.join(command)}: {error}")
    if failures:
        raise Unavailable(f"no compiler works: {'; '.join(failures)}")
    raise Unavailable("no C compiler was found (CC, cc, gcc, clang); pip install 'prune-distill[fast]' brings one")


def compilers() -> list[list[str]]:
    """Commands of the C compilers that are installed, in the order in which they are tried."""
    given = shlex.split(os.environ.get("CC", ""))
    commands = [given, ["cc"], ["gcc"], ["clang"]]
    commands = [command for command in commands if command and shutil.which(command[0])]
    if importlib.util.find_spec("ziglang") is not None:
        commands.append([sys.executable, "-m", "ziglang", "cc"])
    return commands


def cache_folder() -> Path:
    """The folder of compiled libraries: `$XDG_CACHE_HOME/prune-distill`, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prune-distill" / "runtime"


def _compiled(instructions: str, command: tuple[str, ...]) -> Library:
    """Compile with one compiler, unless the cache has it; safe for many processes at once."""
    version = _run(*command, "--version").splitlines()[0]
    flags = [_FLAGS.get(need, f"-m{need.replace('_', '')}") for need in INSTRUCTION_SETS[instructions]]
    made_of = [
        *(source.read_text(encoding="utf-8") for source in SOURCES),
        version,
        platform.machine(),
        *command,
        *_BASE,
        *flags,
    ]
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid():
        raise Unavailable(f"{folder} belongs to another user: code in it is not run")
    key = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:32]
    place = folder / f"{key}.so"
    with FileLock(folder / "lock"):
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                made = Path(temporary) / place.name
                _run(*command, *_BASE, *flags, "-o", str(made), str(SOURCES[0]), "-lm")
                made.replace(place)
    code = ctypes.CDLL(str(place))
    code.encode.restype = ctypes.c_int64
    return Library(code, instructions, version)


def _run(*command: str) -> str:
    """Standard output of a command. Raises CalledProcessError if it fails."""
    return subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL).stdout
