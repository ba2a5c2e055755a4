"""Masks: which weights are pruned, and the one place that sets weights, gradients and moments to zero."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from pruning.errors import PruningError
from pruning.patterns import Pattern
from pruning.plan import Plan, as_matrix, from_matrix, matrix_shape

KEEPS_ZEROS = (SGD, Adam, AdamW, NAdam, RAdam, RMSprop)
"""A step of these leaves a weight of +0.0 whose gradient and moments are 0 as it is, and its moments too. Any other
optimizer may mix neighbours or add noise, so that weights and moments have to be set to zero again after each step."""
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks:
    """The masks of parameters, by name: pooled, bool, True = not pruned. Parameters without a mask are dense.

    Args:
        parameters: by name, all that may get a mask.
        patterns: the pattern of each.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], patterns: Mapping[str, Pattern]) -> None:
        self._parameters, self._patterns = parameters, patterns
        self._masks: dict[str, Tensor] = {}
        self._bits: dict[str, Tensor] = {}  # the masks as 0 and -1

    def get(self, name: str) -> Tensor | None:
        """The mask of a parameter, None if it has none."""
        return self._masks.get(name)

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and masks."""
        return list(self._masks.items())

    def set(self, name: str, mask: Tensor) -> None:
        """Give a parameter a mask. `enforce` applies it."""
        self._masks[name], self._bits[name] = mask, mask.to(torch.int8).neg_()

    def replace(self, masks: Mapping[str, Tensor]) -> None:
        """Forget all masks and take these."""
        self._masks, self._bits = {}, {}
        for name, mask in masks.items():
            self.set(name, mask)

    def lock(self, plan: Plan) -> None:
        """Make masks of the zeros that weights with a locked pattern have, unless they have masks.

        Raises:
            PruningError: there is no zero at all.
        """
        masks: dict[str, Tensor] = {}
        for name in (name for group in plan.groups if group.pattern.locks for name in group.shapes):
            mask = self.get(name)
            masks[name] = as_matrix(plan.parameters[name].detach()) != 0 if mask is None else mask
        if masks and all(bool(mask.all()) for mask in masks.values()):
            raise PruningError(
                f"Locked(): none of the {len(masks)} weights has a zero to keep (such as {next(iter(masks))}); "
                "start from a sparse checkpoint"
            )
        for name, mask in masks.items():
            self.set(name, mask)

    def shape(self, name: str) -> torch.Size:
        """The shape of the mask of a parameter, and of its scores."""
        matrix = torch.empty(matrix_shape(self._parameters[name].shape), device="meta")
        return self._patterns[name].pool(matrix).shape

    def pruned_units(self, name: str) -> int:
        """Number of units that the mask of a parameter prunes; for a locked pattern, number of zeros."""
        pattern, mask = self._patterns[name], self._masks[name]
        shape = matrix_shape(self._parameters[name].shape)
        entries = mask.numel() * pattern.unit_size(shape) // shape.numel()  # of the mask, in a unit
        zeros = mask.numel() - int(mask.count_nonzero())
        return zeros // (1 if pattern.locks else round(pattern.max_sparsity * entries))

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Zero pruned weights, in case the training loop has written to them, and their gradients."""
        for name, p in self._parameters.items():
            if name in self._bits:
                self._zero(name, p)
                if p.grad is not None:
                    self._zero(name, p.grad)

    @torch.no_grad()
    def enforce(self, optimizer: Optimizer | None) -> None:
        """Zero pruned weights and the optimizer's moments of them, which would keep pushing."""
        for name, p in self._parameters.items():
            if name not in self._bits:
                continue
            self._zero(name, p)
            state = {} if optimizer is None else optimizer.state.get(p, {})
            for moment in state.values():
                if isinstance(moment, Tensor) and moment.shape == p.shape and moment.is_floating_point():
                    self._zero(name, moment)

    def _zero(self, name: str, tensor: Tensor) -> None:
        """Set the pruned entries of a tensor shaped like the weight to +0.0.

        A bitwise AND with 0 or -1: unlike a multiplication it leaves neither -0.0 nor NaN, a mask of one number per
        block is enough, and it is several times faster than `masked_fill_`.
        """
        data = tensor.detach()
        matrix = as_matrix(data).contiguous()
        integers = matrix.view(_INTEGER_OF_SIZE[matrix.element_size()])
        view, bits = self._patterns[name].tile(integers, self._bits[name])
        view.bitwise_and_(bits)
        if matrix.data_ptr() != data.data_ptr():  # a copy
            data.copy_(from_matrix(matrix, data.shape))
