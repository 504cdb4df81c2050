"""grid.py against an oracle: one group at a time, in plain float64 Python, straight from the definitions."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize

GRIDS = [(True, False), (True, True), (False, False)]


def oracle(values, bits, symmetric, narrow_range, clip=1.0):
    """Codes, scale and zero_point of one group, a list of floats; the scale as float16 keeps it."""
    low, high = min(values), max(values)
    if symmetric:
        reach = max(abs(low), abs(high)) * clip
        scale = reach / (2 ** (bits - 1) - 1) if narrow_range else 2 * reach / (2**bits - 1)
        first, last = -(2 ** (bits - 1)) + narrow_range, 2 ** (bits - 1) - 1
    else:
        scale = (max(high, 0) - min(low, 0)) * clip / (2**bits - 1)
        first, last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = torch.tensor(scale, dtype=torch.float64).half().double().item() if scale else 1.0
    zero_point = 0 if symmetric else min(max(first - round(min(low, 0) * clip / scale), first), last)
    return [min(max(round(v / scale) + zero_point, first), last) for v in values], scale, zero_point


@st.composite
def cases(draw):
    group = draw(st.sampled_from(["row", "tensor", 1, 2, 3, 8, 16]))
    columns = draw(st.integers(1, 6)) * (group if isinstance(group, int) else draw(st.integers(1, 9)))
    rows = draw(st.integers(1, 5))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    w = torch.randn(rows, columns, dtype=torch.float64, generator=generator) * 10.0 ** draw(st.integers(-2, 3))
    w += draw(st.sampled_from([0.0, 1.0, -1.0])) * w.abs().max()  # groups of one sign
    symmetric, narrow_range = draw(st.sampled_from(GRIDS))
    return w, Grid(draw(st.integers(2, 8)), group, symmetric, narrow_range), draw(st.sampled_from([1.0, 0.7]))


@settings(max_examples=300, deadline=None)
@given(cases())
def test_every_group_is_what_the_definition_says(case):
    w, grid, clip = case
    q = quantize(w, grid, clip=clip)
    rows, columns = w.shape
    size = {"tensor": columns, "row": columns}.get(grid.group_size, grid.group_size)
    whole = w.flatten().tolist()
    for i in range(rows):
        for g in range(columns // size):
            values = w[i, g * size : (g + 1) * size].tolist()
            span = whole if grid.group_size == "tensor" else values
            _, scale, zero_point = oracle(span, grid.bits, grid.symmetric, grid.narrow_range, clip)
            row = 0 if grid.group_size == "tensor" else i
            assert q.scale[row, g].item() == scale
            if not grid.symmetric:
                assert q.zero_point[row, g].item() == zero_point
            first, last = grid.qmin, grid.qmax
            expected = [min(max(round(v / scale) + zero_point, first), last) for v in values]
            assert q.codes[i, g * size : (g + 1) * size].tolist() == expected
            got = q.dequantize(torch.float64)[i, g * size : (g + 1) * size]
            torch.testing.assert_close(
                got, torch.tensor([(c - zero_point) * scale for c in expected], dtype=torch.float64)
            )


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_two_symmetric_conventions(bits):
    w = torch.tensor([[-1.0, 1.0, 0.0]])
    full, narrow = (quantize(w, Grid(bits, narrow_range=n), scale_dtype=torch.float64) for n in (False, True))
    assert full.scale.item() == pytest.approx(2 / (2**bits - 1))
    assert narrow.scale.item() == pytest.approx(1 / (2 ** (bits - 1) - 1))
    ends = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    assert full.codes[0, 1:].tolist() == [ends[1], 0]  # 7.5 steps at four bits: no code for it, clamped to 7
    assert full.codes[0, 0].item() in (
        ends[0],
        ends[0] + 1,
    )  # −7.5 steps: a tie, which the last bit of the scale decides
    assert (full.grid.qmin, full.grid.qmax) == ends and full.grid.steps == 2**bits - 1
    assert narrow.codes.tolist() == [[-(2 ** (bits - 1)) + 1, 2 ** (bits - 1) - 1, 0]]


def test_ties_go_to_the_even_code():
    q = quantize(torch.tensor([[7.0, 0.5, 1.5, 2.5, -0.5]]), Grid(4, narrow_range=True))
    assert q.scale.item() == 1 and q.codes.tolist() == [[7, 0, 2, 2, 0]]


def test_an_asymmetric_grid_keeps_zero_exact_and_spans_both_ends():
    w = torch.tensor([[-0.3, 0.0, 2.0], [5.0, 6.0, 7.0], [-4.0, -3.0, -1.0]])
    q = quantize(w, Grid(8, symmetric=False), scale_dtype=torch.float32)
    w_hat = q.dequantize()
    assert w_hat[0, 1] == 0
    assert (w_hat - w).abs().max() <= q.scale.max() / 2 + 1e-6
    assert q.zero_point.flatten().tolist() == [-95, -128, 127]


@pytest.mark.parametrize("symmetric, narrow_range", GRIDS)
@pytest.mark.parametrize("group", ["row", "tensor", 4])
def test_zero_and_constant_rows(group, symmetric, narrow_range):
    w = torch.zeros(2, 8)
    q = quantize(w, Grid(4, group, symmetric, narrow_range))
    assert torch.equal(q.scale, torch.ones_like(q.scale)) and torch.equal(q.dequantize(), w)
    for value in (0.25, -0.25):
        w = torch.full((2, 8), value)
        error = (quantize(w, Grid(4, group, symmetric, narrow_range)).dequantize() - w).abs().max()
        # the full-range grid has no code for +absmax: it lies half a step beyond the last one
        assert error <= (0.5 * 0.5 / 15 + 1e-4 if symmetric and not narrow_range else 2e-4)


def test_groups_of_one_hold_each_weight_to_the_precision_of_its_scale():
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    q = quantize(w, Grid(4, 1, narrow_range=True))
    assert q.scale.shape == (3, 5) and set(q.codes.abs().flatten().tolist()) == {7}
    torch.testing.assert_close(q.dequantize(), w, rtol=2**-10, atol=0)


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
@pytest.mark.parametrize("group", ["row", "tensor", 4])
def test_empty_matrices_stay_empty(shape, group):
    q = quantize(torch.empty(shape), Grid(4, group))
    assert q.codes.shape == shape and q.dequantize().shape == shape
    assert q.scale.shape == Grid(4, group).scale_shape(*shape) and torch.equal(q.scale, torch.ones_like(q.scale))
    assert q.bits_per_weight == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_are_rounded_as_their_float64_value_would_be(dtype):
    w = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    for grid in (Grid(8, narrow_range=True), Grid(4, 32), Grid(3, "tensor", symmetric=False)):
        q, exact = quantize(w, grid), quantize(w.double(), grid)
        torch.testing.assert_close(q.scale, exact.scale, rtol=2**-10, atol=0)
        assert (q.codes != exact.codes).double().mean() < 0.005 and (q.codes - exact.codes).abs().max() <= 1
        for out in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert q.dequantize(out).dtype == out
            torch.testing.assert_close(
                q.dequantize(out).double(),
                q.dequantize(torch.float64),
                rtol=1e-2 if out == torch.bfloat16 else 1e-3,
                atol=1e-6,
            )


def test_non_contiguous_and_grad_requiring_weights_are_read_and_left_alone():
    base = torch.randn(64, 32, generator=torch.Generator().manual_seed(2))
    for w in (base.T, base[::2], base[:, ::2], torch.nn.Parameter(base)):
        before = w.detach().clone()
        q = quantize(w, Grid(4, 8))
        assert torch.equal(q.codes, quantize(before.contiguous(), Grid(4, 8)).codes)
        assert torch.equal(w.detach(), before) and not q.scale.requires_grad


def test_more_rows_than_a_chunk_give_the_same_codes(monkeypatch):
    w = torch.randn(37, 24, generator=torch.Generator().manual_seed(3))
    grids = Grid(4, "row"), Grid(4, "tensor"), Grid(4, 8, symmetric=False)
    whole = [quantize(w, grid) for grid in grids]
    monkeypatch.setattr("quantlib.numerics.rounding.CACHED_ELEMENTS", 100)  # four rows a chunk, the last one short
    for grid, expected in zip(grids, whole, strict=True):
        q = quantize(w, grid)
        assert torch.equal(q.codes, expected.codes) and torch.equal(q.scale, expected.scale)
        assert torch.equal(q.dequantize(), expected.dequantize())


def test_the_meta_device_gives_shapes_and_sizes_without_numbers():
    for grid in (Grid(4, 128), Grid(8), Grid(4, 128, symmetric=False), Grid(4, "tensor")):
        meta, real = quantize(torch.empty(256, 512, device="meta"), grid), quantize(torch.zeros(256, 512), grid)
        assert meta.codes.is_meta and meta.scale.shape == real.scale.shape
        assert (meta.nbytes, meta.bits_per_weight) == (real.nbytes, real.bits_per_weight)
        assert meta.dequantize().shape == (256, 512)


def test_act_order_columns_take_their_own_group():
    w = torch.randn(6, 12, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    for grid in (Grid(4, 4), Grid(4, 4, symmetric=False)):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(5))
        q = quantize(w[:, order], grid)
        back = order.argsort()
        g_idx = (torch.arange(12) // 4)[back].int()  # [in]: the group each original column fell into
        moved = QuantizedTensor(q.codes[:, back].contiguous(), q.scale, q.zero_point, g_idx, grid)
        torch.testing.assert_close(moved.dequantize(torch.float64), q.dequantize(torch.float64)[:, back])
        assert moved.nbytes == q.nbytes + 48


@pytest.mark.parametrize(
    "grid, needed, allocated",
    [
        (Grid(4, 128), 4.125, 4.125),
        (Grid(4, 128, symmetric=False), 4.15625, 4.15625),  # the scale's 16 bits and the zero_point's 4, over 128
        (Grid(8), 8 + 16 / 256, 8 + 16 / 256),
        (Grid(3, 64), 3.25, 4.25),  # kernels read nibbles: three bits are stored in four
        (Grid(6, 64), 6.25, 8.25),
        (Grid(2, "tensor"), 2 + 16 / 65536, 4 + 16 / 65536),
    ],
)
def test_bits_needed_and_bytes_allocated(grid, needed, allocated):
    q = quantize(torch.ones(256, 256), grid)
    assert q.bits_per_weight == needed
    assert q.nbytes * 8 / q.codes.numel() == allocated


def test_scales_that_float16_cannot_hold():
    tiny = quantize(torch.tensor([[1e-9, -1e-9, 0.0]]), Grid(8))
    assert tiny.scale.item() == 2**-24 and tiny.dequantize().abs().max() <= 2**-24
    with pytest.raises(ValueError, match="overflows scale_dtype.*float32"):
        quantize(torch.tensor([[3e8, 0.0]]), Grid(4))
    assert quantize(torch.tensor([[3e8, 0.0]]), Grid(4, narrow_range=True), scale_dtype=torch.float32).dequantize()[
        0, 0
    ] == pytest.approx(3e8)
    assert torch.isfinite(quantize(torch.tensor([[65504.0, 0]], dtype=torch.float16), Grid(2)).scale).all()


def test_clip_moves_the_end_of_the_grid():
    w = torch.tensor([[8.0, 1.0, -2.0, 0.5]])
    q = quantize(w, Grid(4, narrow_range=True), clip=0.5)
    assert q.scale.item() == pytest.approx(4 / 7, rel=1e-3) and q.codes.tolist() == [[7, 2, -4, 1]]
    per_group = quantize(w, Grid(4, 2, narrow_range=True), clip=torch.tensor([[0.5, 1.0]]))
    assert per_group.scale.flatten().tolist() == pytest.approx([4 / 7, 2 / 7], rel=1e-3)


@pytest.mark.parametrize("clip", [0, -0.5, 1.01, float("nan"), torch.zeros(3, 1), torch.ones(1, 5)])
def test_a_clip_that_makes_no_sense_is_refused(clip):
    with pytest.raises(ValueError, match="clip must"):
        quantize(torch.ones(3, 4), Grid(4), clip=clip)


@pytest.mark.parametrize(
    "bits, error",
    [
        (0, ValueError),
        (1, ValueError),
        (9, ValueError),
        (3.5, TypeError),
        ("4", TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
def test_bits_out_of_range_are_refused_by_name(bits, error):
    with pytest.raises(error, match=f"bits must be .*{bits}"):
        Grid(bits)


@pytest.mark.parametrize(
    "arguments, error, words",
    [
        (dict(group_size=0), ValueError, "group_size must be at least 1, got 0"),
        (dict(group_size=-1), ValueError, 'group_size must be at least 1, got -1.*"row"'),
        (dict(group_size="column"), ValueError, "group_size must be an int.*'column'"),
        (dict(group_size=1.5), TypeError, "group_size must be a whole number, got 1.5"),
        (dict(symmetric=1), TypeError, "symmetric must be True or False"),
        (dict(symmetric=False, narrow_range=True), ValueError, "narrow_range=True belongs to symmetric grids"),
    ],
)
def test_grids_that_do_not_exist_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        Grid(4, **arguments)


def test_a_group_that_does_not_divide_is_refused_with_the_sizes_that_would():
    with pytest.raises(ValueError, match="group_size 128 does not divide the 576 columns.*72, 96, 144, 192"):
        quantize(torch.zeros(2, 576), Grid(4, 128))
    with pytest.raises(ValueError, match="does not divide the 7 columns.* 1, 7 "):
        quantize(torch.zeros(2, 7), Grid(4, 8))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("group", ["row", "tensor", 4])
def test_nan_and_inf_are_found_and_placed(value, group):
    w = torch.ones(5, 8)
    w[3, 6] = w[4, 0] = value
    with pytest.raises(ValueError, match=rf"w holds 2 values that are NaN or infinite, the first {value} at \[3, 6\]"):
        quantize(w, Grid(4, group))


@pytest.mark.parametrize(
    "w", [torch.ones(4), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int8), [[1.0]], torch.ones(2, 2).to_sparse()]
)
def test_what_is_not_a_float_matrix_is_refused(w):
    with pytest.raises(TypeError, match="w must be"):
        quantize(w, Grid(4))


def test_scale_dtype_must_be_floating_point():
    for dtype in (torch.int8, "float16"):
        with pytest.raises(TypeError, match="scale_dtype must be"):
            quantize(torch.ones(2, 2), Grid(4), scale_dtype=dtype)
    with pytest.raises(TypeError, match="dtype must be"):
        quantize(torch.ones(2, 2), Grid(4)).dequantize(torch.int8)


def test_parts_that_do_not_fit_make_no_quantized_tensor():
    q, a = quantize(torch.ones(4, 8), Grid(4, 4)), quantize(torch.ones(4, 8), Grid(4, 4, symmetric=False))
    for parts, words in [
        ((q.codes.int(), q.scale, None, None, q.grid), "codes must be int8"),
        ((q.codes, q.codes, None, None, q.grid), "scale must be a floating-point"),
        ((q.codes, q.scale[:, :1], None, None, q.grid), r"scale must be \[4, 2\]"),
        ((q.codes, q.scale, a.zero_point, None, q.grid), "zero_point must be None"),
        ((q.codes, q.scale, None, None, a.grid), "zero_point must be given"),
        ((q.codes, q.scale, a.zero_point.int(), None, a.grid), "zero_point must be int8"),
        ((q.codes, q.scale, None, torch.zeros(8), q.grid), r"g_idx must be int32 \[8\]"),
    ]:
        with pytest.raises((TypeError, ValueError), match=words):
            QuantizedTensor(*parts)
    with pytest.raises(AttributeError):
        q.codes = a.codes


MEMORY = """
import re, torch
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize
def peak():  # bytes; ru_maxrss would begin with the parent's
    return 1024 * int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
w = torch.randn(4096, 11008)
quantize(w[:64], Grid(4, 128))                       # buffers of the thread pool exist from here on
before = peak()
q = quantize(w, Grid({arguments}))
print((peak() - before) / (w.numel() * w.element_size()))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("arguments", ["4, 128", "8", "8, 'tensor'"])
def test_extra_memory_is_half_the_weight_at_most(arguments):
    run = subprocess.run(
        [sys.executable, "-c", MEMORY.format(arguments=arguments)], capture_output=True, text=True, check=True
    )
    assert 0.2 < float(run.stdout) < 0.5  # the codes alone are a quarter of a float32 weight
