"""The oracle: what every kernel has to answer, in plain PyTorch, in any dtype. Start from :func:`linear_reference`.

Nothing here is fast. A kernel is compared with these functions in float64, whose own rounding is 2^29 times finer than
float32's, before it is timed.

Sources: Dettmers et al. 2022 (arXiv:2208.07339), equations 5 and 6, for the integer product with row scales on both
sides; Frantar et al. 2023 (arXiv:2210.17323), section 4, for grouped weights and for the column order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlib.numerics.quantize import QuantizedTensor
from quantlib.numerics.rounding import working_dtype


def linear_reference(
    x: Tensor, q: QuantizedTensor, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """x · Ŵᵀ + bias for any grid, group size and g_idx: x [..., in] -> dtype [..., out].

    Everything is computed in dtype; for float16 and bfloat16 in float32, and rounded once at the end.
    """
    work = working_dtype(dtype)
    return F.linear(x.to(work), q.dequantize(work), None if bias is None else bias.to(work)).to(dtype)


def int8_matmul_reference(codes: Tensor, q: QuantizedTensor) -> Tensor:
    """The products of integer codes: int8 [tokens, in] · int8 [out, in]ᵀ -> int64 [tokens, out], exact.

    Zero points are not subtracted: this is the integer part of equation 6 and belongs to symmetric grids.
    """
    return codes.long() @ q.codes.long().t()


def linear_w8a8_reference(
    x: QuantizedTensor, w: QuantizedTensor, bias: Tensor | None = None, *, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Activations and weights in int8, each row of each with a scale of its own: the product of the integers, scaled.

    x  codes [tokens, in], scale [tokens|1, 1];  w  codes [out, in], scale [out|1, 1];  both symmetric
    returns dtype [tokens, out]: S_x · (X_i8 W_i8ᵀ) · S_w + bias, for 16 bits computed in float32

    Raises ValueError if either has groups or a zero_point: their products need more than one scale a row.
    """
    for name, q in (("x", x), ("w", w)):
        if q.scale.shape[1] != 1 or q.zero_point is not None:
            raise ValueError(f"{name} must be symmetric with one scale a row, got {q.grid}")
    work = working_dtype(dtype)
    products = int8_matmul_reference(x.codes, w).to(work)  # [tokens, out]
    y = products * x.scale.to(work) * w.scale.to(work).t()
    return (y if bias is None else y + bias.to(work)).to(dtype)


def rounding_bound(x: Tensor, q: QuantizedTensor, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
    """How far a kernel that computes in dtype and sums in float32 may be from the float64 reference, [..., out].

    Every factor (x, code · scale, the result) is rounded a few times to dtype's relative precision eps, and the sum in
    float32 adds eps32 for each doubling of its length in a tree, for each term at worst; so the bound is
    (4 eps + sqrt(in) eps32) Σ|x||ŵ| + eps |y|, and what dtype cannot represent below its smallest normal number.
    """
    eps, eps32 = torch.finfo(dtype).eps, torch.finfo(torch.float32).eps
    magnitude = x.double().abs() @ q.dequantize(torch.float64).abs().t()  # [..., out]
    if bias is not None:
        magnitude = magnitude + bias.double().abs()
    sums = max(1, q.shape[1]) ** 0.5 * (eps32 if dtype != torch.float64 else eps)
    return (4 * eps + sums) * magnitude + torch.finfo(dtype).tiny
