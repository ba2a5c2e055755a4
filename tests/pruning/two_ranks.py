"""Two processes that compute together over loopback, as under torchrun."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch


def on_two_ranks(work: Callable[[int], Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What a function of a module, which both processes import, returns on each rank; torch.save has to take it."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.multiprocessing.spawn(_on_one_rank, (work, folder), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def _on_one_rank(rank: int, work: Callable[[int], Any], folder: Path) -> None:
    from torch import distributed

    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(work(rank), folder / f"{rank}.pt")
    distributed.destroy_process_group()
