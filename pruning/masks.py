"""Masks: which weights are pruned, and the one place that sets weights, gradients and moments to zero."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RAdam, RMSprop

from pruning.coupled import CoupledWeights, Part, Weight, parts_of
from pruning.matrices import as_matrix, from_matrix, matrix_shape
from pruning.patterns import Pattern

KEEPS_ZEROS = (SGD, Adam, AdamW, NAdam, RAdam, RMSprop)
"""A step of these leaves a weight of +0.0 whose gradient and moments are 0 as it is, and its moments too. Any other
optimizer may mix neighbours or add noise, so that weights and moments have to be set to zero again after each step."""
_INTEGER_OF_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks:
    """The masks of parameters, by name: pooled, bool, True = not pruned. Parameters without a mask are dense.

    Args:
        parameters: by name, all that may get a mask.
        patterns: the pattern of each.
        keeps_zeros: whether weights may have had zeros before, so that a unit may have more than its pattern asks for.
    """

    def __init__(
        self, parameters: Mapping[str, Weight], patterns: Mapping[str, Pattern], keeps_zeros: bool = False
    ) -> None:
        self._parameters, self._patterns, self._keeps_zeros = parameters, patterns, keeps_zeros
        self._masks: dict[str, Tensor] = {}
        self._bits: dict[str, Tensor] = {}  # the masks as 0 and -1
        self.single: dict[str, Tensor] = {}
        """bool [out, in] by name, True = not zero: of weights with zeros in units that are not pruned."""

    def get(self, name: str) -> Tensor | None:
        """The mask of a parameter, None if it has none."""
        return self._masks.get(name)

    def items(self) -> list[tuple[str, Tensor]]:
        """Names and masks."""
        return list(self._masks.items())

    def set(self, name: str, mask: Tensor) -> None:
        """Give a parameter a mask. `enforce` applies it."""
        if self._keeps_zeros and name in self._masks:
            mask = mask & self._masks[name]  # N:M chooses as many of a group as it has to prune; some have more zeros
        self._masks[name], self._bits[name] = mask, mask.to(torch.int8).neg_()
        if name in self.single:
            self.set_single(name, self.single[name])

    def set_single(self, name: str, alive: Tensor) -> None:
        """Hold single weights at zero that the mask of a parameter, which exists, does not.

        Args:
            alive: bool [out, in], True = not zero.
        """
        self.single.pop(name, None)
        if bool((self._whole(name) & ~alive).any()):
            self.single[name] = alive

    def _whole(self, name: str) -> Tensor:
        """The mask of a parameter as bool [out, in]."""
        return self._patterns[name].expand(self._masks[name], matrix_shape(self._parameters[name].shape))

    def broken(self, name: str) -> Tensor | None:
        """bool [units]: units of a block pattern that are not pruned and have a zero; None if there is none. A coupled
        unit with some zeros breaks nothing."""
        if name not in self.single or isinstance(self._parameters[name], CoupledWeights):
            return None
        return ((self._patterns[name].pool(self.single[name].float(), torch.amin) == 0) & self._masks[name]).flatten()

    def zeros(self, name: str) -> int:
        """Number of weights that are held at zero."""
        return sum(self.zeros_of_parts(name).values())

    def zeros_of_parts(self, name: str) -> dict[str, int]:
        """Number of weights that are held at zero, by name of each parameter behind a weight."""
        mask, weight = self._masks[name], self._parameters[name]
        if name not in self.single and (mask.dim() == 1 or not isinstance(weight, CoupledWeights)):
            pruned = mask.numel() - int(mask.count_nonzero())
            return {part: pruned * (p.numel() // mask.numel()) for part, p in parts_of(name, weight)}
        whole = self._whole(name)
        dead = (whole & self.single.get(name, whole)).logical_not_()
        if isinstance(weight, CoupledWeights):
            return {part: int(dead[:, columns].count_nonzero()) for part, columns in weight.columns.items()}
        return {name: int(dead.count_nonzero())}

    def replace(self, masks: Mapping[str, Tensor], single: Mapping[str, Tensor]) -> None:
        """Forget all masks and take these.

        Args:
            single: see `Masks.single`.
        """
        self._masks, self._bits, self.single = {}, {}, {}
        for name, mask in masks.items():
            self.set(name, mask)
        for name, alive in single.items():
            self.set_single(name, alive)

    def shape(self, name: str) -> torch.Size:
        """The shape of the mask of a parameter, and of its scores."""
        matrix = torch.empty(matrix_shape(self._parameters[name].shape), device="meta")
        return self._patterns[name].pool(matrix).shape

    def pruned_units(self, name: str) -> int:
        """Number of units that the mask of a parameter prunes; for a locked pattern, number of zeros."""
        pattern, mask = self._patterns[name], self._masks[name]
        if self._keeps_zeros:
            return int(pattern.pruned(mask).count_nonzero())
        shape = matrix_shape(self._parameters[name].shape)
        entries = mask.numel() * pattern.unit_size(shape) // shape.numel()  # of the mask, in a unit
        zeros = mask.numel() - int(mask.count_nonzero())
        return zeros // (1 if pattern.locks else round(pattern.max_sparsity * entries))

    @torch.no_grad()
    def clear_gradients(self) -> None:
        """Zero pruned weights, in case the training loop has written to them, and their gradients."""
        for name, part, p in self._masked():
            self._zero(name, part, p)
            if p.grad is not None:
                self._zero(name, part, p.grad)

    @torch.no_grad()
    def enforce(self, optimizer: Optimizer | None) -> None:
        """Zero pruned weights and the optimizer's moments of them, which would keep pushing.

        Moments that have no number for each weight stay: those that Adafactor has of rows and columns, and those that
        are stored as codes with a scale for each block, such as AdamW's in 8 bits. They decay, as the gradients of
        pruned weights are 0.
        """
        for name, part, p in self._masked():
            self._zero(name, part, p)
            state = {} if optimizer is None else optimizer.state.get(p, {})
            for moment in state.values():
                for single in _like(moment, p):
                    self._zero(name, part, single)

    def _masked(self) -> Iterator[tuple[str, Part | None, nn.Parameter]]:
        """The parameters of weights that have a mask, each with the weight's name; with the part that it is of coupled
        weights."""
        for name, weight in self._parameters.items():
            if name not in self._bits:
                continue
            if isinstance(weight, CoupledWeights):
                yield from ((name, part, part.parameter) for part in weight.parts)
            else:
                yield name, None, weight

    def _zero(self, name: str, part: Part | None, tensor: Tensor) -> None:
        """Set the pruned entries of a tensor shaped like a parameter to +0.0.

        A bitwise AND with 0 or -1: unlike a multiplication it leaves neither -0.0 nor NaN, a mask of one number per
        block is enough, and it is several times faster than `masked_fill_`.
        """
        data = tensor.detach()
        if part is not None:
            self._zero_part(name, part, data.view(_INTEGER_OF_SIZE[data.element_size()]))
            return
        matrix = as_matrix(data).contiguous()
        integers = matrix.view(_INTEGER_OF_SIZE[matrix.element_size()])
        view, bits = self._patterns[name].tile(integers, self._bits[name])
        view.bitwise_and_(bits)
        if name in self.single:
            integers.masked_fill_(~self.single[name], 0)
        if matrix.data_ptr() != data.data_ptr():  # a copy
            data.copy_(from_matrix(matrix, data.shape))

    def _zero_part(self, name: str, part: Part, integers: Tensor) -> None:
        """Set the pruned entries of a part's tensor, seen as integers, to 0."""
        view, weight, bits = part.view(integers), self._parameters[name], self._bits[name]
        assert isinstance(weight, CoupledWeights)
        columns = weight.columns[part.name]
        shape = view.shape if bits.dim() > 1 else (-1, *(view.dim() - 1) * [1])  # a bit for each weight, or each unit
        view.bitwise_and_((bits[:, columns] if bits.dim() > 1 else bits).reshape(shape))
        if name in self.single:
            view.masked_fill_(~self.single[name][:, columns].reshape(view.shape), 0)


def _like(moment: object, p: nn.Parameter) -> Iterable[Tensor]:
    """The numbers of an optimizer's state that belong to single weights, in the shape of a parameter; AdEMAMix has two
    moments in one tensor."""
    if not isinstance(moment, Tensor) or not moment.is_floating_point():
        return ()
    if moment.shape == p.shape:
        return (moment,)
    return moment.unbind(0) if moment.shape[1:] == p.shape else ()
