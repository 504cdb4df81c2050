"""Rounding a matrix to a grid: the numerics that every other module builds on.

Start from :func:`quantize`. It *is* round-to-nearest: methods such as GPTQ and AWQ choose other codes or
other scales, but they return the same :class:`QuantizedTensor`. One scale for the matrix, one for each
row, or one for every few weights of a row are a single mechanism, ``Grid.group_size``.

Sources: Jacob et al. 2018 (arXiv:1712.05877), section 2.1, for the affine grid; Dettmers et al. 2022
(arXiv:2208.07339), section 2, for absmax grids; Frantar et al. 2023 (arXiv:2210.17323), section 4, and its
reference code for the full-range grid.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CACHED_ELEMENTS = 2**18  # 1 MB of float32: a chunk and its temporaries stay in a core's second-level cache
DEVICE_ELEMENTS = 2**24  # on an accelerator launches cost more than memory traffic, so chunks are larger


@dataclass(frozen=True)
class Grid:
    """The integers a weight may become, and how many weights share one scale.

    Parameters
    ----------
    bits : int, 2 to 8
    group_size : int, "row" or "tensor"
        How many neighbouring weights of a row share a scale. "row": a channel of W, or a token of X.
    symmetric : bool
        Symmetric grids have code 0 at weight 0 and no zero_point. Asymmetric ones span [min, max] of the
        group, widened to contain 0, so that a weight of 0 stays exactly 0.
    narrow_range : bool
        Symmetric only. True: scale = absmax / (2^(bits-1) - 1), codes ±(2^(bits-1) - 1), as in LLM.int8()
        and AWQ. False: scale = 2 absmax / (2^bits - 1), all 2^bits codes, as in GPTQ and compressed-tensors.

    Raises TypeError or ValueError, naming the argument, for anything else.
    """

    bits: int
    group_size: int | str = "row"
    symmetric: bool = True
    narrow_range: bool = False

    def __post_init__(self):
        object.__setattr__(self, "bits", _integer("bits", self.bits))
        if not 2 <= self.bits <= 8:
            raise ValueError(
                f"bits must be from 2 to 8, got {self.bits}: one bit has no symmetric grid, and codes are stored in int8"
            )
        if isinstance(self.group_size, str):
            if self.group_size not in ("row", "tensor"):
                raise ValueError(f'group_size must be an int, "row" or "tensor", got {self.group_size!r}')
        else:
            object.__setattr__(self, "group_size", _integer("group_size", self.group_size))
            if self.group_size < 1:
                raise ValueError(f'group_size must be at least 1, got {self.group_size}; for one scale a row say "row"')
        for name in ("symmetric", "narrow_range"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.narrow_range and not self.symmetric:
            raise ValueError(
                "narrow_range=True belongs to symmetric grids; an asymmetric grid uses every code: drop one of the two"
            )

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -self.qmax if self.narrow_range else -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def steps(self) -> int:
        """How many steps lie between the lowest and the highest code."""
        return self.qmax - self.qmin

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a [rows, columns] matrix: [rows or 1, groups].

        Raises ValueError, with the sizes that would do, if group_size does not divide the columns.
        """
        if self.group_size == "tensor":
            return 1, 1
        if self.group_size == "row":
            return rows, 1
        if columns % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide the {columns} columns of a row; "
                f'these would: {", ".join(map(str, _divisors_near(columns, self.group_size)))} (or "row")'
            )
        return rows, columns // self.group_size


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """A matrix as codes on a grid: weight ≈ (codes − zero_point) · scale.

    codes      int8 [out, in], each from grid.qmin to grid.qmax
    scale      float [out or 1, groups], positive
    zero_point int8, the shape of scale, in the codes' own range; None on a symmetric grid
    g_idx      int32 [in], the group of each column, where columns were visited out of order (GPTQ's
               act-order); None where column j belongs to group j // group_size
    grid       the Grid that the codes belong to

    Raises TypeError or ValueError if these do not fit each other.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    g_idx: Tensor | None
    grid: Grid

    def __post_init__(self):
        if self.codes.dtype != torch.int8 or self.codes.ndim != 2:
            raise TypeError(f"codes must be int8 [out, in], got {self.codes.dtype} {list(self.codes.shape)}")
        if not self.scale.is_floating_point():
            raise TypeError(f"scale must be a floating-point tensor, got {self.scale.dtype}")
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
        if self.g_idx is not None:
            columns = self.g_idx.long()
            scale = scale[:, columns]  # [out, in]: one scale a column
            zero_point = None if zero_point is None else zero_point[:, columns]
        for rows in row_chunks(self.codes):
            part = take_rows(scale, rows)  # [rows|1, groups]
            x = self.codes[rows].to(work).unflatten(1, (part.shape[1], -1))  # [rows, groups, in/groups]
            if zero_point is not None:
                x.sub_(take_rows(zero_point, rows).unsqueeze(-1))
            out[rows] = x.mul_(part.unsqueeze(-1)).flatten(1)  # [rows, in]
        return out

    @property
    def nbytes(self) -> int:
        """Bytes allocated once packed: codes of up to 4 bits take a nibble, wider ones a byte."""
        from quantlib.packing import packed_bytes  # packing builds on this module

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

    w            floating-point [out, in]; float16 and bfloat16 are computed in float32. Never modified.
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
    _check_weight(w)
    if not isinstance(scale_dtype, torch.dtype) or not scale_dtype.is_floating_point:
        raise TypeError(f"scale_dtype must be a floating-point dtype, got {scale_dtype!r}")
    w = w.detach()
    shape = grid.scale_shape(*w.shape)
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    if w.is_meta:
        scale = torch.empty(shape, dtype=scale_dtype, device="meta")
        return QuantizedTensor(codes, scale, None if grid.symmetric else scale.to(torch.int8), None, grid)
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
    return QuantizedTensor(codes, scale, zero_point, None, grid)


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


def row_chunks(w: Tensor) -> Iterator[slice]:
    """Slices of rows of w [out, in], each small enough to be worked on in cache, at least one row each."""
    elements = CACHED_ELEMENTS if w.device.type == "cpu" else DEVICE_ELEMENTS
    step = max(1, elements // max(1, w.shape[1]))
    for start in range(0, w.shape[0], step):
        yield slice(start, start + step)


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


def _check_weight(w: Tensor) -> None:
    if not isinstance(w, Tensor) or not w.is_floating_point():
        kind = f"a {w.dtype} tensor" if isinstance(w, Tensor) else type(w).__name__
        raise TypeError(f"w must be a floating-point tensor, got {kind}")
    if w.ndim != 2 or w.layout != torch.strided:
        raise TypeError(
            f"w must be a dense matrix [out, in], got shape {list(w.shape)}: reshape activations with x.reshape(-1, x.shape[-1])"
        )


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


def _describe_not_finite(w: Tensor) -> str:
    bad = (~torch.isfinite(w)).nonzero()
    row, column = bad[0].tolist()
    return f"w holds {len(bad)} values that are NaN or infinite, the first {w[row, column].item()} at [{row}, {column}]: no scale can represent them; repair the weight first"


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})") from None


def _divisors_near(columns: int, wanted: int, most: int = 4) -> list[int]:
    """The divisors of columns nearest to wanted, in ascending order."""
    divisors = {d for i in range(1, math.isqrt(columns) + 1) if columns % i == 0 for d in (i, columns // i)}
    return sorted(sorted(divisors, key=lambda d: (abs(math.log(d / wanted)), d))[:most])


def take_rows(values: Tensor, rows: slice) -> Tensor:
    """Rows of per-row values; a single row is shared by the whole matrix."""
    return values if values.shape[0] == 1 else values[rows]


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
