"""Products of integer codes in C++, exact on every CPU: compiled_integers.cpp says how. Start from :func:`product`.

Where a CPU lacks the instructions that sum products of bytes in 32 bits (VNNI), the fast ones it has saturate. This
one multiplies in 16 bits, sums in 32, and is right whatever the codes. Built with quantlib.kernels.cpu.compiled.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from quantlib.kernels.cpu import compiled
from quantlib.kernels.packed import PackedWeight

PRODUCT = struct.Struct("3P4q")  # as compiled_integers.cpp declares it
TOO_MANY_COLUMNS = 2**17  # of products of −128 and −128: their sum is 2^31


def refuses(p: PackedWeight, dtype: torch.dtype, rows: int, library: compiled.Library | None = None) -> str | None:
    """Why it cannot multiply codes by p, as a clause; None if it can."""
    if p.layout != "rows" or p.nibbles:
        return f"it reads int8 rows, not {p.layout}" + (" of nibbles" if p.nibbles else "")
    if p.in_features >= TOO_MANY_COLUMNS:
        return f"int32 does not hold the sum of {p.in_features} products"
    return None if library or compiled.available() else "it was not built: python -m quantlib build"


def product(codes: Tensor, p: PackedWeight, library: compiled.Library | None = None) -> Tensor:
    """codes int8 [rows, in], contiguous, on the CPU -> float32 [rows, out]: summed exactly, then rounded once.

    p        5- to 8-bit codes in layout "rows"; its scales are the caller's
    library  by default the one that compiled.build() makes

    Uses torch.get_num_threads() threads. Raises ValueError with the words of `refuses`, TypeError for another dtype.
    """
    library = library or compiled.default()
    reason = refuses(p, codes.dtype, codes.shape[0], library)
    if reason:
        raise ValueError(f"p cannot be multiplied by codes: {reason}")
    if codes.dtype is not torch.int8:
        raise TypeError(f"codes must be int8, got {codes.dtype}: quantize the activations")
    if codes.ndim != 2 or codes.shape[1] != p.in_features or not codes.is_cpu or not codes.is_contiguous():
        raise ValueError(
            f"codes must be contiguous [rows, {p.in_features}] on the CPU, got {list(codes.shape)} on {codes.device}"
        )
    return run(codes, p, library)


def run(codes: Tensor, p: PackedWeight, library: compiled.Library) -> Tensor:
    """product without its checks."""
    rows, columns, out = codes.shape[0], p.in_features, p.out_features
    y = torch.empty((rows, out), dtype=torch.float32)
    if rows and out:
        at = codes.data_ptr(), p.data.data_ptr(), y.data_ptr()
        library.int8_integers(PRODUCT.pack(*at, rows, columns, out, torch.get_num_threads()))
    return y
