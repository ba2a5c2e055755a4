"""What the machine offers: device, precision, ranks."""

import os

import torch


def device() -> torch.device:
    """The one device that a process uses, as Trainer chooses it."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def world_size() -> int:
    """Number of ranks that a launcher such as torchrun started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def has_fast_bf16() -> bool:
    """Whether bfloat16 autocast pays here. Not on CPUs: depending on the machine it is faster or slower there."""
    return device().type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def describe() -> str:
    """The hardware in a few words, for the record."""
    if device().type == "cuda":
        return torch.cuda.get_device_name()
    name = "CPU"
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass  # not Linux
    return f"{name}, {torch.get_num_threads()} threads"
