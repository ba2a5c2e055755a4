"""Least squares on the columns that a group of rows keeps, in the cheaper of two forms.

With H the damped Hessian of n inputs, W0 the weights before, P the columns that a group has lost and K those that stay:

* `RestForm`, of what stays: w_K = (W0 H)_K (H_KK)^-1; some |K|^3 operations.
* `InverseForm`, of what is lost: with L L^T = [H^-1]_PP and V = L^-1 [H^-1]_PK, w_K = w0_K - (L^-1 w0_P)^T V and
  (H_KK)^-1 = [H^-1]_KK - V^T V; |P|^3 / 3 + |P|^2 |K| operations, after one inverse that all groups share.

Groups of a batch are padded to as many columns: column n is a weight of 0 that nothing depends on.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.errors import PruningError

NOT_DEFINITE = "a Hessian is not positive definite: use more damping, or more calibration samples"
_LEFT = 1e-3  # where a difference of float32 numbers is a smaller part of them, it is computed again in float64
_SLACK = 1.03  # columns of the largest group of a batch, divided by those of the smallest
_GPU_SLACK = 1.25  # there one large batch costs less than many that fit
_LARGE = 1024  # unknowns from which on a system is factorised in float32 and its solution refined in float64
_SAME = 1e-10  # the correction, divided by the largest unknown, that the refinement leaves out


def cholesky(matrix: Tensor) -> Tensor:
    """The lower factor of symmetric matrices. Raises PruningError if one is not positive definite."""
    factor, bad = torch.linalg.cholesky_ex(matrix)
    if bool(bad.any()):
        raise PruningError(NOT_DEFINITE)
    return factor


def inverse(matrix: Tensor) -> Tensor:
    """The inverse of a positive definite matrix."""
    return torch.cholesky_inverse(cholesky(matrix))


class RestForm:
    """The form of what stays.

    Args:
        h: float64 [n, n].
        original: float64 [groups, rows, n + 1].
        cols: of a block.
    """

    def __init__(self, h: Tensor, original: Tensor, cols: int) -> None:
        self.h, self.cols = F.pad(h, (0, 1, 0, 1)), cols
        self.target = original @ self.h
        self.rough: Tensor | None = None

    def weights(self, part: Tensor, gone: Tensor, stays: Tensor, dtype: torch.dtype) -> Tensor:
        """float64 [part, rows, k]: the weights of some groups, as `solution`.

        Args:
            part: [part], numbers of groups.
            gone: [part, p], their columns P, padded with n.
            stays: [part, k], their columns K, padded with n.
            dtype: in which large systems are factorised first.
        """
        return solution(self.h, self._in(dtype), stays, columns(self.target[part], stays))

    def ranked(self, part: Tensor, gone: Tensor, stays: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """float64 weights, as `weights`, and float64 [part, k // cols, cols, cols]: the blocks of (H_KK)^-1."""
        factor, bad = torch.linalg.cholesky_ex(_square(self._in(dtype), stays))
        if bool(bad.any()):
            factor = cholesky(_square(self.h, stays)).to(dtype)
        right = columns(self.target[part], stays).to(dtype).transpose(1, 2)
        found = torch.cholesky_solve(right, factor).transpose(1, 2).double()
        return found, diagonal_blocks(torch.cholesky_inverse(factor), self.cols)

    def _in(self, dtype: torch.dtype) -> Tensor:
        if self.rough is None or self.rough.dtype is not dtype:
            self.rough = self.h.to(dtype)
        return self.rough


class InverseForm:
    """The form of what is lost; see `RestForm`."""

    def __init__(self, h: Tensor, original: Tensor, cols: int) -> None:
        self.inverse, self.original, self.cols = F.pad(inverse(h), (0, 1, 0, 1)), original, cols
        self.rough: Tensor | None = None
        self.blocks = diagonal_blocks(self.inverse[None, :-1, :-1], cols)

    def weights(self, part: Tensor, gone: Tensor, stays: Tensor, dtype: torch.dtype) -> Tensor:
        """See `RestForm.weights`."""
        old = self.original[part]
        moved = solution(self.inverse, self._in(dtype), gone, columns(old, gone))
        return columns(old - _spread(moved, gone, len(self.inverse)) @ self.inverse, stays)

    def ranked(self, part: Tensor, gone: Tensor, stays: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """See `RestForm.ranked`; blocks are those of all groups, [1, ...], if nothing is lost."""
        old = self.original[part]
        if not gone.shape[1]:
            return columns(old, stays), self.blocks
        inv = self._in(dtype)
        factor, bad = torch.linalg.cholesky_ex(_square(inv, gone))
        right = torch.cat([inv[gone[:, :, None], stays[:, None]], columns(old, gone).transpose(1, 2).to(dtype)], 2)
        v, u = torch.linalg.solve_triangular(factor, right, upper=False).split([stays.shape[1], old.shape[1]], 2)
        units = stays[:, : stays.shape[1] // self.cols * self.cols : self.cols] // self.cols
        last = self.blocks.shape[1] - 1
        whole = self.blocks[0, units.clamp(max=last)]
        blocks = whole - _own_products(v, self.cols).double()
        left = blocks.diagonal(dim1=2, dim2=3) / whole.diagonal(dim1=2, dim2=3)
        if dtype is torch.float32 and (bool(bad.any()) or not bool((left[units <= last] > _LEFT).all())):
            return self.ranked(part, gone, stays, torch.float64)
        if bool(bad.any()):
            raise PruningError(NOT_DEFINITE)
        return columns(old, stays) - (u.transpose(1, 2) @ v).double(), blocks

    def _in(self, dtype: torch.dtype) -> Tensor:
        if dtype is torch.float64:
            return self.inverse
        if self.rough is None:
            self.rough = self.inverse.to(dtype)
        return self.rough


def batches(alive: Tensor, groups: Tensor, room: int, inverse_form: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Groups with nearly as many columns, few enough to be solved together: their numbers, P and K, both padded.

    Args:
        alive: bool [groups, n].
        groups: numbers of the groups to solve.
        room: how many numbers all matrices of a batch may have.
        inverse_form: a group has a matrix of |P| by n, else of |K| by |K|.
    """
    n = alive.shape[1]
    slack = _SLACK if alive.device.type == "cpu" else _GPU_SLACK
    counts, order = alive.sum(1)[groups].sort(stable=True, descending=True)
    groups, sizes = groups[order], counts.tolist()
    begin = 0
    while begin < len(sizes):
        k = sizes[begin]  # the most of the batch
        least = n if k == n else k / slack
        each = max(n, (n - least) * n if inverse_form else k * k)
        end = begin + 1
        while end < len(sizes) and sizes[end] >= least and (end - begin + 1) * each <= room:
            end += 1
        part = groups[begin:end]
        yield part, _places(~alive[part]), _places(alive[part])
        begin = end


def solution(matrix: Tensor, rough: Tensor, places: Tensor, right: Tensor) -> Tensor:
    """x of x M_PP = right for each group, to a relative error of 1e-10. Large systems take less time by a factor of
    float32 and iterative refinement (Higham 2002, Accuracy and Stability of Numerical Algorithms, chapter 12).

    Args:
        matrix: float64 [n + 1, n + 1], M padded with zeros.
        rough: the same in float32, or the same.
        places: [groups, p], the columns P of each group, padded with n.
        right: float64 [groups, rows, p].

    Returns:
        float64 [groups, rows, p].
    """
    if places.shape[1] > _LARGE and rough.dtype is not matrix.dtype:
        refined = _refined(matrix, rough, places, right)
        if refined is not None:
            return refined
    return _solve(right, cholesky(_square(matrix, places)))


def _refined(matrix: Tensor, rough: Tensor, places: Tensor, right: Tensor) -> Tensor | None:
    """See `solution`; None if the matrix is too close to singular for float32."""
    factor, bad = torch.linalg.cholesky_ex(_square(rough, places))
    if bool(bad.any()):
        return None
    found, last = _solve(right.to(rough.dtype), factor).double(), 1.0
    while True:
        left = right - columns(_spread(found, places, len(matrix)) @ matrix, places)
        step = _solve(left.to(rough.dtype), factor).double()
        found += step
        change = float((step.abs().amax(2) / found.abs().amax(2).clamp(min=torch.finfo(found.dtype).tiny)).max())
        if change * change / last <= _SAME:  # the next correction, as they shrink alike
            return found
        if not change < last / 2:
            return None
        last = change


def _solve(right: Tensor, factor: Tensor) -> Tensor:
    """[groups, rows, p]: `right` times the inverse of the matrices with these lower factors."""
    return torch.cholesky_solve(right.transpose(1, 2), factor).transpose(1, 2)


def _spread(values: Tensor, places: Tensor, size: int) -> Tensor:
    """[groups, rows, k] -> [groups, rows, size], 0 elsewhere."""
    whole = values.new_zeros(*values.shape[:2], size)
    return whole.scatter_(2, _each_row(places, values), values)


def columns(values: Tensor, places: Tensor) -> Tensor:
    """[groups, rows, n + 1] and [groups, k] -> [groups, rows, k]."""
    return values.gather(2, _each_row(places, values))


def diagonal_blocks(square: Tensor, cols: int) -> Tensor:
    """[groups, k, k] -> float64 [groups, k // cols, cols, cols]."""
    count = square.shape[1] // cols
    square = square[:, : count * cols, : count * cols].unflatten(1, (count, cols)).unflatten(3, (count, cols))
    return square.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2).double()


def _own_products(v: Tensor, cols: int) -> Tensor:
    """[groups, p, k] -> [groups, k // cols, cols, cols]: the diagonal blocks of V^T V."""
    if cols == 1:
        return v.square().sum(1)[:, :, None, None]
    count = v.shape[2] // cols
    units = v[:, :, : count * cols].unflatten(2, (count, cols)).transpose(1, 2)  # [groups, units, p, cols]
    return units.transpose(2, 3) @ units


def _places(chosen: Tensor) -> Tensor:
    """bool [groups, n] -> [groups, most]: where it is true, in order, then n."""
    n = chosen.shape[1]
    numbers = torch.arange(n, device=chosen.device).expand(chosen.shape).masked_fill(~chosen, n)
    return numbers.sort(1).values[:, : int(chosen.sum(1).max())]


def _each_row(places: Tensor, values: Tensor) -> Tensor:
    return places[:, None].expand(-1, values.shape[1], -1)


def _square(matrix: Tensor, places: Tensor) -> Tensor:
    """[groups, k, k]: rows and columns of a padded matrix, with 1 on the diagonal of the padding."""
    square = matrix[places[:, :, None], places[:, None]]
    square.diagonal(dim1=1, dim2=2).add_((places == len(matrix) - 1).to(square.dtype))
    return square
