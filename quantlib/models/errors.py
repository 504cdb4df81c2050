"""What rounding costs a weight, and whether its scales fit into their dtype. Start from :func:`relative_error`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quantlib.models.linears import LinearLayer
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize
from quantlib.numerics.rounding import group_extremes, scale_and_zero_point

WORSE = 1.05  # so many times the error with float32 scales is worth a word


def relative_error(weight: Tensor, q: QuantizedTensor) -> float:
    """‖W − Ŵ‖/‖W‖ over all weights, a few rows at a time."""
    missed = total = 0.0
    for rows, codes, number in _by_rows(weight, q):
        part = QuantizedTensor.of_clamped(codes, *number, q.g_idx, q.grid).dequantize()
        missed += (rows.float() - part).double().square().sum().item()
        total += rows.double().square().sum().item()
    return (missed / total) ** 0.5 if total else 0.0


def scale_loss(weight: Tensor, q: QuantizedTensor) -> float | None:
    """Rounding's error as a multiple of that with float32 scales, where q's are too small for their dtype; else None.

    Below its smallest normal number a dtype has fewer and fewer bits: float16 from 6e-5 on, and none at 6e-8.
    """
    dtype = q.scale.dtype
    if dtype.itemsize > 2 or not bool((q.scale < torch.finfo(dtype).smallest_normal).any()):
        return None
    held, wanted = (relative_error(weight, quantize(weight, q.grid, scale_dtype=d)) for d in (dtype, torch.float32))
    return (held / wanted if wanted else math.inf) if held > WORSE * wanted else None


def check_scales(layers: Sequence[LinearLayer], extremes: Sequence[tuple[float, float]], grid: Grid, dtype: torch.dtype):
    """Raises ValueError, naming the layer, where a scale would be larger than dtype holds.

    extremes  the smallest and the largest weight of each layer
    """
    for layer, (low, high) in zip(layers, extremes, strict=True):
        if (max(high, 0.0) - min(low, 0.0)) * 2 / grid.steps <= torch.finfo(dtype).max:  # no group's can be larger
            continue
        try:
            scale_and_zero_point(*group_extremes(floats(layer.weight, "w"), grid), grid, dtype)
        except ValueError as error:
            raise ValueError(f"{layer.name or 'model'}: {error}") from error


def _by_rows(weight: Tensor, q: QuantizedTensor) -> Iterator[tuple[Tensor, Tensor, tuple[Tensor, Tensor | None]]]:
    for start in range(0, weight.shape[0], 256):
        rows = slice(start, start + 256)
        each = slice(None) if q.scale.shape[0] == 1 else rows
        yield weight[rows], q.codes[rows], (q.scale[each], None if q.zero_point is None else q.zero_point[each])
