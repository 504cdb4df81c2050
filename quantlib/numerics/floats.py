"""Which floating-point dtypes are computed with, and the others on their way in. Start from :func:`floats`."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def floats(t: Tensor, name: str) -> Tensor:
    """t in a dtype that PyTorch computes in: itself for FLOATS, float32 for the float8 dtypes, which are for storage.

    Raises TypeError, naming the argument, for what is no tensor, integers, booleans, complex numbers and packed floats.
    """
    if isinstance(t, Tensor):
        if t.dtype in FLOATS:
            return t
        if t.dtype.is_floating_point and t.dtype.itemsize == 1 and "float8" in str(t.dtype):
            return t.to(torch.float32)
        raise TypeError(f"{name} must be a floating-point tensor, got a {t.dtype} tensor: {_remedy(t.dtype, name)}")
    raise TypeError(f"{name} must be a floating-point tensor, got {type(t).__name__}: pass a torch.Tensor")


def is_float(dtype: object) -> bool:
    """Whether numbers in this dtype can be computed with and kept as scales."""
    return dtype in FLOATS


def _remedy(dtype: torch.dtype, name: str) -> str:
    if dtype.is_complex:
        return "weights and activations are real numbers; pass .real and .imag apart"
    if dtype.is_floating_point:
        return "unpack it to float32 first"
    return f"convert it with {name}.float(), or where these are codes make a QuantizedTensor of them and their scales"
