"""What a kernel is, and the one that can multiply anything. Start from :class:`Kernel`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlib.kernels.packed import PackedWeight, unpack_weight
from quantlib.numerics.grid import Grid

MOST_ROWS = 1024  # beyond it the order of kernels no longer changes


def rows_bucket(rows: int) -> int:
    """The next power of two, and at most MOST_ROWS: 1, 2, 4, …, 1024. What is fastest is asked once for each."""
    return min(1 << (rows - 1).bit_length(), MOST_ROWS) if rows > 1 else 1


@dataclass(frozen=True)
class Kernel:
    """One way to multiply by a packed weight.

    name     as QUANTLIB_KERNEL and explain() call it
    refuses  (packed, dtype of x, rows of x) -> why it cannot take them, as a clause; None if it can
    run      (x [rows, in], packed) -> [rows, out] in the dtype of x; rows ≥ 1, x contiguous, columns in packed's order
    guarded  whether a probe watches the memory behind what it allocates (quantlib.kernels.guards). Not where only
             PyTorch writes, which the watching would make slow, nor under torch.compile, which would not compile
    sums     as run for an x in 16 bits, but returns the sums in float32, so that a bias is added before they are
             rounded; None of an operator that rounds inside. What takes float16, which they may overflow, has it
    """

    name: str
    refuses: Callable[[PackedWeight, torch.dtype, int], str | None]
    run: Callable[[Tensor, PackedWeight], Tensor]
    guarded: bool = True
    sums: Callable[[Tensor, PackedWeight], Tensor] | None = None


def run_naive(x: Tensor, p: PackedWeight) -> Tensor:
    """The whole matrix back to floats, then an ordinary product: what most texts call INT8 inference."""
    work = torch.float64 if x.dtype == torch.float64 else torch.float32
    w = unpack_weight(_unordered(p)).dequantize(work)  # [out, in]
    return F.linear(x.to(work), w).to(x.dtype)


def _unordered(p: PackedWeight) -> PackedWeight:
    """p without its column order, which x already has."""
    if p.order is None:
        return p
    return PackedWeight(p.data, p.scale, p.zero_point, None, p.grid, p.out_features, p.in_features, p.layout)


def in_float32(run: Callable[[Tensor, PackedWeight], Tensor]) -> Callable[[Tensor, PackedWeight], Tensor]:
    """Kernel.sums of a kernel that computes in float32 whatever x is."""
    return lambda x, p: run(x.float(), p)


NAIVE = Kernel("naive", lambda p, dtype, rows: None, run_naive, guarded=False, sums=in_float32(run_naive))


def run_reference(x: Tensor, p: PackedWeight) -> Tensor:
    """In float64 from the first number to the last, where sums of products of codes are exact too."""
    q = unpack_weight(_unordered(p))
    if x.dtype == torch.int8:
        return F.linear(x.double(), q.codes.double()).float()  # [rows, out]
    return F.linear(x.double(), q.dequantize(torch.float64)).to(x.dtype)


REFERENCE = Kernel(  # where no other answers right
    "reference", lambda p, dtype, rows: None, run_reference, guarded=False, sums=in_float32(run_reference)
)


def only_rows_of_scales(grid: Grid, groups: int) -> str | None:
    """The refusal of kernels that multiply by the scale after the sum."""
    if groups != 1:
        return "it multiplies by one scale a row, and there are groups"
    return None if grid.symmetric else "it knows no zero points"
