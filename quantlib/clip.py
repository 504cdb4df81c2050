"""Where a grid should end: the clip that makes the squared error smallest.

A grid that reaches the largest weight spends its points on the way there; one that ends earlier clips that
weight and is finer for all others. :func:`mse_clip` finds, for each scale, the end that serves best.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.grid import (
    Grid,
    QuantizedTensor,
    group_extremes,
    quantize,
    round_to_codes,
    row_chunks,
    scale_and_zero_point,
    take_rows,
    working_dtype,
)

CLIP_RATIOS = tuple(0.97**k for k in range(128))  # 1, 0.97, … 0.021: a grid may end 48 times before the largest weight


def mse_clip(w: Tensor, grid: Grid, *, scale_dtype: torch.dtype = torch.float16) -> Tensor:
    """The clip, for each scale, that minimises the squared error of quantize(w, grid, clip=...).

    w [out, in] floating point -> float32 (float64 for float64 w) [out|1, groups], each one of CLIP_RATIOS.
    An exhaustive search, because the error is not convex in the clip. No clip is one of the candidates, and
    errors are measured on what quantize returns with this scale_dtype: the result is never worse than no clip.

    Raises what quantize raises.
    """
    quantize(w[:0], grid, scale_dtype=scale_dtype)  # its checks, at no cost
    work = working_dtype(w.dtype)
    clip = torch.ones(grid.scale_shape(*w.shape), dtype=work, device=w.device)
    if w.is_meta or not w.numel():
        return clip
    w = w.detach()
    low, high = group_extremes(w, grid)  # [out|1, groups] each
    ratios = torch.tensor(CLIP_RATIOS, dtype=work, device=w.device)
    of_tensor = torch.zeros(len(ratios), dtype=torch.float64, device=w.device)
    for rows in row_chunks(w):
        ends = take_rows(low, rows), take_rows(high, rows)
        errors = torch.stack(
            [_squared_error(w[rows], *ends, ratio, grid, scale_dtype) for ratio in ratios]
        )  # [ratios, rows, groups]
        if grid.group_size == "tensor":
            of_tensor += errors.sum((1, 2))
        else:
            clip[rows] = ratios[errors.argmin(0)]
    return ratios[of_tensor.argmin()].reshape(1, 1) if grid.group_size == "tensor" else clip


def _squared_error(w: Tensor, low: Tensor, high: Tensor, ratio: Tensor, grid: Grid, scale_dtype: torch.dtype) -> Tensor:
    """The summed squared error of each group of w [rows, in] when its grid ends at ratio: float64 [rows, groups]."""
    scale, zero_point = scale_and_zero_point(low * ratio, high * ratio, grid, scale_dtype)
    codes = round_to_codes(w, scale, zero_point, grid, out=torch.empty(w.shape, dtype=torch.int8, device=w.device))
    error = (
        QuantizedTensor(codes, scale, zero_point, None, grid).dequantize(working_dtype(w.dtype)).sub_(w)
    )  # [rows, in]
    return error.unflatten(1, (scale.shape[1], -1)).square_().sum(-1, dtype=torch.float64)  # [rows, groups]
