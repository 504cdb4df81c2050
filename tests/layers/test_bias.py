"""A bias is added in float32, and what comes out is rounded once, in every kind of layer and by every kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from quantlib import Grid, Int4Linear, Int8Linear, MixedInt8Linear, linear, quantize
from quantlib.kernels import forget, pack_weight
from quantlib.kernels.candidates import NAIVE, REFERENCE
from quantlib.kernels.cpu import ladder as cpu
from quantlib.kernels.gpu import ladder as gpu
from quantlib.kernels.reference import linear_reference, linear_w8a8_reference
from quantlib.methods.llm_int8 import ROW_INT8, matmul_mixed, quantize_rows
from quantlib.models.convert import RTN, LLMInt8, quantize_model

HALF = torch.float16


def plain(out=64, columns=64, weight=16.0, bias=-10_000.0):
    """Its product, 67,584 beside x = 66, is no float16; with the bias it is."""
    layer = nn.Linear(columns, out)
    layer.weight.data.fill_(weight)
    layer.bias.data.fill_(bias)
    return layer.to(HALF)


MAKES = {
    "int8": lambda l: Int8Linear.from_quantized(quantize(l.weight, Grid(8)), l.bias),
    "int8 in groups": lambda l: Int8Linear.from_quantized(quantize(l.weight, Grid(8, 32)), l.bias),
    "int8 shifted": lambda l: Int8Linear.from_quantized(quantize(l.weight, Grid(8, symmetric=False)), l.bias),
    "int4": lambda l: Int4Linear.from_quantized(quantize(l.weight, Grid(4, 32)), l.bias),
    "int4 in rows": lambda l: Int4Linear.from_quantized(quantize(l.weight, Grid(4)), l.bias),
    "int4 shifted": lambda l: Int4Linear.from_quantized(quantize(l.weight, Grid(4, 32, symmetric=False)), l.bias),
    "LLM.int8()": lambda l: MixedInt8Linear.from_float(l, 6.0),
    "LLM.int8(), floats kept": lambda l: MixedInt8Linear.from_float(l, 6.0, keep_float=True),
    "W8A8": lambda l: MixedInt8Linear.from_float(l, None),
}


def expected(layer, x):
    """float64, rounded once."""
    if isinstance(layer, MixedInt8Linear):
        floats = None if layer.float_weight is None else layer.float_weight
        y = matmul_mixed(x.reshape(-1, x.shape[-1]), layer.quantized(), layer.threshold, floats)
        return (y + layer.bias.double()).view(*x.shape[:-1], -1)
    return linear_reference(x, layer.quantized(), layer.bias)


def right(y, layer, x):
    return y.dtype == x.dtype and torch.allclose(y.double(), expected(layer, x), rtol=torch.finfo(x.dtype).eps, atol=0)


@pytest.mark.parametrize("kind", MAKES)
@pytest.mark.parametrize("value", [66.0, -66.0])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 20)])
def test_what_overflows_float16_before_the_bias_does_not_after_it(kind, value, shape):
    layer = MAKES[kind](plain(bias=-10_000.0 if value > 0 else 10_000.0))
    x = torch.full((*shape, 64), value, dtype=HALF)
    assert right(layer(x), layer, x)


@pytest.mark.parametrize("out", [63, 64, 7])
@pytest.mark.parametrize(("weight", "bias", "value"), [(0.5, 30_000.0, -2_900.0), (-200.0, 60_000.0, 9.0)])
@pytest.mark.parametrize("kind", MAKES)
def test_other_shapes_and_numbers(kind, out, weight, bias, value):
    layer = MAKES[kind](plain(out, weight=weight, bias=bias))
    x = torch.full((2, 64), value, dtype=HALF)
    assert abs(expected(layer, x).abs().max()) < 65_504 < abs(weight * value * 64)
    assert right(layer(x), layer, x)


@pytest.mark.parametrize("kind", MAKES)
def test_so_it_is_with_gradients_under_autocast_and_compiled(kind):
    layer = MAKES[kind](plain())
    x = torch.full((2, 64), 66.0, dtype=HALF)
    wanted = x.clone().requires_grad_()
    y = layer(wanted)
    assert right(y.detach(), layer, x)
    y.sum().backward()
    assert wanted.grad.dtype == HALF and bool(torch.isfinite(wanted.grad).all())
    with torch.autocast("cpu", dtype=HALF):
        assert right(layer(x.float()), layer, x)
    torch._dynamo.reset()
    with torch.no_grad():
        assert right(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer, x)


def test_a_bias_in_float32_is_not_rounded_to_the_dtype_of_x():
    q = quantize(torch.zeros(64, 64), Grid(8))
    for dtype in (HALF, torch.bfloat16):
        bias = torch.full((64,), 1 + torch.finfo(dtype).eps / 2 + 2**-20)  # its own rounding goes up, once
        y = linear(torch.ones(1, 64, dtype=dtype), pack_weight(q), bias)
        assert y.double().unique().item() == 1 + torch.finfo(dtype).eps
    eighth = 1 / 8 + 2**-14  # to be added to 256: in float16 it alone would round to 1/8, and the sum to even
    q = quantize(torch.full((64, 64), 4.0), Grid(8, narrow_range=True), scale_dtype=torch.float32)
    y = linear(torch.ones(1, 64, dtype=HALF), pack_weight(q), torch.full((64,), eighth))
    assert y.double().unique().item() == 256.25


@pytest.mark.parametrize("name", ["naive", "workspace fp32"])
def test_so_it_is_by_every_kernel_of_a_cpu(name, monkeypatch):
    monkeypatch.setenv("QUANTLIB_KERNEL", name)
    x = torch.full((3, 64), 66.0, dtype=HALF)
    for kind in ("int8", "int4", "int4 in rows", "int4 shifted"):
        layer = MAKES[kind](plain())
        assert right(layer(x), layer, x)
        with torch.autocast("cpu", dtype=HALF):
            assert right(layer(x.float()), layer, x)


def test_where_no_kernel_is_right_the_reference_takes_the_bias_too(monkeypatch):
    from quantlib.kernels import choose

    monkeypatch.setattr(choose, "fault_beside", lambda *_: "wrong")
    forget()
    try:
        layer, x = MAKES["int8"](plain()), torch.full((3, 64), 66.0, dtype=HALF)
        assert right(layer(x), layer, x)
    finally:
        forget()


def test_what_takes_float16_gives_its_sums_unrounded():
    for kernel in {*cpu.KERNELS, *gpu.KERNELS, NAIVE, REFERENCE}:
        if kernel.sums is None:  # then it is an operator for bfloat16
            for layout, bits, group in (("rows", 8, "row"), ("rows", 4, 32), ("int4pack", 4, 32)):
                p = pack_weight(quantize(torch.randn(64, 64), Grid(bits, group)), layout=layout)
                if kernel in cpu.KERNELS:
                    assert kernel.refuses(p, HALF, 1), kernel.name
    assert {k.name for k in gpu.KERNELS if k.sums is None} == {"tinygemm"}


@settings(max_examples=100, deadline=None)
@given(
    rows=st.integers(1, 20),
    out=st.sampled_from([1, 63, 64]),
    grid=st.sampled_from([Grid(8), Grid(4, 32), Grid(4), Grid(5, 32, symmetric=False)]),
    cancel=st.floats(0.5, 1),
    seed=st.integers(0, 2**31),
)
def test_a_float16_layer_is_off_by_half_a_step_however_much_the_bias_takes_away(rows, out, grid, cancel, seed):
    g = torch.Generator().manual_seed(seed)
    w, x = torch.rand((out, 64), generator=g), (30 * torch.rand((rows, 64), generator=g)).to(HALF)
    q = quantize(w, grid)
    bias = -cancel * (x[:1].double() @ w.double().t())[0].float()
    y, exact = linear(x, pack_weight(q), bias), linear_reference(x, q, bias)
    in_sums = 64 * 2**-23 * (x.double().abs() @ q.dequantize(torch.float64).abs().t())
    step = torch.finfo(HALF).eps * exact.abs().clamp(min=torch.finfo(HALF).smallest_normal)
    assert bool(((y.double() - exact).abs() <= 0.5 * step + in_sums).all())


def test_references_in_16_bits_round_once():
    layer = plain()
    q, x = quantize(layer.weight, ROW_INT8, scale_dtype=torch.float32), torch.full((2, 64), 66.0, dtype=HALF)
    exact = linear_reference(x, q, layer.bias)
    for y in (
        linear_reference(x, q, layer.bias, dtype=HALF),
        linear_w8a8_reference(quantize_rows(x), q, layer.bias, dtype=HALF),
    ):
        assert y.dtype == HALF and torch.allclose(y.double(), exact, rtol=2**-10)


@pytest.mark.parametrize("method", [RTN(Grid(4, 32)), RTN(Grid(8)), LLMInt8()], ids=str)
def test_converted_models_too(method):
    new, _ = quantize_model(nn.Sequential(plain()), method)
    x = torch.full((2, 64), 66.0, dtype=HALF)
    assert right(new(x), new[0], x)
