"""Scales for weights whose errors do not count alike. Start from :func:`weighted_clip`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from quantlib.methods.gptq import row_blocks
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize
from quantlib.numerics.rounding import (
    group_extremes,
    round_to_codes,
    row_chunks,
    scale_and_zero_point,
    take_rows,
    working_dtype,
)

RATIOS = tuple(1 - 0.02 * k for k in range(20))  # 1, 0.98, … 0.62


def weighted_clip(w: Tensor, gram: Tensor, grid: Grid, *, scale_dtype: torch.dtype = torch.float16) -> Tensor:
    """The clip, for each scale, that minimises Σ_j H_jj (w_j − ŵ_j)² of quantize(w, grid, clip=...).

    w [out, in] floating point, gram [in, in] or [blocks, in, in] as in gptq_quantize -> float32 (float64 for float64 w)
    [out|1, groups], each one of RATIOS. H's diagonal is what the error of a weight costs while the others stay; that
    others will make up for some of it is left out. On a tie the larger ratio is taken.

    Raises what quantize raises, and for a gram that does not fit w.
    """
    return searched_clip(w, gram, grid, RATIOS, _by_diagonal, scale_dtype)


Cost = Callable[[Tensor], Tensor]  # errors of some rows [rows, groups, in/groups] -> what they cost [rows, groups]


def searched_clip(
    w: Tensor,
    gram: Tensor,
    grid: Grid,
    ratios: Sequence[float],
    cost_by: Callable[[Tensor, int], Cost],
    scale_dtype: torch.dtype,
) -> Tensor:
    """For each scale, [out|1, groups], the one of these ratios whose errors cost least.

    cost_by  from a matrix [in, in] and the number of groups, the Cost of errors in rows that have this matrix
    """
    w = floats(w, "w")
    quantize(w[:0], grid, scale_dtype=scale_dtype)  # its other checks, at no cost
    work = working_dtype(w.dtype)
    w = w.detach()
    clip = torch.ones(grid.scale_shape(*w.shape), dtype=work, device=w.device)
    low, high = group_extremes(w, grid)  # [out|1, groups] each
    choices = torch.tensor(ratios, dtype=work, device=w.device)
    of_tensor = torch.zeros(len(ratios), dtype=torch.float64, device=w.device)
    for block, H in row_blocks(w, gram):
        cost = cost_by((H / H.diagonal().double().mean().clamp(min=1e-300)).to(work), clip.shape[1])
        for chunk in row_chunks(w[block]):
            rows = slice(block.start + chunk.start, min(block.start + chunk.stop, block.stop))
            ends = take_rows(low, rows), take_rows(high, rows)
            costs = torch.stack([
                cost(_errors(w[rows], *scale_and_zero_point(*(end * ratio for end in ends), grid, scale_dtype), grid))
                for ratio in choices
            ])  # [ratios, rows, groups]  # fmt: skip
            if grid.group_size == "tensor":
                of_tensor += costs.sum((1, 2), dtype=torch.float64)
            else:
                clip[rows] = choices[costs.argmin(0)]
    return choices[of_tensor.argmin()].reshape(1, 1) if grid.group_size == "tensor" else clip


def _by_diagonal(H: Tensor, groups: int) -> Cost:
    diagonal = H.diagonal().reshape(groups, -1)  # [groups, in/groups]
    return lambda errors: (errors.square() * diagonal).sum(-1)


def _errors(w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
    """ŵ − w of w [rows, in] on a grid, [rows, groups, in/groups]."""
    codes = round_to_codes(w, scale, zero_point, grid, out=torch.empty(w.shape, dtype=torch.int8, device=w.device))
    work = working_dtype(w.dtype)
    x = codes.to(work).unflatten(1, (scale.shape[1], -1))  # [rows, groups, in/groups]
    if zero_point is not None:
        x = x - zero_point.to(work).unsqueeze(-1)
    return x * scale.to(work).unsqueeze(-1) - w.to(work).unflatten(1, (scale.shape[1], -1))
