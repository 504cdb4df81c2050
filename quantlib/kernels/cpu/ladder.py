"""The products of packed weights on a CPU. Start from :data:`KERNELS`.

The ladder, from the bottom: `naive` turns the matrix into floats and multiplies; `workspace` does so chunk by chunk in
a buffer that stays in cache; `int8pack` and `int4pack` are PyTorch's operators, which unpack in registers; `compiled`
is this package's own C++, where it was built, in floats (quantlib.kernels.cpu.compiled) or in integers
(quantlib.kernels.cpu.compiled_digits). The products of int8 activations are in quantlib.kernels.cpu.integers.

Which is fastest depends on the rows of x and on the CPU, so nothing here decides: quantlib.kernels.choose measures.
Weight-only kernels turn into each other's results at no cost, because all of them read the same bytes.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor

from quantlib.kernels.candidates import NAIVE, Kernel, in_float32, only_rows_of_scales
from quantlib.kernels.cpu import compiled, compiled_digits
from quantlib.kernels.cpu.integers import INT8_KERNELS, INT8_LAYOUTS
from quantlib.kernels.cpu.scratch import CHUNK_BYTES, scratch
from quantlib.kernels.packed import PackedWeight

__all__ = ["INT8_KERNELS", "INT8_LAYOUTS", "KERNELS"]

# --- PyTorch's operators


def _int8pack_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    if p.layout != "rows" or p.nibbles:
        return f"it reads int8 rows, not {p.layout}" + (" of nibbles" if p.nibbles else "")
    if dtype != torch.bfloat16:
        return f"it is fast in bfloat16 only, x is {dtype}".replace("torch.", "")
    if p.in_features % 16:
        return f"it reads beyond the end of a row unless its length is a multiple of 16, and {p.in_features} is not"
    return only_rows_of_scales(p.grid, p.groups)


def _int8pack(x: Tensor, p: PackedWeight) -> Tensor:
    scale = scratch("int8pack", (p.out_features,), torch.bfloat16).copy_(p.scale.view(-1))  # [out]
    return torch.ops.aten._weight_int8pack_mm(x, p.data, scale)


def _int4pack_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    if p.layout != "int4pack":
        return f"it reads PyTorch's int4 order, not {p.layout}"
    return f"it is fast in bfloat16 only, x is {dtype}".replace("torch.", "") if dtype != torch.bfloat16 else None


def _int4pack(x: Tensor, p: PackedWeight) -> Tensor:
    # w = (nibble − 8) · scale + zero, both in bfloat16; kept ready they would take as much again as the scales do
    shape = (p.groups, p.out_features, 2)
    zero_point = p.zero_points()
    if zero_point is None:
        pairs = scratch("int4pack symmetric", shape, torch.bfloat16)  # every second number is 0 and is never written
    else:
        pairs = scratch("int4pack", shape, torch.bfloat16)
        pairs[..., 1] = zero_point * -p.scale.float()
    pairs[..., 0] = p.scale
    data = p.data.view(p.out_features, -1)
    return torch.ops.aten._weight_int4pack_mm_for_cpu(x, data, p.group_size, pairs)


# --- a workspace: floats again, but never more than a cache holds


def _workspace_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    if p.layout == "onednn":
        return "oneDNN's blocks are opaque"
    return None


def _workspace(x: Tensor, p: PackedWeight, dtype: torch.dtype) -> Tensor:
    given, x = x.dtype, x.to(dtype)
    out = (
        scratch("products", (x.shape[0], p.out_features), dtype)
        if given != dtype
        else x.new_empty((x.shape[0], p.out_features))
    )
    per_row = p.in_features * dtype.itemsize
    if p.layout == "int4pack":
        step = max(1, CHUNK_BYTES // (per_row * p.data.shape[2] * 2))  # blocks
        for start in range(0, p.data.shape[0], step):
            rows = slice(start * p.data.shape[2] * 2, (start + step) * p.data.shape[2] * 2)
            torch.mm(x, _int4pack_chunk(p, slice(start, start + step), rows, dtype), out=out[:, rows])
    else:
        step = max(1, CHUNK_BYTES // per_row)
        after = p.groups == 1 and p.grid.symmetric  # one scale a row can be multiplied in after the sum
        for start in range(0, p.out_features, step):
            rows = slice(start, start + step)
            torch.mm(x, _rows_chunk(p, rows, dtype, scaled=not after).t(), out=out[:, rows])
        if after:
            out.mul_(p.scale.view(-1).to(dtype))
    return out.to(given) if given != dtype else out


def _int4pack_chunk(p: PackedWeight, blocks: slice, rows: slice, dtype: torch.dtype) -> Tensor:
    """Columns of Ŵᵀ, [in, rows], from nibbles in PyTorch's order."""
    data = p.data[blocks]  # [blocks, in, B/2]
    shape = (
        2,
        data.shape[0],
        p.groups,
        p.group_size,
        data.shape[2],
    )  # low and high nibbles apart: every pass is contiguous
    codes, w = scratch("codes", shape, torch.int8), scratch("floats", shape, dtype)
    for half, nibbles in enumerate((data & 15, data >> 4)):
        torch.sub(nibbles.view(torch.int8), 8, out=codes[half].view(data.shape))
    zero_point = p.zero_points()
    if zero_point is not None:
        codes.sub_(_beside(zero_point[:, rows], shape))
    w.copy_(codes).mul_(_beside(p.scale[:, rows].to(dtype), shape))
    columns = w.view(2, data.shape[0], p.in_features, -1).transpose(0, 1).flatten(0, 1).unbind()  # each [in, B/2]
    return torch.cat(columns, dim=1, out=scratch("workspace", (p.in_features, len(columns) * data.shape[2]), dtype))


def _beside(values: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Values [groups, rows] of the groups, as they broadcast to [2, blocks, groups, in/groups, B/2]."""
    if values.shape[1] == 1:  # the whole matrix shares them
        return values.view(1, 1, -1, 1, 1)
    return values.view(-1, shape[1], 2, 1, shape[4]).permute(2, 1, 0, 3, 4)


def _rows_chunk(p: PackedWeight, rows: slice, dtype: torch.dtype, scaled: bool) -> Tensor:
    """Rows of Ŵ, [rows, in], or of its codes if not scaled."""
    data = p.data[rows]
    w = scratch("workspace", (data.shape[0], data.shape[1] * (2 if p.nibbles else 1)), dtype)  # [rows, in or in + 1]
    if p.nibbles:
        w[:, 0::2], w[:, 1::2] = data & 15, data >> 4
        w.sub_(8)
        w = w[:, : p.in_features]
    else:
        w.copy_(data)
    if not scaled:
        return w
    scale, zero_point = p.scale, p.zero_points()
    if p.nibbles:
        scale, zero_point = scale.t(), None if zero_point is None else zero_point.t()
    each = slice(None) if scale.shape[0] == 1 else rows
    grouped = w.unflatten(1, (p.groups, -1))  # [rows, groups, in/groups]
    if zero_point is not None:
        grouped.sub_(zero_point[each, :, None].to(dtype))
    grouped.mul_(scale[each, :, None].to(dtype))
    return w


def _workspace_fp32_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    return "x is float64" if dtype == torch.float64 else _workspace_refuses(p, dtype, rows)


def _workspace_fp32(x: Tensor, p: PackedWeight) -> Tensor:
    return _workspace(x, p, torch.float32)


def multiplies_bfloat16() -> bool:
    """Whether bfloat16 has an x86 CPU's vectors; without AVX-512 a product of matrices takes seconds instead of a few ms."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not x86 or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def _workspace_bf16_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    if dtype != torch.bfloat16:
        return f"it rounds to bfloat16, x is {dtype}".replace("torch.", "")
    if not multiplies_bfloat16():
        return "PyTorch has no fast product of bfloat16 for this CPU"
    return _workspace_refuses(p, dtype, rows)


# --- this package's own


def _compiled_refuses(p: PackedWeight, dtype: torch.dtype, rows: int) -> str | None:
    if not compiled.available():
        return "it was not built: python -m quantlib build"
    if p.layout not in ("int4pack", "rows") or (p.layout == "rows" and p.nibbles):
        return f"it reads PyTorch's int4 order and int8 rows, not {p.layout}" + (" of nibbles" if p.nibbles else "")
    if dtype not in (torch.float32, torch.bfloat16):
        return f"it knows float32 and bfloat16, x is {dtype}".replace("torch.", "")
    return only_rows_of_scales(p.grid, p.groups) if p.layout == "rows" else None


def _compiled(x: Tensor, p: PackedWeight) -> Tensor:
    return compiled_digits.in_floats(x, p, compiled.load())


def _digits(x: Tensor, p: PackedWeight) -> Tensor:
    library = compiled.load()
    y = compiled_digits.run(x, p, library)
    return compiled_digits.in_floats(x, p, library) if y is None else y


KERNELS = (
    Kernel("compiled digits", compiled_digits.refuses, _digits),
    Kernel("compiled", _compiled_refuses, _compiled),
    Kernel("int4pack", _int4pack_refuses, _int4pack),
    Kernel("int8pack", _int8pack_refuses, _int8pack),
    Kernel("workspace bf16", _workspace_bf16_refuses, lambda x, p: _workspace(x, p, torch.bfloat16), guarded=False),
    Kernel(
        "workspace fp32", _workspace_fp32_refuses, _workspace_fp32, guarded=False, sums=in_float32(_workspace_fp32)
    ),
    NAIVE,
)
