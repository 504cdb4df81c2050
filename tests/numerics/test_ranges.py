"""Codes, zero points and groups outside the grid: refused when a QuantizedTensor is made, and when it is packed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib import Grid, Int4Linear, Int8Linear, MixedInt8Linear, quantize
from quantlib.kernels.packed import LAYOUTS, cannot_hold, pack_weight
from quantlib.methods.llm_int8 import ROW_INT8
from quantlib.numerics.quantize import QuantizedTensor

HERE = torch.device("cpu")


@pytest.mark.parametrize("rows", [64, 63])  # layouts of their own
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (3, 64), (2, "row")])
def test_codes_that_count_from_zero_are_refused_with_what_to_subtract(rows, bits, group):
    grid = Grid(bits, group, symmetric=False)
    q, half = quantize(torch.randn(rows, 64), grid), 2 ** (bits - 1)
    with pytest.raises(ValueError, match=f"codes must lie in {-half} to {half - 1} .* got 0 to .*: subtract {half} "):
        QuantizedTensor(q.codes + half, q.scale, q.zero_point + half, None, grid)
    with pytest.raises(ValueError, match=f"zero_point must lie in {-half} to {half - 1} on Grid"):
        QuantizedTensor(q.codes, q.scale, q.zero_point + half, None, grid)


@settings(max_examples=100, deadline=None)
@given(
    bits=st.integers(2, 8),
    narrow=st.booleans(),
    far=st.integers(1, 120),
    sign=st.sampled_from([-1, 1]),
    rows=st.sampled_from([1, 63, 64]),
    seed=st.integers(0, 1000),
)
def test_one_code_beyond_either_end_is_enough(bits, narrow, far, sign, rows, seed):
    grid = Grid(bits, 32, narrow_range=narrow)
    end = grid.qmax if sign > 0 else grid.qmin
    if not -128 <= end + sign * far <= 127:
        return
    q, g = quantize(torch.randn(rows, 64), grid), torch.Generator().manual_seed(seed)
    codes, place = q.codes.clone(), torch.randint(rows * 64, (), generator=g)
    codes.view(-1)[place] = end
    QuantizedTensor(codes, q.scale, None, None, grid)
    codes.view(-1)[place] = end + sign * far
    with pytest.raises(ValueError, match="codes must lie in"):
        QuantizedTensor(codes, q.scale, None, None, grid)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(3, 32, narrow_range=True), Grid(5), ROW_INT8], ids=str)
def test_what_was_written_into_codes_afterwards_is_packed_into_no_layout(layout, grid):
    q = quantize(torch.randn(64, 128), grid)
    if cannot_hold(layout, q, HERE):
        return
    q.codes[5, 7] = grid.qmin - 1
    with pytest.raises(ValueError, match=f"codes must lie in {grid.qmin} to {grid.qmax}"):
        pack_weight(q, layout=layout)


@pytest.mark.parametrize(
    ("kind", "grid"), [(Int4Linear, Grid(4, 32, symmetric=False)), (Int8Linear, Grid(6, 32, symmetric=False))]
)
@pytest.mark.parametrize("rows", [64, 63])
def test_layers_refuse_what_was_moved_out_of_the_grid(kind, grid, rows):
    q = quantize(torch.randn(rows, 64), grid)
    q.zero_point.add_(2 ** (grid.bits - 1))
    with pytest.raises(ValueError, match="zero_point must lie in"):
        kind.from_quantized(q)
    q = quantize(torch.randn(rows, 64), ROW_INT8, scale_dtype=torch.float32)
    q.codes[0, 0] = -128
    with pytest.raises(ValueError, match="codes must lie in -127 to 127"):
        MixedInt8Linear(q, None, 6.0, None)


def test_a_state_with_codes_beyond_a_narrow_grid_is_refused():
    layer = Int4Linear.from_quantized(quantize(torch.randn(63, 64), Grid(4, 32, narrow_range=True)))
    state = dict(layer.state_dict())
    state["codes"] = state["codes"] * 0  # code −8 everywhere
    with pytest.raises(RuntimeError, match="codes must lie in -7 to 7 .*: the checkpoint is damaged"):
        layer.load_state_dict(state)


@pytest.mark.parametrize("number", [-1, 2, 1000])
def test_a_column_in_no_group_is_refused(number):
    q = quantize(torch.randn(4, 64), Grid(4, 32))
    g_idx = torch.arange(64, dtype=torch.int32) // 32
    QuantizedTensor(q.codes, q.scale, None, g_idx, q.grid)
    g_idx[3] = number
    with pytest.raises(ValueError, match="g_idx must lie in 0 to 1, one of 2 groups"):
        QuantizedTensor(q.codes, q.scale, None, g_idx, q.grid)


def test_empty_and_valueless_codes_are_in_range():
    for device, shape in (("meta", (64, 64)), ("cpu", (0, 64)), ("cpu", (3, 0))):
        q = quantize(torch.empty(shape, device=device), Grid(4, 32, symmetric=False))
        g_idx = torch.zeros(shape[1], dtype=torch.int32, device=device)
        QuantizedTensor(q.codes, q.scale, q.zero_point, g_idx, q.grid)


def test_every_code_of_every_grid_is_in_range():
    for bits in range(2, 9):
        for options in ({}, {"narrow_range": True}, {"symmetric": False}):
            grid = Grid(bits, **options)
            codes = torch.arange(grid.qmin, grid.qmax + 1, dtype=torch.int8)[None]
            for zero in (grid.qmin, grid.qmax):
                zero_point = None if grid.symmetric else torch.tensor([[zero]], dtype=torch.int8)
                QuantizedTensor(codes, torch.ones(1, 1), zero_point, None, grid).dequantize()
