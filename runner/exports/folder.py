"""An ordinary folder of transformers with smaller matrices: feed-forward channels that compute nothing are cut out."""

from __future__ import annotations

import copy
import logging
from typing import TYPE_CHECKING

from pruning import PruningError
from pruning.runtime.cut import CutReport, channels_in_use, cut, cut_evenly
from runner.exports.onnx import Run
from runner.system.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

_OTHERS = "--to onnx, openvino and packed cut each layer by itself"


def shrink(model: PreTrainedModel) -> CutReport:
    """Cut a model in place, as far as one number of channels for all layers allows.

    Raises:
        UserError: it has no channels to cut, or the architecture is not known.
    """
    try:
        used = channels_in_use(model)
        whole, heads = cut(copy.deepcopy(model)), ""
        every = whole.all_channels // max(1, len(used))
        if whole.heads or whole.idle_heads:
            dead = whole.heads + whole.idle_heads
            heads = f"; {dead} of {whole.all_heads} heads compute nothing, and config.json cannot name fewer"
        span = f"{min(used)}" if min(used) == max(used) else f"{min(used)} to {max(used)}"
        if max(used) == every:
            raise UserError(
                "--to transformers: config.json has one number of feed-forward channels for all layers, and they use "
                f"{span} of {every}{heads}: nothing can be cut. {_OTHERS}; pattern=ffn with allocation=uniform leaves "
                "as many channels in each layer"
            )
        if min(used) < max(used) or heads:
            log.info("the layers use %s of %d channels, and all get %d%s; %s", span, every, max(used), heads, _OTHERS)
        return cut_evenly(model)
    except PruningError as error:
        raise UserError(f"--to transformers: nothing can be cut out of this model ({error})") from error


def outputs_of(model: PreTrainedModel) -> Run:
    """A model as it is compared."""
    return lambda inputs: [value for value in model(**inputs).values() if value is not None]
