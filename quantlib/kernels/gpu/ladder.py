"""The products of packed weights on a CUDA device. Start from :data:`KERNELS`.

The ladder, from the bottom: `naive` turns the matrix into floats and multiplies; `torch.compile` writes the same in one
expression and lets PyTorch's compiler fuse it; `tinygemm` and `_int_mm` are PyTorch's own CUDA operators; the Triton
kernels are this package's, one a format (quantlib.kernels.gpu.triton_w8a16, triton_w4a16, triton_w8a8).

Which is fastest depends on the rows of x and on the GPU, so nothing here decides: quantlib.kernels.choose measures.
What a kernel refuses is written as a function of a :class:`Capability`, so that it can be asked about any GPU anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from quantlib.kernels.candidates import NAIVE, Kernel, in_float32, only_rows_of_scales, run_reference
from quantlib.kernels.packed import PackedWeight

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Capability:
    """compute: the GPU's compute capability, as (9, 0); triton: whether the triton package is installed."""

    compute: tuple[int, int]
    triton: bool

    def refuses(self, compute: tuple[int, int], *, triton: bool = False) -> str | None:
        """Why this machine lacks what a kernel needs; None if it does not."""
        if self.compute < compute:
            needed, given = (".".join(map(str, pair)) for pair in (compute, self.compute))
            return f"it needs compute capability {needed}, this GPU has {given}"
        return "it needs the triton package: pip install triton" if triton and not self.triton else None


Refuses = Callable[[PackedWeight, torch.dtype, int, Capability], "str | None"]


@cache
def capability_of(device: torch.device) -> Capability:
    """What the machine of this CUDA device can do."""
    return Capability(torch.cuda.get_device_capability(device), find_spec("triton") is not None)


def on_this_gpu(refuses: Refuses) -> Callable[[PackedWeight, torch.dtype, int], str | None]:
    """refuses, asked about the GPU that the weight is on."""
    return lambda p, dtype, rows: refuses(p, dtype, rows, capability_of(p.scale.device))


def _not_float(dtype: torch.dtype, allowed: tuple[torch.dtype, ...]) -> str | None:
    if dtype in allowed:
        return None
    return f"it takes {', '.join(map(str, allowed))}, x is {dtype}".replace("torch.", "")


def _not_rows(p: PackedWeight, nibbles: bool) -> str | None:
    if p.layout == "rows" and p.nibbles == nibbles:
        return None
    return (
        f"it reads {'nibbles' if nibbles else 'int8'} in rows, this weight is {p.grid.bits} bits in layout {p.layout}"
    )


# --- one expression, and PyTorch's compiler


def int8_expression(x: Tensor, codes: Tensor, scale: Tensor) -> Tensor:
    """x [rows, in], codes int8 [out, in], scale [out|1, 1]: the whole int8 forward in one line."""
    return F.linear(x, codes.to(x.dtype)) * scale.view(-1).to(x.dtype)


def int4_expression(x: Tensor, data: Tensor, scale: Tensor, zero_point: Tensor | None) -> Tensor:
    """x [rows, in], data uint8 [out, in/2], scale and zero_point [groups, out|1]: unpack, scale, multiply."""
    codes = torch.stack((data & 15, data >> 4), dim=-1).flatten(1).to(x.dtype) - 8  # [out, in]
    grouped = codes.unflatten(1, (scale.shape[0], -1))  # [out, groups, in/groups]
    if zero_point is not None:
        grouped = grouped - zero_point.t().unsqueeze(-1).to(x.dtype)
    return F.linear(x, (grouped * scale.t().unsqueeze(-1).to(x.dtype)).flatten(1))


@cache
def _fused(expression: Callable) -> Callable:
    return torch.compile(expression, dynamic=True)


def compiled_int8_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if dtype == torch.float16:
        return "its sums are scaled only after they were rounded to x's dtype, and overflow float16"
    return (
        _not_rows(p, nibbles=False)
        or only_rows_of_scales(p.grid, p.groups)
        or _not_float(dtype, (torch.bfloat16, torch.float32))
        or gpu.refuses((7, 0), triton=True)
    )


def compiled_int4_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if p.nibbles and p.in_features % 2:
        return f"it unpacks whole bytes, and a row has {p.in_features} codes"
    return _not_rows(p, nibbles=True) or _not_float(dtype, (*HALVES, torch.float32)) or gpu.refuses((7, 0), triton=True)


def run_compiled_int8(x: Tensor, p: PackedWeight) -> Tensor:
    return _fused(int8_expression)(x, p.data, p.scale)


def run_compiled_int4(x: Tensor, p: PackedWeight) -> Tensor:
    return _fused(int4_expression)(x, p.data, p.scale, p.zero_points())


# --- PyTorch's own 4-bit operator


def tinygemm_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if p.layout != "tinygemm":
        return f"it reads the order of tensor cores, this weight is in layout {p.layout}"
    return _not_float(dtype, (torch.bfloat16,)) or gpu.refuses((8, 0))


def run_tinygemm(x: Tensor, p: PackedWeight) -> Tensor:
    pairs = torch.zeros((p.groups, p.out_features, 2), dtype=torch.bfloat16, device=x.device)  # [groups, out, 2]
    pairs[..., 0] = p.scale
    zero_point = p.zero_points()
    if zero_point is not None:
        pairs[..., 1] = -(p.scale.float() * zero_point)  # w = (nibble − 8) · scale + zero
    return torch.ops.aten._weight_int4pack_mm(x, p.data, p.group_size, pairs)


# --- this package's kernels; triton is imported by the first that runs


def triton_w8a16_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    return (
        _not_rows(p, nibbles=False) or _not_float(dtype, (*HALVES, torch.float32)) or gpu.refuses((8, 0), triton=True)
    )


def triton_w4a16_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if p.groups > 1 and p.group_size % 2:
        return f"groups of {p.group_size} begin inside a byte"
    return _not_rows(p, nibbles=True) or _not_float(dtype, (*HALVES, torch.float32)) or gpu.refuses((8, 0), triton=True)


def run_triton_w8a16(x: Tensor, p: PackedWeight, dtype: torch.dtype | None = None) -> Tensor:
    from quantlib.kernels.gpu.triton_w8a16 import w8a16

    return w8a16(x, p.data, p.scale, p.zero_point, dtype)


def run_triton_w4a16(x: Tensor, p: PackedWeight, dtype: torch.dtype | None = None) -> Tensor:
    from quantlib.kernels.gpu.triton_w4a16 import w4a16

    return w4a16(x, p.data, p.scale, p.zero_point, dtype)


def _unrounded(run: Callable) -> Callable[[Tensor, PackedWeight], Tensor]:
    return lambda x, p: run(x, p, torch.float32)


KERNELS = (
    Kernel("triton w4a16", on_this_gpu(triton_w4a16_refuses), run_triton_w4a16, sums=_unrounded(run_triton_w4a16)),
    Kernel("triton w8a16", on_this_gpu(triton_w8a16_refuses), run_triton_w8a16, sums=_unrounded(run_triton_w8a16)),
    Kernel("tinygemm", on_this_gpu(tinygemm_refuses), run_tinygemm),
    Kernel(
        "torch.compile int4",
        on_this_gpu(compiled_int4_refuses),
        run_compiled_int4,
        guarded=False,
        sums=in_float32(run_compiled_int4),
    ),
    Kernel(
        "torch.compile int8",
        on_this_gpu(compiled_int8_refuses),
        run_compiled_int8,
        guarded=False,
        sums=in_float32(run_compiled_int8),
    ),
    NAIVE,
)


# --- integer activations


def triton_w8a8_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if p.in_features >= 2**17:
        return f"int32 does not hold the sum of {p.in_features} products exactly"
    return _not_rows(p, nibbles=False) or gpu.refuses((8, 0), triton=True)


def int_mm_refuses(p: PackedWeight, dtype: torch.dtype, rows: int, gpu: Capability) -> str | None:
    if rows <= 16:
        return f"it takes more than 16 rows, x has {rows}"
    for name, size in (("in", p.in_features), ("out", p.out_features)):
        if size % 8:
            return f"it takes sizes in eights, and {name} is {size}"
    return _not_rows(p, nibbles=False) or gpu.refuses((7, 5))


def run_triton_w8a8(codes: Tensor, p: PackedWeight) -> Tensor:
    from quantlib.kernels.gpu.triton_w8a8 import w8a8

    return w8a8(codes, p.data, dtype=torch.float32)


def run_int_mm(codes: Tensor, p: PackedWeight) -> Tensor:
    return torch._int_mm(codes, p.data.t()).float()  # [rows, out]


INT8_KERNELS = (
    Kernel("triton w8a8", on_this_gpu(triton_w8a8_refuses), run_triton_w8a8),
    Kernel("int_mm", on_this_gpu(int_mm_refuses), run_int_mm),
    Kernel("naive int8", on_this_gpu(lambda p, dtype, rows, gpu: _not_rows(p, nibbles=False)), run_reference),  # CUDA sums no integers itself
)
