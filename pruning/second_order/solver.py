"""One layer of layer-wise OBS: the cost of each unit, and least squares for the weights that stay.

With H the damped Hessian of the inputs, W0 the weights before (the bias is their last column, and stays) and K the
columns that a row still has:

* costs (Hassibi and Stork 1993; blocks: Frantar and Alistarh 2022, Kurtic et al. 2022): the columns C of the rows S
  cost sum over r in S of f_r w_rC ([(H_KK)^-1]_CC)^-1 w_rC^T, the rise of the expected loss when all else in K adapts;
* survivors: w_K = (W0 H)_K (H_KK)^-1, the exact minimum of ||(w - w0) X||^2 + damping on K.

`forms` has the linear algebra of both.
"""

from itertools import combinations
from math import comb

import torch
from torch import Tensor
from torch.nn import functional as F

from pruning.second_order.forms import InverseForm, RestForm, batches, cholesky, inverse

CHUNK = 64 << 20  # bytes of the matrices that are factorised together
_CPU_CHUNK = 8 << 20  # on a CPU, whose caches hold little more
_EXACT = 512  # beyond so many inputs, intermediate rounds are ranked in float32; the last solution never is
_MANY = 0.57  # of a group's columns: where as many stay, costs come from the inverse of the whole Hessian
_SETS = 128  # sets of losers per group that are compared; beyond, single weights are


def damped(hessian: Tensor, damping: float) -> Tensor:
    """float64, with `damping` times the inputs' mean square on the diagonal; an input that is always 0 counts as 1."""
    h = hessian.double().clone()
    diagonal = h.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = 1.0
    diagonal += damping * mean
    return h


class LayerSolver:
    """The weights of one layer while it is pruned.

    Args:
        weights: [out, in], or [out, in + 1] with a bias that is refitted as the last column.
        hessian: [in + 1, in + 1], see `Statistics`.
        fisher: [out] factors of the rows' costs; None: 1.
        damping: see `damped`.
        block: its rows, which share their mask, and its columns.
        alive: bool [out / rows, in], False where weights are pruned already.
    """

    def __init__(
        self,
        weights: Tensor,
        hessian: Tensor,
        fisher: Tensor | None,
        damping: float,
        block: tuple[int, int],
        alive: Tensor,
    ) -> None:
        self.inputs = alive.shape[1]
        self.original = weights
        size = weights.shape[1]
        self.hessian = hessian[:size, :size]  # float32, shared: one is damped at a time
        self.fisher, self.damping, (self.rows, self.cols) = fisher, damping, block
        self.weights = self.original
        self.alive = alive

    def solve(self, costs: bool = False) -> Tensor:
        """Solve for the survivors of each group of rows.

        Args:
            costs: also compute what each unit costs next; intermediate solutions of wide layers are float32 then.

        Returns:
            float64 [out / rows, in / cols]; +inf for units that are pruned, or everywhere without `costs`.
        """
        h = damped(self.hessian, self.damping)
        groups, size = len(self.alive), len(h)
        alive = torch.cat([self.alive, self.alive.new_ones(groups, size - self.inputs)], 1)
        original = F.pad(self.original.double(), (0, 1)).view(groups, self.rows, size + 1)
        solved = torch.zeros_like(original)
        out = torch.full((groups, self.inputs // self.cols + 1), torch.inf, dtype=torch.float64, device=h.device)
        dtype = torch.float32 if costs and size > _EXACT else torch.float64
        rough = torch.promote_types(self.original.dtype, torch.float32)
        few = alive.sum(1) >= (_MANY if costs else 0.5) * size
        for form, which in ((InverseForm, few), (RestForm, ~few)):
            if not bool(which.any()):
                continue
            method = form(h, original, self.cols)
            room = (CHUNK if h.is_cuda else min(CHUNK, _CPU_CHUNK)) // dtype.itemsize
            chosen = torch.nonzero(which)[:, 0]
            for part, gone, stays in batches(alive, chosen, room, form is InverseForm):
                if costs:
                    found, blocks = method.ranked(part, gone, stays, dtype)
                    out[part] = self._costs(out[part], found, blocks, part, stays)
                else:
                    found = method.weights(part, gone, stays, rough)
                solved[part] = solved[part].scatter(2, stays[:, None].expand(found.shape), found)
        self.weights = solved[:, :, :size].reshape(self.original.shape).to(self.original.dtype)
        return out[:, :-1]

    def _costs(self, out: Tensor, weights: Tensor, blocks: Tensor, part: Tensor, stays: Tensor) -> Tensor:
        """`out`, [part, units + 1], with the costs of the units of some groups.

        Args:
            weights: [part, rows, k].
            blocks: [part or 1, k // cols, cols, cols], of the inverse of H_KK. The last may be of bias and padding.
            stays: [part, k].
        """
        count = blocks.shape[1]
        units = (stays[:, : count * self.cols : self.cols] // self.cols).clamp(max=out.shape[1] - 1)
        of_units = weights[..., : count * self.cols].unflatten(2, (count, self.cols))
        if self.cols == 1:
            each = of_units.square().squeeze(3) / blocks[:, None, :, 0, 0]
        else:
            if len(blocks) > 1:
                nothing = (units == out.shape[1] - 1)[:, :, None, None]
                blocks = torch.where(nothing, torch.eye(self.cols, dtype=blocks.dtype, device=blocks.device), blocks)
            square = inverse(blocks)
            product = (
                of_units.transpose(1, 2) @ square
                if len(square) > 1
                else torch.einsum("grkc,kcd->gkrd", of_units, square[0])
            )
            each = (product.transpose(1, 2) * of_units).sum(3)
        if self.fisher is not None:
            each = each * self.fisher.double().view(-1, self.rows)[part][:, :, None]
        out = out.scatter(1, units, each.sum(1))
        out[:, -1] = torch.inf
        return out

    def error(self) -> Tensor:
        """float64 [out]: f_r times the mean square error of each output, damping included."""
        difference = self.weights.double() - self.original.double()
        error = ((difference @ damped(self.hessian, self.damping)) * difference).sum(1)
        return error if self.fisher is None else error * self.fisher.double()

    # --- N:M ------------------------------------------------------------------------------------------------

    def group_costs(self, n: int, m: int) -> Tensor:
        """float64 [out * in / m]: the cost of each N:M group, its cheapest m - n weights pruned and all else free.

        Zeros that a group has are among these; groups that have more than m - n cost +inf.
        """
        inv = inverse(self._live_hessian())
        costs = []
        for start in range(0, self.inputs, m):
            span = slice(start, start + m)
            costs.append(_cheapest(self.original[:, span].double(), inv[span, span], m - n, ~self.alive[:, span])[1])
        costs = torch.stack(costs, 1)
        return (costs if self.fisher is None else costs * self.fisher.double()[:, None]).flatten()

    def columns_in_order(self, n: int, m: int, chosen: Tensor) -> Tensor:
        """The losers of the chosen groups, column after column, each time updating the columns to the right
        (SparseGPT, with the best of all sets of a group where they are few).

        Columns that no row has left take no part. A zero of a single row does until its group is reached, and is then
        among the losers; groups that have enough zeros are passed over.

        Args:
            chosen: bool [out, in / m]: groups to prune.

        Returns:
            bool [out, in].
        """
        weights = self.original.to(torch.float64, copy=True)
        upper = cholesky(inverse(self._live_hessian())).T
        losers = torch.zeros(weights.shape[0], self.inputs, dtype=torch.bool, device=weights.device)
        for group, start in enumerate(range(0, self.inputs, m)):
            alive = self.alive[:, start : start + m]
            rows = torch.nonzero(chosen[:, group] & (alive.sum(1) > n))[:, 0]
            if not len(rows):
                continue
            trailing = upper[start : start + m, start : start + m].T @ upper[start : start + m, start:]
            lost, _ = _cheapest(weights[rows, start : start + m], trailing[:, :m], m - n, ~alive[rows])
            losers[rows, start : start + m] = lost
            sets = lost.nonzero()[:, 1].view(len(rows), m - n)
            inside = trailing[sets[:, :, None], sets[:, None, :]]  # [rows, m - n, m - n]
            gone = weights[rows, start : start + m].gather(1, sets)
            factors = torch.cholesky_solve(gone[:, :, None], cholesky(inside))[:, :, 0]
            weights[rows, start:] -= torch.einsum("rs,rsk->rk", factors, trailing[sets])
        return losers

    def _live_hessian(self) -> Tensor:
        """float64 [n, n]: the damped Hessian, in which columns that no row has left depend on nothing."""
        h, dead = damped(self.hessian, self.damping), ~self.alive.any(0)
        h[: self.inputs][dead] = 0.0
        h[:, : self.inputs][:, dead] = 0.0
        h.diagonal()[: self.inputs][dead] = 1.0
        return h


def _cheapest(weights: Tensor, inverses: Tensor, count: int, zeros: Tensor) -> tuple[Tensor, Tensor]:
    """The `count` of each row's weights whose removal costs least, and that cost.

    Args:
        weights: [rows, m].
        inverses: [m, m], of the inverse Hessian.
        zeros: bool [rows, m], weights that are among these.

    Returns:
        bool [rows, m] and float64 [rows]. Beyond 128 possible sets weights are ranked singly, as in SparseGPT.
    """
    m = weights.shape[1]
    if comb(m, count) > _SETS:
        single = weights.square() / inverses.diagonal()
        places = single.masked_fill(zeros, -torch.inf).sort(dim=1, stable=True).indices[:, :count]
        lost = torch.zeros_like(weights, dtype=torch.bool).scatter_(1, places, True)
        return lost, single.where(lost & ~zeros, 0.0).sum(1)
    sets = torch.tensor(list(combinations(range(m), count)), device=weights.device)
    inside = inverse(inverses[sets[:, :, None], sets[:, None, :]])  # [sets, count, count]
    of_sets = weights[:, sets]  # [rows, sets, count]
    costs = ((torch.einsum("rsc,scd->rsd", of_sets, inside)) * of_sets).sum(2)
    if bool(zeros.any()):
        without = torch.ones(len(sets), m, dtype=costs.dtype, device=weights.device).scatter_(1, sets, 0.0)
        costs = costs.masked_fill(zeros.to(costs.dtype) @ without.T > 0, torch.inf)
    best = costs.min(1)
    return torch.zeros_like(weights, dtype=torch.bool).scatter_(1, sets[best.indices], True), best.values
