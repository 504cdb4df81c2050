"""Weights in dtypes that PyTorch stores and does not compute in are float32 on their way in; the rest is refused."""

import pytest
import torch

from quantlib import Grid, Int8Linear, MixedInt8Linear, mse_clip, quantize
from quantlib.numerics.floats import FLOATS, floats, is_float
from quantlib.numerics.quantize import QuantizedTensor

FLOAT8 = sorted((d for n in dir(torch) if isinstance(d := getattr(torch, n), torch.dtype) and "float8" in n), key=str)
NO_FLOATS = [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64, torch.float4_e2m1fn_x2]


def weight(dtype, rows=8, columns=64):
    return torch.randn((rows, columns), generator=torch.Generator().manual_seed(0)).abs().add(0.01).to(dtype)


def test_there_are_float8_dtypes():
    assert {torch.float8_e4m3fn, torch.float8_e5m2} <= set(FLOAT8) and not set(FLOAT8) & set(FLOATS)


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
@pytest.mark.parametrize("grid", [Grid(4), Grid(8, 32), Grid(3, "tensor", symmetric=False)], ids=str)
def test_float8_is_quantized_as_the_float32_it_stands_for(dtype, grid):
    w = weight(dtype)
    before = w.view(torch.uint8).clone()
    q, wide = quantize(w, grid), quantize(w.float(), grid)
    assert q.codes.equal(wide.codes) and q.scale.equal(wide.scale)
    clip = mse_clip(w, grid)
    assert clip.equal(mse_clip(w.float(), grid)) and w.view(torch.uint8).equal(before)
    assert quantize(w, grid, clip=clip).codes.equal(quantize(w.float(), grid, clip=clip).codes)
    assert q.dequantize(torch.float8_e5m2).dtype == torch.float8_e5m2


@pytest.mark.parametrize("dtype", NO_FLOATS, ids=str)
@pytest.mark.parametrize("call", [lambda w: quantize(w, Grid(4)), lambda w: mse_clip(w, Grid(4))])
def test_what_is_no_float_is_refused_in_a_sentence(dtype, call):
    w = torch.zeros(8, 64, dtype=torch.uint8).view(dtype) if dtype.itemsize == 1 else torch.zeros(8, 64, dtype=dtype)
    with pytest.raises(TypeError, match=f"^w must be a floating-point tensor, got a {dtype} tensor: ") as caught:
        call(w)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("given", [None, [[1.0]], 3.5, "w"])
def test_what_is_no_tensor_is_refused(given):
    with pytest.raises(TypeError, match="^w must be a floating-point tensor, got .*: pass a torch.Tensor"):
        quantize(given, Grid(4))


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.int8, "float16", None], ids=str)
def test_scales_are_kept_in_no_such_dtype(dtype):
    with pytest.raises(TypeError, match="^scale_dtype must be a floating-point dtype that can be computed with, got .*"):
        quantize(torch.ones(2, 2), Grid(4), scale_dtype=dtype)
    if dtype in FLOAT8:
        with pytest.raises(TypeError, match="^scale must be a floating-point tensor that can be computed with"):
            QuantizedTensor(torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 1).to(dtype), None, None, Grid(4))


@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_layers_of_float8_weights_and_biases(dtype):
    w, bias = weight(dtype, 64, 64), weight(dtype, 1, 64)[0]
    plain = torch.nn.Linear(64, 64)
    plain.weight, plain.bias = (torch.nn.Parameter(t, requires_grad=False) for t in (w, bias))
    x = torch.randn(3, 64)
    expected = x @ w.float().t() + bias.float()
    for layer in (
        Int8Linear.from_quantized(quantize(w, Grid(8)), bias),
        MixedInt8Linear.from_float(plain),
        MixedInt8Linear.from_float(plain, 1.0, keep_float=True),
    ):
        assert layer.float_dtype == torch.float32 and layer.weight.dtype == torch.float32
        assert torch.allclose(layer(x), expected, atol=0.05 * expected.abs().max().item())
        with pytest.raises(TypeError, match=r"^x must be a floating-point tensor, got torch.float8_.*: call x.float\(\)"):
            layer(x.to(torch.float8_e5m2))


def test_floats_costs_nothing_where_nothing_is_to_do():
    for dtype in FLOATS:
        t = torch.zeros(2, dtype=dtype)
        assert floats(t, "t") is t and is_float(dtype)
    assert not is_float(torch.float8_e4m3fn) and not is_float(torch.int8) and not is_float("float32")
