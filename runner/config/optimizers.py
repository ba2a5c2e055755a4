"""Optimizers by transformers' names: those that update each weight by itself in `step`, so that zeros can be held."""

from enum import Enum
from importlib.util import find_spec

from runner.system.errors import UserError


class Optimizer(Enum):
    """Names of `optim` in transformers' TrainingArguments.

    Left out are those whose updates no pruner can follow (lomo, adalomo and the layerwise ones update in the backward
    pass), that train a projection of the weights (galore, apollo), or that score with other weights than they train
    (schedule_free).
    """

    adamw_torch_fused = "adamw_torch_fused"
    adamw_torch = "adamw_torch"
    adafactor = "adafactor"
    sgd = "sgd"
    adagrad = "adagrad"
    rmsprop = "rmsprop"
    stable_adamw = "stable_adamw"
    adamw_bnb_8bit = "adamw_bnb_8bit"
    lion_32bit = "lion_32bit"
    lion_8bit = "lion_8bit"
    ademamix = "ademamix"
    ademamix_8bit = "ademamix_8bit"

    @property
    def has_second_moment(self) -> bool:
        """Whether it has the second moment of Adam, one number for each weight, which criterion=fisher reads."""
        return self in (Optimizer.adamw_torch_fused, Optimizer.adamw_torch)

    @property
    def state_bytes(self) -> int:
        """Bytes of state for each trained parameter. What a row, a column or a block shares is not counted."""
        return _STATE_BYTES[self]

    @property
    def copies(self) -> int:
        """Copies of the trained weights that a step on a GPU makes for a moment: torch's optimizers that are not fused
        compute with all weights at once."""
        return self in (Optimizer.adamw_torch, Optimizer.sgd, Optimizer.adagrad, Optimizer.rmsprop)

    def check_installed(self) -> None:
        """Raise UserError if the library of this optimizer is not installed."""
        module, package = _LIBRARIES.get(self, (None, None))
        if module is not None and find_spec(module) is None:
            others = ", ".join(o.value for o in Optimizer if o not in _LIBRARIES)
            raise UserError(
                f"optimizer={self.value} in train or finetune needs a library that is not installed: "
                f".venv/bin/pip install {package}; or choose {others}"
            )


_BITSANDBYTES = ("bitsandbytes", "bitsandbytes")
_LIBRARIES: dict[Optimizer, tuple[str, str]] = {
    Optimizer.stable_adamw: ("optimi", "torch-optimi"),
    Optimizer.adamw_bnb_8bit: _BITSANDBYTES,
    Optimizer.lion_32bit: _BITSANDBYTES,
    Optimizer.lion_8bit: _BITSANDBYTES,
    Optimizer.ademamix: _BITSANDBYTES,
    Optimizer.ademamix_8bit: _BITSANDBYTES,
}
"""The module and the package of optimizers that torch and transformers do not have."""
_STATE_BYTES = {
    Optimizer.adamw_torch_fused: 8,
    Optimizer.adamw_torch: 8,
    Optimizer.adafactor: 0,
    Optimizer.sgd: 0,
    Optimizer.adagrad: 4,
    Optimizer.rmsprop: 4,
    Optimizer.stable_adamw: 8,
    Optimizer.adamw_bnb_8bit: 2,
    Optimizer.lion_32bit: 4,
    Optimizer.lion_8bit: 1,
    Optimizer.ademamix: 12,
    Optimizer.ademamix_8bit: 3,
}
