"""What runs a model, in words and numbers."""

from __future__ import annotations

from dataclasses import dataclass

from pruning.runtime.cut import CutReport


@dataclass(frozen=True)
class Report:
    """What runs a model."""

    runtime: str
    """"sparse": the whole encoder; "sparse linears": single layers, the rest in torch; "dense torch"."""
    reason: str = ""
    """Why the encoder is not sparse as a whole; empty if it is."""
    precision: str = "float32"
    """Precision of the products: float32, bfloat16, int8 or "mixed"."""
    instructions: str = ""
    """Instruction set of the kernels."""
    compiler: str = ""
    density: float = 1.0
    """Share of 4x1 blocks that are not zero, in the encoder or in the sparse linear layers."""
    packed_bytes: int = 0
    """Memory of the packed weights."""
    dense_bytes: int = 0
    """Memory that these weights had in torch, which is freed."""
    difference: float | None = None
    """Difference from torch in the self-check (`Sample.difference`); None: it was not made."""
    cut: CutReport | None = None
    """Dead heads and channels that were cut, of "sparse"."""
    swapped: int = 0
    """Linear layers that are sparse, of "sparse linears"."""
    dense: int = 0
    """Linear layers that are dense, of "sparse linears"."""

    def __str__(self) -> str:
        if self.runtime == "dense torch":
            return f"{self.runtime} ({self.reason})"
        layers = f" in {self.swapped} layers, {self.dense} are dense" if self.swapped else ""
        return (
            f"{self.runtime} {self.precision} ({self.instructions}; {self.compiler}): {self.density:.1%} of the 4x1 "
            f"blocks{layers}, {self.packed_bytes / 2**20:.1f} MiB of weights instead of {self.dense_bytes / 2**20:.1f}"
            + (f"; cut: {self.cut}" if self.cut and (self.cut.channels or self.cut.heads) else "")
            + ("" if self.difference is None else f"; differs from torch by {self.difference:.1e} in its self-check")
            + (f"; {self.reason}" if self.reason else "")
        )
