"""Rounding a matrix to a grid: the numerics that every other module builds on.

Start from :func:`quantize`. It *is* round-to-nearest: methods such as GPTQ and AWQ choose other codes or
other scales, but they return the same :class:`QuantizedTensor`. One scale for the matrix, one for each
row, or one for every few weights of a row are a single mechanism, ``Grid.group_size``.

Sources: as of quantlib.numerics.grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.numerics.floats import floats, is_float
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import packed_bytes
from quantlib.numerics.rounding import (
    group_extremes,
    round_to_codes,
    row_chunks,
    scale_and_zero_point,
    squared_error,
    take_rows,
    working_dtype,
)

CLIP_RATIOS = tuple(0.94**k for k in range(64))  # 1, 0.94, … 0.020: steps of 6 %, the error is flat near its minimum


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix as codes on a grid: weight ≈ (codes − zero_point) · scale.

    codes      int8 [out, in], each from grid.qmin to grid.qmax
    scale      float [out or 1, groups], positive
    zero_point int8, the shape of scale, in the codes' own range; None on a symmetric grid
    g_idx      int32 [in], the group of each column, where columns were visited out of order (GPTQ's
               act-order); None where column j belongs to group j // group_size
    grid       the Grid that the codes belong to

    Raises TypeError or ValueError if these do not fit each other, or codes, zero points or g_idx reach beyond the grid.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    g_idx: Tensor | None
    grid: Grid

    def __post_init__(self):
        if self.codes.dtype != torch.int8 or self.codes.ndim != 2:
            raise TypeError(f"codes must be int8 [out, in], got {self.codes.dtype} {list(self.codes.shape)}")
        if not is_float(self.scale.dtype):
            raise TypeError(
                f"scale must be a floating-point tensor that can be computed with, got {self.scale.dtype}: "
                "convert it with scale.float()"
            )
        expected = self.grid.scale_shape(*self.codes.shape)
        if tuple(self.scale.shape) != expected:
            raise ValueError(
                f"scale must be {list(expected)} for codes {list(self.codes.shape)} on {self.grid}, got {list(self.scale.shape)}"
            )
        if self.grid.symmetric != (self.zero_point is None):
            raise ValueError(
                f"zero_point must be {'None on a symmetric' if self.grid.symmetric else 'given on an asymmetric'} grid"
            )
        if self.zero_point is not None and (
            self.zero_point.dtype != torch.int8 or self.zero_point.shape != self.scale.shape
        ):
            raise ValueError(
                f"zero_point must be int8 {list(expected)}, got {self.zero_point.dtype} {list(self.zero_point.shape)}"
            )
        if self.g_idx is not None and (
            self.g_idx.dtype != torch.int32 or tuple(self.g_idx.shape) != (self.codes.shape[1],)
        ):
            raise ValueError(
                f"g_idx must be int32 [{self.codes.shape[1]}], got {self.g_idx.dtype} {list(self.g_idx.shape)}"
            )
        self.check_range()

    @classmethod
    def of_clamped(
        cls, codes: Tensor, scale: Tensor, zero_point: Tensor | None, g_idx: Tensor | None, grid: Grid
    ) -> QuantizedTensor:
        """The same of parts that were just clamped to the grid, or belong to a checked tensor: nothing is read.

        To look at every code of an activation would cost a layer's call some per cent.
        """
        new = object.__new__(cls)
        new.__dict__.update(codes=codes, scale=scale, zero_point=zero_point, g_idx=g_idx, grid=grid)
        return new

    def check_range(self) -> None:
        """Raises ValueError if a code or zero point lies outside the grid, or a column in no group. Reads all codes."""
        grid = self.grid
        for name, values in (("codes", self.codes), ("zero_point", self.zero_point)):
            if values is None or (grid.bits == 8 and not grid.narrow_range):  # int8 holds nothing else
                continue
            low, high = _extremes(values)
            if low < grid.qmin or high > grid.qmax:
                raise ValueError(
                    f"{name} must lie in {grid.qmin} to {grid.qmax} on {grid}, got {low} to {high}: "
                    f"subtract {2 ** (grid.bits - 1)} from codes and zero points that count from 0, "
                    "or name the grid that they belong to"
                )
        if self.g_idx is not None and self.g_idx.numel():
            groups = grid.scale_shape(*self.codes.shape)[1]
            low, high = _extremes(self.g_idx)
            if low < 0 or high >= groups:
                raise ValueError(f"g_idx must lie in 0 to {groups - 1}, one of {groups} groups, got {low} to {high}")

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.codes.shape

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix that the codes stand for, [out, in] in dtype; computed in float32 (float64 for float64)."""
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point dtype, got {dtype}")
        work = working_dtype(dtype)
        out = torch.empty(self.shape, dtype=dtype, device=self.codes.device)  # [out, in]
        if self.codes.is_meta or not self.codes.numel():
            return out
        scale = self.scale.to(work)  # [out|1, groups]
        zero_point = None if self.zero_point is None else self.zero_point.to(work)
        # a column out of order is a group of its own
        columns = slice(None) if self.g_idx is None else self.g_idx.long()
        for rows in row_chunks(self.codes):
            part = take_rows(scale, rows)[:, columns]  # [rows|1, groups], or [rows|1, in] by g_idx
            x = self.codes[rows].to(work).unflatten(1, (part.shape[1], -1))  # [rows, groups, in/groups]
            if zero_point is not None:
                x.sub_(take_rows(zero_point, rows)[:, columns].unsqueeze(-1))
            out[rows] = x.mul_(part.unsqueeze(-1)).flatten(1)  # [rows, in]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes allocated once packed: codes of up to 4 bits take a nibble, wider ones a byte."""
        parts = [packed_bytes(self.codes.shape, self.grid.bits), self.scale.numel() * self.scale.element_size()]
        if self.zero_point is not None:
            parts.append(packed_bytes(self.zero_point.shape, self.grid.bits))
        if self.g_idx is not None:
            parts.append(self.g_idx.numel() * self.g_idx.element_size())
        return sum(parts)

    @property
    def bits_per_weight(self) -> float:
        """Bits needed for each weight: its code, and its share of scale, zero_point and g_idx. 0.0 if there is no weight."""
        if not self.codes.numel():
            return 0.0
        bits = self.grid.bits * self.codes.numel() + 8 * self.scale.element_size() * self.scale.numel()
        if self.zero_point is not None:
            bits += self.grid.bits * self.zero_point.numel()
        if self.g_idx is not None:
            bits += 8 * self.g_idx.element_size() * self.g_idx.numel()
        return bits / self.codes.numel()


def quantize(
    w: Tensor, grid: Grid, *, clip: float | Tensor = 1.0, scale_dtype: torch.dtype = torch.float16
) -> QuantizedTensor:
    """Round every weight to the nearest point of its group's grid.

    w            floating-point [out, in]; float16, bfloat16 and float8 are computed in float32. Never modified.
    clip         where the grid ends, as a share of the group's largest weight: a number in (0, 1], or a
                 tensor that broadcasts to the scales, such as mse_clip returns. What lies beyond is clipped.
    scale_dtype  the dtype that scales are kept in. They are rounded to it *before* codes are computed, so
                 that what is stored is what was rounded against.

    A group of zeros gets scale 1 and codes 0. A scale too small for scale_dtype becomes its smallest
    positive number. Ties go to the even code (torch.round). On the meta device only shapes are computed.

    Works in chunks of rows: beyond the result it needs memory for one chunk, not for the matrix.

    Raises TypeError for a w that is not a floating-point matrix; ValueError for NaN or Inf in w, a
    group_size that does not divide the columns, a clip outside (0, 1], a scale that overflows scale_dtype.

    >>> q = quantize(torch.tensor([[0.1, -0.7, 0.35]]), Grid(bits=4, narrow_range=True))
    >>> q.codes.tolist(), round(q.scale.item(), 3)
    ([[1, -7, 3]], 0.1)
    """
    w = _checked(w)
    if not is_float(scale_dtype):
        raise TypeError(
            f"scale_dtype must be a floating-point dtype that can be computed with, got {scale_dtype!r}: "
            "use torch.float16, bfloat16, float32 or float64"
        )
    shape = grid.scale_shape(*w.shape)
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    if w.is_meta:
        scale = torch.empty(shape, dtype=scale_dtype, device="meta")
        return QuantizedTensor.of_clamped(codes, scale, None if grid.symmetric else scale.to(torch.int8), None, grid)
    low, high = group_extremes(w, grid)  # [out|1, groups] each
    clip = _check_clip(clip, shape, low)
    scale, zero_point = scale_and_zero_point(low * clip, high * clip, grid, scale_dtype)
    for rows in row_chunks(w):
        round_to_codes(
            w[rows],
            take_rows(scale, rows),
            None if zero_point is None else take_rows(zero_point, rows),
            grid,
            out=codes[rows],
        )
    return QuantizedTensor.of_clamped(codes, scale, zero_point, None, grid)


def mse_clip(w: Tensor, grid: Grid, *, scale_dtype: torch.dtype = torch.float16) -> Tensor:
    """The clip, for each scale, that minimises the squared error of quantize(w, grid, clip=...).

    w [out, in] floating point -> float32 (float64 for float64 w) [out|1, groups], each one of CLIP_RATIOS.
    An exhaustive search, because the error is not convex in the clip. No clip is one of the candidates, and
    errors are measured on what quantize returns with this scale_dtype: the result is never worse than no clip.

    Raises what quantize raises.
    """
    w = _checked(w)
    quantize(w[:0], grid, scale_dtype=scale_dtype)  # its other checks, at no cost
    work = working_dtype(w.dtype)
    clip = torch.ones(grid.scale_shape(*w.shape), dtype=work, device=w.device)
    if w.is_meta or not w.numel():
        return clip
    low, high = group_extremes(w, grid)  # [out|1, groups] each
    ratios = torch.tensor(CLIP_RATIOS, dtype=work, device=w.device)
    of_tensor = torch.zeros(len(ratios), dtype=torch.float64, device=w.device)
    for rows in row_chunks(w):
        ends = take_rows(low, rows), take_rows(high, rows)
        grids = (scale_and_zero_point(*(end * ratio for end in ends), grid, scale_dtype) for ratio in ratios)
        errors = torch.stack([squared_error(w[rows], *ended, grid) for ended in grids])  # [ratios, rows, groups]
        if grid.group_size == "tensor":
            of_tensor += errors.sum((1, 2), dtype=torch.float64)
        else:
            clip[rows] = ratios[errors.argmin(0)]
    return ratios[of_tensor.argmin()].reshape(1, 1) if grid.group_size == "tensor" else clip


def _extremes(values: Tensor) -> tuple[int, int]:
    """The smallest and the largest of integers; 0 where there are none, or none that are known."""
    return tuple(int(v) for v in values.aminmax()) if values.numel() and not values.is_meta else (0, 0)


def _checked(w: Tensor) -> Tensor:
    """w as it is computed with, without its gradient; or a sentence why it is no weight."""
    w = floats(w, "w").detach()
    if w.ndim != 2 or w.layout != torch.strided:
        raise TypeError(
            f"w must be a dense matrix [out, in], got shape {list(w.shape)}: reshape activations with x.reshape(-1, x.shape[-1])"
        )
    return w


def _check_clip(clip: float | Tensor, shape: tuple[int, int], like: Tensor) -> Tensor:
    """clip as a tensor that broadcasts to the scales, or a sentence why not."""
    clip = torch.as_tensor(clip, dtype=like.dtype, device=like.device)
    try:
        fits = torch.broadcast_shapes(clip.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"clip must be a number or broadcast to the scales {list(shape)}, got shape {list(clip.shape)}"
        )
    if not bool(((clip > 0) & (clip <= 1)).all()):
        raise ValueError(
            f"clip must lie in (0, 1], a share of the largest weight; got values from {clip.min().item():.4g} to {clip.max().item():.4g}"
        )
    return clip
