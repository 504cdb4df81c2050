"""How a matrix is rounded: extremes, scales, codes, in chunks that stay in cache. Start from :func:`quantlib.numerics.quantize.quantize`.

What a grid *is* lives in grid.py; here is the arithmetic beneath it, one small function a step, so that methods
which choose their own scales or their own order (clip search, GPTQ, AWQ) round exactly as quantize does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from quantlib.numerics.grid import Grid

CACHED_ELEMENTS = 2**18  # 1 MB of float32: a chunk and its temporaries stay in a core's second-level cache
DEVICE_ELEMENTS = 2**24  # on an accelerator launches cost more than memory traffic, so chunks are larger


def group_extremes(w: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The smallest and the largest weight of each group, [out|1, groups] each, in the working dtype; 0 for an empty group.

    Raises ValueError if any is NaN or infinite: an extreme that is finite vouches for its whole group.
    """
    shape, work = grid.scale_shape(*w.shape), working_dtype(w.dtype)
    low, high = (torch.zeros((w.shape[0], shape[1]), dtype=work, device=w.device) for _ in range(2))
    if w.numel():
        for rows in row_chunks(w):
            x = w[rows].unflatten(1, (shape[1], -1))  # [rows, groups, in/groups]
            low[rows], high[rows] = x.amin(-1), x.amax(-1)
        if grid.group_size == "tensor":
            low, high = low.amin().reshape(1, 1), high.amax().reshape(1, 1)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ValueError(_describe_not_finite(w))
    return low.reshape(shape) if w.numel() else low.new_zeros(shape), high.reshape(
        shape
    ) if w.numel() else high.new_zeros(shape)


def scale_and_zero_point(
    low: Tensor, high: Tensor, grid: Grid, scale_dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """The scales, and for an asymmetric grid the zero_points, of groups that reach from low to high."""
    if grid.symmetric:
        reach = torch.maximum(high, -low)
        return _stored_scale(reach / grid.qmax if grid.narrow_range else 2 * reach / grid.steps, scale_dtype), None
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = _stored_scale((high - low) / grid.steps, scale_dtype)
    zero_point = grid.qmin - (low / scale.to(low.dtype)).round()
    return scale, zero_point.clamp_(grid.qmin, grid.qmax).to(torch.int8)


def _stored_scale(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Scales as dtype keeps them: 1 for a group of zeros, never 0, never infinite."""
    if scale.numel() and scale.max() > torch.finfo(dtype).max:
        raise ValueError(
            f"a scale of {scale.max().item():.4g} overflows scale_dtype {dtype}: pass scale_dtype=torch.float32"
        )
    stored = scale.to(dtype)
    tiny = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the smallest subnormal number
    stored = torch.where(stored == 0, torch.full_like(stored, tiny), stored)
    return torch.where(scale == 0, torch.ones_like(stored), stored)


def round_to_codes(w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid, *, out: Tensor) -> Tensor:
    """Codes of w [rows, in] for given scales [rows|1, groups], written to out (int8 [rows, in]) and returned."""
    if not w.numel():
        return out
    work = working_dtype(w.dtype)
    x = w.to(work).unflatten(1, (scale.shape[1], -1))  # [rows, groups, in/groups]
    x = (x / scale.to(work).unsqueeze(-1)).round_()
    if zero_point is not None:
        x.add_(zero_point.to(work).unsqueeze(-1))
    return out.copy_(x.clamp_(grid.qmin, grid.qmax).flatten(1))


def squared_error(w: Tensor, scale: Tensor, zero_point: Tensor | None, grid: Grid) -> Tensor:
    """The summed squared error of each group of w [rows, in] on a grid, [rows, groups]; no codes are kept."""
    work = working_dtype(w.dtype)
    x, step = w.to(work).unflatten(1, (scale.shape[1], -1)), scale.to(work).unsqueeze(-1)  # [rows, groups, in/groups]
    codes = (x / step).round_()
    if zero_point is None:
        codes.clamp_(grid.qmin, grid.qmax)
    else:
        zero = zero_point.to(work).unsqueeze(-1)
        codes.add_(zero).clamp_(grid.qmin, grid.qmax).sub_(zero)
    return codes.mul_(step).sub_(x).square_().sum(-1)  # [rows, groups]


def row_chunks(w: Tensor) -> Iterator[slice]:
    """Slices of rows of w [out, in], each small enough to be worked on in cache, at least one row each."""
    elements = CACHED_ELEMENTS if w.device.type == "cpu" else DEVICE_ELEMENTS
    step = max(1, elements // max(1, w.shape[1]))
    for start in range(0, w.shape[0], step):
        yield slice(start, start + step)


def take_rows(values: Tensor, rows: slice) -> Tensor:
    """Rows of per-row values; a single row is shared by the whole matrix."""
    return values if values.shape[0] == 1 else values[rows]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _describe_not_finite(w: Tensor) -> str:
    bad = (~torch.isfinite(w)).nonzero()
    row, column = bad[0].tolist()
    return f"w holds {len(bad)} values that are NaN or infinite, the first {w[row, column].item()} at [{row}, {column}]: no scale can represent them; repair the weight first"
