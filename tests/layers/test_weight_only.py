"""Int8Linear and Int4Linear as modules: moved, copied, saved, traced, differentiated."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_cases import act_ordered, weights
from safetensors.torch import load, save
from torch import nn

from quantlib import Grid, Int4Linear, Int8Linear, MixedInt8Linear, quantize
from quantlib.kernels import fields
from quantlib.kernels.reference import linear_reference, rounding_bound

GRIDS = [
    Grid(8),
    Grid(8, narrow_range=True),
    Grid(6, 32, symmetric=False),
    Grid(4, 32),
    Grid(4, "row"),
    Grid(3, 64, symmetric=False),
]


def layer_of(grid, out=64, columns=128, bias=True, ordered=False):
    generator = torch.Generator().manual_seed(0)
    q = quantize(torch.randn((out, columns), generator=generator), grid)
    q = act_ordered(q, generator) if ordered else q
    kind = Int8Linear if grid.bits > 4 else Int4Linear
    return kind.from_quantized(q, torch.randn(out, generator=generator) if bias else None), q


def close(y, x, layer, q):
    bias = None if layer.bias is None else layer.bias
    bound = rounding_bound(x, q, y.dtype, bias)
    return bool(((y.double() - linear_reference(x, q, bias)).abs() <= bound).all())


@settings(max_examples=40, deadline=None)
@given(q=weights(), leading=st.lists(st.integers(0, 3), max_size=2), with_bias=st.booleans())
def test_a_layer_is_its_weight_and_bias(q, leading, with_bias):
    bias = torch.randn(q.shape[0]) if with_bias else None
    layer = (Int8Linear if q.grid.bits > 4 else Int4Linear).from_quantized(q, bias)
    x = torch.randn(*leading, q.shape[1])
    assert close(layer(x), x, layer, q) and (layer.in_features, layer.out_features) == (q.shape[1], q.shape[0])


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_nothing_but_the_packed_bytes_is_kept(grid):
    layer, q = layer_of(grid, bias=False)
    assert sum(b.nbytes for b in layer.buffers()) <= 1.02 * q.nbytes
    assert not list(layer.parameters())


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_state_dict_round_trip_through_safetensors(grid, ordered):
    layer, q = layer_of(grid, ordered=ordered)
    held = {k: v.contiguous() for k, v in layer.state_dict().items()}
    assert held["codes"].dtype == torch.uint8
    other, _ = layer_of(Grid(8 if grid.bits > 4 else 4))
    other.load_state_dict(load(save(held)))
    again = other.quantized()
    assert again.codes.equal(q.codes) and again.scale.equal(q.scale) and again.grid == q.grid
    x = torch.randn(3, 128)
    assert other(x).equal(layer(x)) or close(other(x), x, layer, q)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda s: s.update(codes=s["codes"][:-1].contiguous()), "63 rows, grid says 64: the checkpoint is truncated"),
        (lambda s: s.update(codes=s["codes"][:, :-1].contiguous()), "take 64 bytes a row, got 63"),
        (lambda s: s.update(scale=s["scale"] * float("nan")), "a scale is not a positive number"),
        (
            lambda s: s.update(grid=s["grid"] + torch.tensor([9, 0, 0, 0, 0, 0], dtype=torch.int32)),
            "bits must be from 2 to 8",
        ),
        (lambda s: s.update(grid=s["grid"][:3]), r"grid must be int32 \[6\]"),
        (lambda s: s.pop("scale"), "Missing key"),
        (lambda s: s.update(extra=torch.ones(1)), "Unexpected key"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage, words):
    layer, q = layer_of(Grid(4, 32), bias=False)
    state = dict(layer.state_dict())
    damage(state)
    with pytest.raises(RuntimeError, match=words):
        layer.load_state_dict(state)
    assert layer.quantized().codes.equal(q.codes) and layer.quantized().scale.equal(q.scale)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_to_a_dtype_changes_the_bias_and_never_the_weight(grid):
    layer, q = layer_of(grid)
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.float32):
        layer = layer.to(dtype)
        assert layer.bias.dtype == dtype and layer.quantized().scale.dtype == torch.float16
        assert layer.quantized().scale.equal(q.scale) and layer.quantized().codes.equal(q.codes)
        x = torch.randn(2, 128).to(dtype)
        assert layer(x).dtype == dtype and close(layer(x), x, layer, q)


def test_to_another_device_and_back_through_meta():
    layer, _ = layer_of(Grid(4, 32))
    meta = copy.deepcopy(layer).to("meta")
    assert all(b.is_meta for b in meta.buffers()) and meta.bias.is_meta
    real = meta.to_empty(device="cpu")
    real.load_state_dict(layer.state_dict())
    x = torch.randn(2, 128)
    assert real(x).equal(layer(x)) or torch.allclose(real(x), layer(x), atol=1e-4)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_deep_copy_is_independent(grid):
    layer, q = layer_of(grid)
    twin = copy.deepcopy(layer)
    layer.data.zero_()
    layer.scale.zero_()
    assert twin.quantized().codes.equal(q.codes) and twin.quantized().scale.equal(q.scale)
    assert twin.packed.data is twin.data


@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("ordered", [False, True])
def test_gradients_reach_the_input_and_the_bias(grid, ordered):
    layer, q = layer_of(grid, ordered=ordered)
    layer.bias.requires_grad_()
    x = torch.randn(2, 3, 128, requires_grad=True)
    weight = torch.randn(2, 3, 64)
    (layer(x) * weight).sum().backward()
    expected = weight.double() @ q.dequantize(torch.float64)
    assert torch.allclose(x.grad.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.allclose(layer.bias.grad, weight.sum((0, 1)), atol=1e-5)


def test_inference_mode_and_autocast():
    layer, q = layer_of(Grid(4, 32))
    x = torch.randn(2, 128)
    with torch.inference_mode():
        assert close(layer(x), x, layer, q)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16 and torch.nn.Linear(128, 4)(x).dtype == torch.bfloat16


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_torch_compile_needs_no_graph_break(grid):
    torch._dynamo.reset()
    layer, _ = layer_of(grid)
    model = torch.compile(torch.nn.Sequential(layer, torch.nn.ReLU()), fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 128)
    with torch.no_grad():
        assert torch.allclose(model(x), layer(x).relu(), atol=1e-4)
    x.requires_grad_()
    model(x).sum().backward()
    assert x.grad.shape == x.shape and x.grad.abs().sum() > 0


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_the_operator_is_what_its_schema_says(grid):
    layer, _ = layer_of(grid)
    for x in (torch.randn(2, 3, 128, requires_grad=True), torch.randn(128), torch.randn(0, 128)):
        torch.library.opcheck(torch.ops.quantlib.product.default, (x, *fields(layer.packed)))


def test_what_torch_save_keeps_of_a_state_dict_loads_without_pickle():
    layer, _ = layer_of(Grid(8))
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    layer.load_state_dict(torch.load(file, weights_only=True))


def test_wrong_arguments_are_named():
    q4, q8 = (quantize(torch.randn(4, 32), Grid(bits)) for bits in (4, 8))
    with pytest.raises(ValueError, match="Int8Linear holds codes of 5 to 8 bits, got 4: use Int4Linear"):
        Int8Linear.from_quantized(q4)
    with pytest.raises(ValueError, match="use Int8Linear"):
        Int4Linear.from_quantized(q8)
    with pytest.raises(ValueError, match=r"bias must be floating-point \[4\]"):
        Int8Linear.from_quantized(q8, torch.zeros(5))
    with pytest.raises(TypeError, match="q must be a QuantizedTensor"):
        Int8Linear.from_quantized(torch.zeros(4, 4))


def saved(layer):
    held = io.BytesIO()
    torch.save(layer, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


def in_another_process(layer):
    """Its answer there: what is sent is pickled."""
    script = "import pickle, sys; layer, x = pickle.load(sys.stdin.buffer); sys.stdout.buffer.write(pickle.dumps(layer(x)))"
    x = torch.ones(2, layer.in_features)
    done = subprocess.run([sys.executable, "-c", script], input=pickle.dumps((layer, x)), capture_output=True, check=True)
    return pickle.loads(done.stdout)


MAKERS = {
    "LLM.int8()": lambda: MixedInt8Linear.from_float(nn.Linear(128, 64), keep_float=True),
    "W8A8": lambda: MixedInt8Linear.from_float(nn.Linear(128, 64, bias=False), None),
    "int8": lambda: layer_of(Grid(8))[0],
    "int4": lambda: layer_of(Grid(4, 32), ordered=True)[0],
}


@pytest.mark.parametrize("name", MAKERS)
def test_pickles_hold_canonical_codes(name):
    torch.manual_seed(0)
    layer, x = MAKERS[name]().to(torch.bfloat16).to(torch.float32), torch.randn(3, 128)
    x[:, 5] *= 20
    state = layer.__getstate__()
    assert "packed" not in state and not set(state["_buffers"]) & {"data", "scale", "zero_point", "order"}
    again = saved(layer)
    assert again(x).equal(layer(x)) and again.packed.layout == layer.packed.layout
    q = layer.quantized()
    assert again.quantized().codes.equal(q.codes) and again.extra_repr() == layer.extra_repr()
    assert again.state_dict().keys() == layer.state_dict().keys() and saved(nn.Sequential(layer))[0](x).equal(layer(x))
    layer.share_memory()
    assert layer(x).equal(again(x)) and copy.deepcopy(again)(x).equal(layer(x))
    assert again.to("meta").to_empty(device="cpu").in_features == 128


@pytest.mark.parametrize("name", MAKERS)
def test_memory_that_is_not_yet_filled_is_no_fault(name):
    """What to_empty leaves may be anything, codes outside the grid among it, until a state_dict is loaded."""
    torch.manual_seed(0)
    layer, x = MAKERS[name](), torch.randn(3, 128)
    state, y = layer.state_dict(), layer(x)
    emptied = layer.to("meta").to_empty(device="cpu")
    emptied._apply(lambda t: torch.full_like(t, 1 if t.is_floating_point() else torch.iinfo(t.dtype).min))
    emptied.load_state_dict(state)
    assert emptied(x).equal(y)


def test_a_layer_is_sent_to_another_process():
    layer = MixedInt8Linear.from_float(nn.Linear(128, 64))
    assert in_another_process(layer).allclose(layer(torch.ones(2, 128)), rtol=1e-4, atol=1e-5)
