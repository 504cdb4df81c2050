"""Weight-only products of bfloat16 multiplied as integers, in C++: compiled_digits.cpp says how. Start from :func:`product`.

Where a CPU multiplies bytes many times as fast as floats, the numbers of x are written as three digits each and
multiplied by the codes in integers. Nothing is lost by that: the integers hold all bits of a bfloat16, down to 2^-22 of
the largest in its group of columns. Built with quantlib.kernels.cpu.compiled, and like that used only where it was built
and measured to be faster.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from quantlib.kernels.candidates import only_rows_of_scales
from quantlib.kernels.cpu import compiled
from quantlib.kernels.packed import PackedWeight

PRODUCT4, PRODUCT8 = struct.Struct("5P6q"), struct.Struct("4P6q")  # as compiled_digits.cpp declares them
BLOCK = 64  # rows of a block of 4-bit codes
SCALES = (torch.float16, torch.float32)


def refuses(p: PackedWeight, dtype: torch.dtype, rows: int, library: compiled.Library | None = None) -> str | None:
    """Why it cannot multiply x by p, as a clause; None if it can."""
    library = library or compiled.default()
    if library is None:
        return "it was not built: python -m quantlib build"
    if library.int4_digits is None:
        return "this CPU has no instruction that multiplies vectors of bytes (AVX-512 VNNI)"
    if dtype is not torch.bfloat16:
        return f"it takes bfloat16 apart, x is {dtype}".replace("torch.", "")
    if p.scale.dtype not in SCALES:
        return f"it reads scales in float16 or float32, not {p.scale.dtype}".replace("torch.", "")
    if p.layout == "int4pack":
        return None if p.data.shape[2] * 2 == BLOCK else f"it reads blocks of {BLOCK} rows"
    if p.layout != "rows" or p.nibbles:
        return f"it reads PyTorch's int4 order and int8 rows, not {p.layout}" + (" of nibbles" if p.nibbles else "")
    return only_rows_of_scales(p.grid, p.groups)


def product(x: Tensor, p: PackedWeight, library: compiled.Library | None = None) -> Tensor:
    """x · Ŵᵀ: x bfloat16 [rows, in], contiguous, on the CPU -> [rows, out] in bfloat16.

    p        4-bit codes in layout "int4pack", or 8-bit ones with a scale a row in layout "rows", as `refuses` allows
    library  by default the one that compiled.build() makes

    Integers are summed exactly, groups in float32. Where x has infinite values or NaN, compiled's products in floats
    take its place. Uses torch.get_num_threads() threads. Raises ValueError with the words of `refuses`.
    """
    library = library or compiled.default()
    reason = refuses(p, x.dtype, x.shape[0], library)
    if reason:
        raise ValueError(f"p cannot be multiplied by x: {reason}")
    if x.ndim != 2 or x.shape[1] != p.in_features or not x.is_cpu or not x.is_contiguous():
        raise ValueError(f"x must be contiguous [rows, {p.in_features}] on the CPU, got {list(x.shape)} on {x.device}")
    if not x.numel() or not p.out_features:
        return x.new_zeros((x.shape[0], p.out_features))
    y = run(x, p, library)
    return in_floats(x, p, library) if y is None else y


def run(x: Tensor, p: PackedWeight, library: compiled.Library) -> Tensor | None:
    """product without its checks, and in few steps; None where x has a value that no integer is."""
    rows, columns, out, scale = x.shape[0], p.in_features, p.out_features, p.scale
    y = x.new_empty((rows, out))
    half, threads = scale.dtype is torch.float16, torch.get_num_threads()
    at = x.data_ptr(), p.data.data_ptr(), scale.data_ptr()
    if p.layout == "int4pack":
        zero = p.zero_point
        zero = 0 if zero is None else zero.data_ptr()
        product = PRODUCT4.pack(*at, zero, y.data_ptr(), rows, columns, out, p.grid.group_size, half, threads)
        return y if library.int4_digits(product) else None
    one_scale = scale.shape[0] == 1 < out
    product = PRODUCT8.pack(*at, y.data_ptr(), rows, columns, out, half, one_scale, threads)
    return y if library.int8_digits(product) else None


def in_floats(x: Tensor, p: PackedWeight, library: compiled.Library) -> Tensor:
    """The product of the same weight by compiled.cpp."""
    if p.nibbles:
        return compiled.int4_matmul(x, p.data, p.scale, p.zero_points(), p.group_size, library)
    return compiled.int8_matmul(x, p.data, p.scale.view(-1, 1).expand(p.out_features, 1), library)
