"""Numbers that eight bits cannot hold, as several int8 matrices. Start from :func:`digits`."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.methods.llm_int8 import ROW_INT8
from quantlib.numerics.quantize import QuantizedTensor
from quantlib.numerics.rounding import working_dtype


def digits(x: Tensor, count: int) -> list[QuantizedTensor]:
    """x [tokens, in] as the sum of `count` int8 matrices, each the codes of what those before it missed.

    Every row's step is its largest magnitude / 127 in the first, and 1/254 of the one before in each further. So two
    miss at most 1.6e-5 of a row's largest value, three 6.2e-8. Integer products can thus take numbers
    that eight bits cannot hold. x must be finite.
    """
    rest = x.to(working_dtype(x.dtype))
    step = rest.abs().amax(1, keepdim=True) / ROW_INT8.qmax  # [tokens, 1]
    step = torch.where(step > 0, step, 1.0)
    found = []
    for _ in range(count):
        codes = (rest / step).round_().clamp_(ROW_INT8.qmin, ROW_INT8.qmax)
        found.append(QuantizedTensor.of_clamped(codes.to(torch.int8), step, None, None, ROW_INT8))
        rest = rest - codes * step
        step = (step / (2 * ROW_INT8.qmax)).clamp(min=torch.finfo(step.dtype).tiny)
    return found
