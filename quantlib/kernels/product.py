"""Products with quantized matrices, by the fastest correct kernel of the machine. Start from :func:`linear`.

kernels/reference.py is the oracle, kernels/packed.py the bytes, kernels/cpu.py and kernels/gpu.py the fast paths.
kernels/probes.py asks each at its first use whether it answers right on this machine; kernels/choose.py times those
that do and keeps the fastest. :func:`explain` says which, and why.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from quantlib.kernels.candidates import NAIVE, Kernel
from quantlib.kernels.choose import forget, kernel_for, usable
from quantlib.kernels.packed import PackedWeight, cannot_hold, pack_checked, pack_weight, unpack_weight
from quantlib.kernels.probes import fault_of
from quantlib.numerics.floats import FLOATS
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor

__all__ = [
    "PackedWeight",
    "explain",
    "forget",
    "int8_matmul",
    "kernels_of",
    "linear",
    "pack_for_integers",
    "pack_weight",
    "unpack_weight",
    "usable",
]

HALVES = (torch.bfloat16, torch.float16)


def linear(x: Tensor, packed: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x · Ŵᵀ + bias: x [..., in] -> [..., out] in the dtype of x, which autocast may change, as for torch's linear.

    Any leading shape, 0 rows and 1-D x included. The gradient reaches x and bias; the codes have none. Under
    torch.compile the product is one opaque operator, so that the choice is still made on real tensors.

    The bias is added in float32 (float64 for float64 x) and the result rounded once to the dtype of x; PyTorch's
    operators for bfloat16 round their sums as well.

    Raises TypeError for an x that is not floating-point, ValueError for another width or device than the weight's.
    """
    _check(x, packed)
    device = x.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):  # which would round what kernels compute in float32
            return linear(x, packed, bias)
    traced = torch.compiler.is_compiling()
    if traced or (torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))):
        if bias is None:
            return torch.ops.quantlib.product(x, *fields(packed))
        y = torch.ops.quantlib.product(x, *fields(packed), x.dtype in HALVES)
        return (y + bias.to(y.dtype)).to(x.dtype)
    return _product(x, packed) if bias is None else _product(x, packed, x.dtype in HALVES).add_(bias).to(x.dtype)


def int8_matmul(codes: Tensor, packed: PackedWeight) -> Tensor:
    """The products of integers: codes int8 [rows, in] -> float32 [rows, out], summed in int32, then rounded to float32.

    The multiplication that W8A8 and LLM.int8() are about; scales are the caller's. packed holds 5- to 8-bit symmetric
    codes with one scale a row. Raises TypeError and ValueError as `linear` does.
    """
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise TypeError(
            f"codes must be int8 [rows, in], got {codes.dtype} {list(codes.shape)}: quantize the activations"
        )
    _check_place(codes, packed, "codes")
    if packed.order is not None or packed.groups != 1 or packed.nibbles:
        raise ValueError(f"packed must hold 5- to 8-bit codes with one scale a row, got {packed.grid}")
    if not codes.shape[0] or not packed.out_features or not packed.in_features:
        return torch.zeros((codes.shape[0], packed.out_features), dtype=torch.float32, device=codes.device)
    codes = codes.contiguous()
    return kernel_for(lambda: kernels_of(codes.device, integer=True), codes, packed).run(codes, packed)


def explain(layer: object, rows: int, dtype: torch.dtype | None = None) -> str:
    """Which kernel multiplies so many rows by a layer's weight on this machine, how fast each candidate was, which are
    wrong here, and why the others cannot. Times them first if that has not happened.

    layer  a layer of quantlib.layers.weight_only, or a PackedWeight;  dtype  of x, by default bfloat16; where the layer multiplies integers, int8
    """
    from quantlib.kernels.explained import describe

    packed = getattr(layer, "packed", layer)
    integers = getattr(layer, "integer_products", packed is layer and getattr(packed, "layout", "") == "onednn")
    if not isinstance(packed, PackedWeight):
        raise TypeError(f"layer must be a quantized layer or a PackedWeight, got {type(layer).__name__}")
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise ValueError(f"rows must be a whole number of at least 1, got {rows!r}")
    return describe(packed, rows, torch.int8 if integers else dtype or torch.bfloat16, kernels_of)


def kernels_of(device: torch.device, integer: bool = False) -> tuple[Kernel, ...]:
    """All that could run on a device, in the order in which they are explained."""
    if device.type == "cpu":
        from quantlib.kernels.cpu import ladder as cpu

        return cpu.INT8_KERNELS if integer else cpu.KERNELS
    if device.type == "cuda":
        from quantlib.kernels.gpu import ladder as gpu

        return gpu.INT8_KERNELS if integer else gpu.KERNELS
    return (NAIVE,)


def pack_for_integers(q: QuantizedTensor) -> PackedWeight:
    """8-bit codes with one scale a row, checked before, packed for the fastest integer kernel that answers right here.

    Which kind that is does not depend on the shape; which kernel of the layout then runs is measured (`int8_matmul`).
    """
    device = q.codes.device
    if device.type == "cpu":
        from quantlib.kernels.cpu import ladder as cpu

        for kernel, layout in cpu.INT8_LAYOUTS:
            holds = cannot_hold(layout, q, device) is None
            if holds and fault_of(kernel, layout, q.grid, q.scale.dtype, torch.int8, device) is None:
                return pack_checked(q, layout=layout)
    return pack_checked(q, layout="rows")


def _product(x: Tensor, p: PackedWeight, wide: bool = False) -> Tensor:
    """linear without checks, bias, tracing or gradient. Short: with a row of x it is called for every layer and token.

    wide  x is in 16 bits, and the result shall be in float32, as a bias is added to
    """
    rows = x if x.ndim == 2 else x.reshape(-1, p.in_features)  # [rows, in]
    if not rows.numel() or not p.out_features:
        return x.new_zeros((*x.shape[:-1], p.out_features), dtype=torch.float32 if wide else None)
    if p.order is not None:
        rows = rows.index_select(1, p.order)
    rows = rows.contiguous()
    kernel = kernel_for(lambda: kernels_of(x.device), rows, p)
    y = kernel.sums(rows, p) if wide and kernel.sums is not None else kernel.run(rows, p)  # [rows, out]
    return y if x.ndim == 2 else y.view(*x.shape[:-1], p.out_features)


def _check(x: Tensor, p: PackedWeight) -> None:
    if not isinstance(x, Tensor) or x.dtype not in FLOATS:
        given = getattr(x, "dtype", type(x).__name__)
        raise TypeError(f"x must be a floating-point tensor, got {given}: call x.float()")
    _check_place(x, p, "x")


def _check_place(x: Tensor, p: PackedWeight, name: str) -> None:
    if x.ndim == 0 or x.shape[-1] != p.in_features:
        raise ValueError(f"{name} must end in the {p.in_features} features of the weight, got shape {list(x.shape)}")
    if x.device.type != p.scale.device.type:
        raise ValueError(f"{name} is on {x.device} and the weight on {p.scale.device}: move one with .to(device)")


# --- for torch.compile and for gradients: the product as one operator


def fields(p: PackedWeight) -> tuple:
    """A PackedWeight as the arguments of an operator that WEIGHT declares."""
    grid = p.grid
    options = [grid.bits, int(grid.symmetric), int(grid.narrow_range), p.out_features, p.in_features]
    return p.data, p.scale, p.zero_point, p.order, str(grid.group_size), options, p.layout


def from_fields(data, scale, zero_point, order, group_size, options, layout) -> PackedWeight:
    """The PackedWeight of `fields`."""
    *grid, out_features, in_features = options
    grid = _grid(group_size, *grid)
    return PackedWeight(data, scale, zero_point, order, grid, out_features, in_features, layout)


@cache
def _grid(group_size: str, bits: int, symmetric: int, narrow_range: int) -> Grid:
    group = int(group_size) if group_size.isdigit() else group_size
    return Grid(bits, group, symmetric=bool(symmetric), narrow_range=bool(narrow_range))


# defined by hand: what torch.library.custom_op adds to a call takes as long as a small product
WEIGHT = "Tensor data, Tensor scale, Tensor? zero_point, Tensor? order, str group_size, int[] options, str layout"
_operators = torch.library.Library("quantlib", "DEF")
_operators.define(f"product(Tensor x, {WEIGHT}, bool wide=False) -> Tensor")
_operators.define(f"product_backward(Tensor grad, {WEIGHT}) -> Tensor")


@torch.library.impl(_operators, "product", "CompositeExplicitAutograd")
def _(x: Tensor, data, scale, zero_point, order, group_size, options, layout, wide=False) -> Tensor:
    y = _product(x, from_fields(data, scale, zero_point, order, group_size, options, layout), wide)
    return y.float() if wide else y


@torch.library.register_fake("quantlib::product", lib=_operators)
def _(x, data, scale, zero_point, order, group_size, options, layout, wide=False):
    return x.new_empty((*x.shape[:-1], options[3]), dtype=torch.float32 if wide else None)


@torch.library.impl(_operators, "product_backward", "CompositeExplicitAutograd")
def _(grad: Tensor, *fields) -> Tensor:
    """The gradient of x: grad [..., out] · Ŵ. Packed operators have none of their own."""
    q = unpack_weight(from_fields(*fields))
    work = grad.dtype if grad.dtype != torch.float16 else torch.float32
    return (grad.to(work) @ q.dequantize(work)).to(grad.dtype)


@torch.library.register_fake("quantlib::product_backward", lib=_operators)
def _(grad, data, scale, zero_point, order, group_size, options, layout):
    return grad.new_empty((*grad.shape[:-1], options[4]))


# for code that reads a layer's weight
_operators.define(f"weight({WEIGHT}, ScalarType dtype) -> Tensor")


@torch.library.impl(_operators, "weight", "CompositeExplicitAutograd")
def _(*fields_and_dtype) -> Tensor:
    *fields, dtype = fields_and_dtype
    return unpack_weight(from_fields(*fields)).dequantize(dtype)


@torch.library.register_fake("quantlib::weight", lib=_operators)
def _(data, scale, zero_point, order, group_size, options, layout, dtype):
    return scale.new_empty(options[3:], dtype=dtype)


def _remember(ctx, inputs, output):
    x, data, scale, zero_point, order, *rest = inputs
    ctx.save_for_backward(data, scale, zero_point, order)
    ctx.rest, ctx.dtype, ctx.others = rest[:3], x.dtype, len(inputs) - 1


def _backward(ctx, grad):
    grad_x = None
    if ctx.needs_input_grad[0]:
        grad_x = torch.ops.quantlib.product_backward(grad.to(ctx.dtype), *ctx.saved_tensors, *ctx.rest)
    return grad_x, *[None] * ctx.others


torch.library.register_autograd("quantlib::product", _backward, setup_context=_remember, lib=_operators)
