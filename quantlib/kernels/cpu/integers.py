"""The products of integer codes on a CPU, exact in int32 and then rounded to float32. Start from :data:`INT8_KERNELS`.

`onednn` is oneDNN's product of unsigned by signed bytes: the fastest there is, and on x86 without VNNI wrong: it
adds pairs of products in 16 bits that saturate. These are right on every CPU: `onednn halves` is the same product of
numbers half as large; `compiled integers` is this package's own C++ (quantlib.kernels.cpu.compiled_integers); `float32`
multiplies codes as floats, so few columns at a time that every sum is exact; `naive int8` is float64. `int_mm` is
PyTorch's operator: slow without VNNI, and where PyTorch hands it to oneDNN no better than that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.kernels.candidates import Kernel, run_reference
from quantlib.kernels.cpu import compiled, compiled_integers
from quantlib.kernels.cpu.scratch import CHUNK_BYTES, scratch
from quantlib.kernels.packed import PackedWeight

EXACT = 2**24  # up to it every integer is a float32
TOO_MANY_COLUMNS = 2**17  # of products of −128 and −128: their sum is 2^31
COLUMNS_OF_FLOATS = EXACT // 128**2  # of such products: no sum of them passes EXACT, in whatever order
COLUMNS_OF_HALVES = EXACT // (64 * 128)  # the same for halves of codes


def _too_many(p: PackedWeight) -> str | None:
    if p.in_features >= TOO_MANY_COLUMNS:
        return f"int32 does not hold the sum of {p.in_features} products"
    return None


def _not_rows(p: PackedWeight) -> str | None:
    return None if p.layout == "rows" and not p.nibbles else f"it reads int8 rows, not {p.layout}"


# --- oneDNN


def _onednn_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return None if p.layout == "onednn" else f"it reads oneDNN's blocks, not {p.layout}"


def _onednn(codes: Tensor, p: PackedWeight) -> Tensor:
    # u8 with zero point 128: signed activations fall to a reference kernel, thousands of times slower
    return _unsigned_product(codes.view(torch.uint8) ^ 128, 128, p)


def _unsigned_product(x: Tensor, zero_point: int, p: PackedWeight) -> Tensor:
    """(x − zero_point) · Wᵀ for x uint8 [rows, in] -> float32 [rows, out]"""
    ones = scratch("ones", (p.out_features,), torch.float32).fill_(1)
    zeros = scratch("zeros", (p.out_features,), torch.int32).zero_()
    return torch.ops.onednn.qlinear_pointwise(
        x, 1.0, zero_point, p.data, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


def _halves_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return _onednn_refuses(p, dtype, rows) or _too_many(p)


def _halves(codes: Tensor, p: PackedWeight) -> Tensor:
    """Each code + 128, 0 to 255, as the sum of two numbers up to 128: one product of twice as many rows.

    Two products of such a number with a weight add up to between 2 · 128 · −128 = −32768 and 2 · 128 · 127 = 32512, and
    16 bits hold −32768 to 32767: no pair saturates. With numbers up to 255 it would reach −65280.
    """
    unsigned = codes.view(torch.uint8) ^ 128  # [rows, in]
    small = unsigned >> 1  # 0 to 127, and what is left is at most 1 more
    x = torch.cat((small, unsigned - small))  # [2 rows, in]
    products = _unsigned_product(x, 64, p)  # [2 rows, out], float32: exact only up to EXACT
    if p.in_features > COLUMNS_OF_HALVES and bool((products.abs() >= EXACT).any()):
        return _halves_in_parts(x, p)
    return products[: len(codes)].add_(products[len(codes) :])


def _halves_in_parts(x: Tensor, p: PackedWeight) -> Tensor:
    """The same where float32 does not hold the products of x [2 rows, in]: few columns at a time, others at 0."""
    total = torch.zeros((len(x), p.out_features), dtype=torch.float64)
    for start in range(0, p.in_features, COLUMNS_OF_HALVES):
        columns = slice(start, start + COLUMNS_OF_HALVES)
        part = torch.full_like(x, 64)
        part[:, columns] = x[:, columns]
        total += _unsigned_product(part, 64, p)
    return (total[: len(x) // 2] + total[len(x) // 2 :]).float()


# --- this package's own


def _compiled_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return compiled_integers.refuses(p, dtype, rows)


def _compiled(codes: Tensor, p: PackedWeight) -> Tensor:
    return compiled_integers.run(codes, p, compiled.load())


# --- floats


def _float32_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return _not_rows(p)


def _float32(codes: Tensor, p: PackedWeight) -> Tensor:
    x = scratch("activations", tuple(codes.shape), torch.float32).copy_(codes)  # [rows, in]
    y = torch.empty((len(codes), p.out_features))
    step = max(1, CHUNK_BYTES // (4 * COLUMNS_OF_FLOATS))
    for some, to in zip(p.data.split(step), y.split(step, dim=1), strict=True):  # [≤ step, in], [rows, ≤ step]
        parts = list(zip(x.split(COLUMNS_OF_FLOATS, dim=1), some.split(COLUMNS_OF_FLOATS, dim=1), strict=True))
        sums = scratch("sums", (len(codes), len(some)), torch.float64)
        part = scratch("part", (len(codes), len(some)), torch.float32)
        for i, (columns, weights) in enumerate(parts):
            w = scratch("workspace", tuple(weights.shape), torch.float32).copy_(weights)
            torch.mm(columns, w.t(), out=part)
            sums.copy_(part) if i == 0 else sums.add_(part)
        to.copy_(sums)
    return y


# --- PyTorch's operator, and the last resort


def _int_mm_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return _not_rows(p)


def _int_mm(codes: Tensor, p: PackedWeight) -> Tensor:
    # a dimension of size 1 may have any stride; torch._int_mm multiplies nothing where it is unusual (PyTorch #195066)
    codes = codes.flatten().view(codes.shape)  # [rows, in]
    weight = p.data.t() if p.in_features > 1 else p.data.flatten().view(1, -1)  # [in, out]
    return torch._int_mm(codes, weight).float()  # [rows, out]


ONEDNN = Kernel("onednn", _onednn_refuses, _onednn, guarded=False)
HALVES = Kernel("onednn halves", _halves_refuses, _halves, guarded=False)
COMPILED = Kernel("compiled integers", _compiled_refuses, _compiled)
FLOAT32 = Kernel("float32", _float32_refuses, _float32, guarded=False)
INT8_KERNELS = (
    ONEDNN,
    HALVES,
    COMPILED,
    FLOAT32,
    Kernel("int_mm", _int_mm_refuses, _int_mm, guarded=False),
    Kernel("naive int8", lambda p, dtype, rows: None, run_reference, guarded=False),
)
INT8_LAYOUTS = ((ONEDNN, "onednn"), (COMPILED, "rows"), (HALVES, "onednn"), (FLOAT32, "rows"))  # the fastest first
