"""MixedInt8Linear against the plain decomposition, at every corner, and that it really multiplies integers."""

import copy
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import nn
from torch.profiler import ProfilerActivity, profile

from quantlib.kernels import explain, fields, pack_weight, usable
from quantlib.kernels.cpu import ladder as cpu
from quantlib.layers.mixed import MixedInt8Linear
from quantlib.methods.llm_int8 import matmul_mixed

ONEDNN = cpu.INT8_KERNELS[0]


def case(out, columns, tokens, seed=0, bias=True, outliers=()):
    generator = torch.Generator().manual_seed(seed)
    linear = nn.Linear(columns, out, bias=bias)
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) / columns**0.5)
    x = torch.randn((tokens, columns), generator=generator)
    x[:, list(outliers)] *= 30
    return linear, x


def reference(layer, linear, x):
    kept = linear.weight if layer.float_weight is not None else None
    y = matmul_mixed(x, layer.quantized(), layer.threshold, kept)
    return y if linear.bias is None else y + linear.bias.double()


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 150), st.integers(0, 20), st.integers(0, 999), st.booleans(),
    st.sampled_from([None, 0.0, 1.0, 2.5, 6.0, 1e6]), st.booleans(),
)  # fmt: skip
def test_a_layer_is_the_plain_decomposition(out, columns, tokens, seed, bias, threshold, keep_float):
    linear, x = case(out, columns, tokens, seed, bias, outliers=[seed % columns])
    layer = MixedInt8Linear.from_float(linear, threshold, keep_float=keep_float)
    y, expected = layer(x), reference(layer, linear, x)
    assert y.shape == expected.shape and y.dtype == x.dtype
    size = x.abs().double() @ linear.weight.abs().double().t() + 1
    assert bool(((y - expected).abs() <= 2e-6 * columns**0.5 * size).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("tokens, outliers", [(1, 3), (1, 4), (1, 200), (2, 40), (5, 100), (20, 40)])
def test_few_tokens_with_many_outliers_take_another_way_to_the_same_result(dtype, tokens, outliers):
    linear, x = case(48, 256, tokens, outliers=range(outliers))
    x[:, :outliers] += 20 * x[:, :outliers].sign()
    x = x.to(dtype)
    layer = MixedInt8Linear.from_float(linear, 6.0)
    expected = reference(layer, linear, x)
    size = x.abs().double() @ linear.weight.abs().double().t() + 1
    eps = torch.finfo(dtype).eps if dtype.itemsize == 2 else 4e-7
    assert bool(((layer(x) - expected).abs() <= (eps + 2e-5 * (dtype.itemsize == 2)) * size).all())


def test_an_infinite_outlier_among_many_stays_infinite():
    linear, x = case(16, 64, 1, outliers=range(40))
    x[0, :40] += 20 * x[0, :40].sign()
    x[0, 7] = torch.inf
    layer = MixedInt8Linear.from_float(linear, 6.0)
    assert layer(x).isinf().all() and reference(layer, linear, x).isinf().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_values_near_its_end(dtype):
    linear, x = case(16, 32, 4)
    x = (x * 1e4).clamp(-6e4, 6e4).to(dtype)
    for threshold in (None, 6.0):
        layer = MixedInt8Linear.from_float(linear, threshold).to(dtype)
        y, expected = layer(x), reference(layer, linear, x)
        assert y.dtype == dtype and torch.isfinite(y).all() == (expected.abs().max() < torch.finfo(dtype).max)
        assert torch.allclose(
            y.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=0.01 * expected.abs().max().item()
        )


def test_the_ends_of_the_threshold():
    linear, x = case(24, 64, 9, outliers=[5])
    with torch.no_grad():
        float_result = linear(x)
    q = MixedInt8Linear.from_float(linear, 0.0)
    weight_only = x @ q.quantized().dequantize().t() + linear.bias
    assert torch.allclose(q(x), weight_only, atol=1e-4)
    assert torch.allclose(MixedInt8Linear.from_float(linear, 0.0, keep_float=True)(x), float_result, atol=1e-4)
    w8a8 = MixedInt8Linear.from_float(linear, None)(x)
    assert torch.equal(MixedInt8Linear.from_float(linear, 1e9)(x), w8a8)
    mixed = MixedInt8Linear.from_float(linear, 6.0, keep_float=True)(x)
    assert (mixed - float_result).norm() < 0.2 * (w8a8 - float_result).norm()


@pytest.mark.parametrize("threshold", [None, 6.0])
def test_the_operator_that_runs_multiplies_integers(threshold):
    linear, x = case(1024, 1024, 64, outliers=[3])
    layer = MixedInt8Linear.from_float(linear, threshold)
    layer(x)
    if layer.packed.layout != "onednn" or usable(ONEDNN, layer.packed, torch.zeros(1, 1024, dtype=torch.int8)):
        assert re.search(r"^  onednn +wrong on this CPU", explain(layer, 64), flags=re.MULTILINE)
        return
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as watched:
        layer(x)
    ran = [(event.key, event.input_shapes) for event in watched.key_averages(group_by_input_shape=True)]
    assert any("qlinear_pointwise" in name for name, _ in ran), ran
    for name, shapes in ran:  # no operator multiplies floats by a matrix as large as the weight
        assert name not in ("aten::mm", "aten::addmm", "aten::linear") or [1024, 1024] not in shapes, (name, shapes)


def test_nothing_is_kept_twice():
    linear, _ = case(64, 128, 1)
    layer = MixedInt8Linear.from_float(linear)
    kept = sum(b.nbytes for b in layer.buffers())
    assert kept <= 1.02 * layer.quantized().nbytes and layer.float_weight is None
    assert sum(b.nbytes for b in MixedInt8Linear.from_float(linear, keep_float=True).buffers()) == kept + 64 * 128 * 4


@pytest.mark.parametrize("shape", [(64,), (0, 64), (2, 3, 64), (1, 0, 64)])
def test_any_leading_shape(shape):
    linear, _ = case(8, 64, 1)
    assert MixedInt8Linear.from_float(linear)(torch.randn(shape)).shape == (*shape[:-1], 8)


def test_nan_and_infinity_spoil_their_rows_only():
    linear, x = case(8, 16, 4)
    x[0, 0], x[1, 1] = torch.nan, torch.inf
    for threshold in (None, 6.0):
        y = MixedInt8Linear.from_float(linear, threshold)(x)
        assert not torch.isfinite(y[:2]).any() and torch.isfinite(y[2:]).all()


@pytest.mark.parametrize("keep_float", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 6.0])
def test_saved_copied_moved(keep_float, threshold):
    linear, x = case(32, 64, 5, outliers=[1])
    layer = MixedInt8Linear.from_float(linear, threshold, keep_float=keep_float)
    expected = layer(x)
    twin = copy.deepcopy(layer)
    state = load(save({k: v.contiguous() for k, v in layer.state_dict().items()}))
    other = MixedInt8Linear.from_float(case(32, 64, 1, seed=9)[0], 3.0, keep_float=keep_float)
    other.load_state_dict(state)
    assert other.threshold == threshold and other(x).equal(expected) and twin(x).equal(expected)
    assert layer.to(torch.bfloat16).scale.dtype == torch.float32 and layer.packed.layout == twin.packed.layout
    assert layer(x.bfloat16()).dtype == torch.bfloat16


def test_gradients_are_those_of_the_rounded_weight():
    linear, x = case(8, 32, 5)
    layer = MixedInt8Linear.from_float(linear)
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, torch.ones(5, 8) @ layer.quantized().dequantize(), atol=1e-5)


@pytest.mark.parametrize("threshold", [None, 0.0, 6.0])
@pytest.mark.parametrize("keep_float", [False, True])
def test_torch_compile_needs_no_graph_break(threshold, keep_float):
    torch._dynamo.reset()
    linear, x = case(8, 32, 5, outliers=[3])
    layer = MixedInt8Linear.from_float(linear, threshold, keep_float=keep_float)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(compiled(x), layer(x), atol=1e-5)
        assert torch.allclose(compiled(x / 50), layer(x / 50), atol=1e-5)  # without outliers, and not traced again
    x.requires_grad_()
    compiled(x).sum().backward()
    assert torch.allclose(x.grad, torch.ones(5, 8) @ layer.quantized().dequantize(), atol=1e-5)


@pytest.mark.parametrize("threshold", [None, 6.0])
def test_the_operator_is_what_its_schema_says(threshold):
    linear, x = case(8, 32, 5, outliers=[3])
    q = MixedInt8Linear.from_float(linear, threshold).quantized()
    packed = fields(pack_weight(q, layout="rows"))  # oneDNN's blocks have no storage that could be compared
    for rows in (x, x.clone().requires_grad_(), x[:0]):
        torch.library.opcheck(torch.ops.quantlib.mixed_product.default, (rows, *packed, threshold, None))


def test_wrong_arguments_are_named():
    linear, _ = case(8, 32, 1)
    for arguments, error, words in (
        ((nn.ReLU(),), TypeError, "linear must be a torch.nn.Linear"),
        ((linear, -1.0), ValueError, "threshold must be at least 0"),
    ):
        with pytest.raises(error, match=words):
            MixedInt8Linear.from_float(*arguments)
    with pytest.raises(ValueError, match="x must end in the 32 features"):
        MixedInt8Linear.from_float(linear)(torch.zeros(2, 31))
    with pytest.raises(TypeError, match="x must be a floating-point tensor"):
        MixedInt8Linear.from_float(linear)(torch.zeros(2, 32, dtype=torch.int64))
