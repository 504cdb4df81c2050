"""Scales for weights whose errors do not count alike. Start from :func:`weighted_clip`."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.methods.gptq import row_blocks
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
    quantize(w[:0], grid, scale_dtype=scale_dtype)  # its checks, at no cost
    work = working_dtype(w.dtype)
    w = w.detach()
    clip = torch.ones(grid.scale_shape(*w.shape), dtype=work, device=w.device)
    low, high = group_extremes(w, grid)  # [out|1, groups] each
    ratios = torch.tensor(RATIOS, dtype=work, device=w.device)
    of_tensor = torch.zeros(len(RATIOS), dtype=torch.float64, device=w.device)
    for block, H in row_blocks(w, gram):
        cost = (H.diagonal().double() / H.diagonal().double().mean().clamp(min=1e-300)).to(work)  # [in]
        for chunk in row_chunks(w[block]):
            rows = slice(block.start + chunk.start, min(block.start + chunk.stop, block.stop))
            ends = take_rows(low, rows), take_rows(high, rows)
            errors = torch.stack([
                _cost(w[rows], *scale_and_zero_point(*(end * ratio for end in ends), grid, scale_dtype), grid, cost)
                for ratio in ratios
            ])  # [ratios, rows, groups]  # fmt: skip
            if grid.group_size == "tensor":
                of_tensor += errors.sum((1, 2), dtype=torch.float64)
            else:
                clip[rows] = ratios[errors.argmin(0)]
    return ratios[of_tensor.argmin()].reshape(1, 1) if grid.group_size == "tensor" else clip


def _cost(w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, cost: Tensor) -> Tensor:
    """Σ_j cost_j (w_j − ŵ_j)² of each group of w [rows, in], [rows, groups]."""
    codes = round_to_codes(w, scale, zero_point, grid, out=torch.empty(w.shape, dtype=torch.int8, device=w.device))
    groups = scale.shape[1]
    x = codes.to(cost.dtype).unflatten(1, (groups, -1))  # [rows, groups, in/groups]
    if zero_point is not None:
        x = x - zero_point.to(cost.dtype).unsqueeze(-1)
    error = x * scale.to(cost.dtype).unsqueeze(-1) - w.to(cost.dtype).unflatten(1, (groups, -1))
    return (error.square() * cost.view(groups, -1)).sum(-1)
