"""quantlib.kernels.cpu.compiled_digits: products of bfloat16 as integers answer as float64 does, rounded once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_cases import inputs, weights

from quantlib import Grid, quantize
from quantlib.kernels.cpu import compiled_digits
from quantlib.kernels.packed import int4_block, pack_weight
from quantlib.kernels.reference import linear_reference
from quantlib.numerics.quantize import QuantizedTensor

BF16 = torch.bfloat16
WIDE = (BF16,)
IN_BLOCKS = {"bits": st.integers(2, 4), "groups": (32, 64, 128, 256), "out": st.integers(1, 4).map(lambda n: 64 * n)}
IN_ROWS = {"bits": st.integers(5, 8), "groups": ("row", "tensor"), "affine": False, "most_columns": 2600}


@pytest.fixture(scope="module")
def library(libraries):
    built = libraries["this CPU"]
    if built.int4_digits is None or int4_block() != compiled_digits.BLOCK:
        pytest.skip("this CPU does not multiply vectors of bytes (AVX-512 VNNI)")
    return built


def bound(x, q):
    """Half a unit of the result's last place; and what float32 adds to the sums of groups, and small numbers beside a large one lose."""
    w = q.dequantize(torch.float64).abs()
    exact = linear_reference(x, q)
    block = 1024 if q.grid.bits > 4 else q.grid.group_size
    columns = x if q.g_idx is None else x[:, q.g_idx.argsort(stable=True)]
    largest = torch.stack([c.abs().amax(1) for c in columns.double().split(block, 1)], 1)  # [tokens, blocks]
    lost = 2.0**-22 * largest.amax(1, keepdim=True) * w.sum(1)  # [tokens, out]
    size = x.double().abs() @ w.t()
    return 2.0**-8 * 1.001 * exact.abs() + 4 * 2.0**-23 * size + lost + torch.finfo(BF16).tiny


def check(y, x, q):
    assert y.dtype == BF16 and y.shape == (x.shape[0], q.shape[0])
    assert bool(((y.double() - linear_reference(x, q)).abs() <= bound(x, q)).all())


def ordered(x, p):
    return x if p.order is None else x[:, p.order.long()].contiguous()


@settings(max_examples=250, deadline=None)
@given(data=st.data(), q=weights(**IN_BLOCKS), spread=st.sampled_from([0, 0, 3, 12]), threads=st.integers(1, 3))
def test_four_bits(library, data, q, spread, threads):
    run(library, q, data.draw(inputs(q.shape[1], WIDE, most_rows=70)), spread, threads, "int4pack")


@settings(max_examples=250, deadline=None)
@given(data=st.data(), q=weights(**IN_ROWS), spread=st.sampled_from([0, 0, 3, 12]), threads=st.integers(1, 3))
def test_eight_bits(library, data, q, spread, threads):
    run(library, q, data.draw(inputs(q.shape[1], WIDE, most_rows=70)), spread, threads, "rows")


def run(library, q, x, spread, threads, layout):
    """x with magnitudes that spread over so many powers of ten."""
    x = (x.float() * 10 ** (spread * (torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 0.5))).to(BF16)
    p = pack_weight(q, layout=layout)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(compiled_digits.product(ordered(x, p), p, library), x, q)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("like", [1.0, -0.0, 2.0**-133, 2.0**-126, 1e30, 255.0, 1e-30])
def test_numbers_at_the_ends_of_bfloat16(library, bits, like):
    """Exact, where float32 is: subnormal numbers, the largest, and zero."""
    q = quantize(torch.randn((64, 64), generator=torch.Generator().manual_seed(0)), Grid(bits, 32 if bits == 4 else "row"))
    q = QuantizedTensor(q.codes, (q.scale * 0 + 2.0**-6).half(), None, None, q.grid)
    x = torch.zeros(3, 64, dtype=BF16)
    x[0, 5], x[1, :2], x[2] = like, like, like
    p = pack_weight(q, layout="int4pack" if bits == 4 else "rows")
    expected = linear_reference(x, q)
    y = compiled_digits.product(x, p, library).double()
    fits = expected.abs() < 3.3e38
    assert bool(((y - expected).abs() <= 2.0**-8 * expected.abs() + 2.0**-120)[fits].all())


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(library, bits):
    q = quantize(torch.randn(192, 320), Grid(bits, 64 if bits == 4 else "row", symmetric=bits == 8))
    p = pack_weight(q, layout="int4pack" if bits == 4 else "rows")
    x = torch.randn(67, 320).to(BF16)
    whole = compiled_digits.product(x, p, library)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for i in (0, 1, 31, 32, 63, 66):
            assert compiled_digits.product(x[i : i + 1].contiguous(), p, library)[0].equal(whole[i])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("bits", [4, 8])
def test_nan_and_infinity_reach_their_row_and_no_other(library, bits):
    q = quantize(torch.randn(64, 128), Grid(bits, 64 if bits == 4 else "row"))
    p = pack_weight(q, layout="int4pack" if bits == 4 else "rows")
    x = torch.randn(4, 128).to(BF16)
    x[1, 7], x[2, 100] = torch.inf, torch.nan
    y = compiled_digits.product(x, p, library)
    assert y[2].isnan().all() and not y[1].isfinite().any() and y[[0, 3]].isfinite().all()
    assert y.equal(compiled_digits.in_floats(x, p, library)) or (y[1:3].isnan() == compiled_digits.in_floats(x, p, library)[1:3].isnan()).all()


def test_what_it_cannot_take_is_named(library):
    p4, p8 = pack_weight(quantize(torch.randn(64, 64), Grid(4, 32))), pack_weight(quantize(torch.randn(8, 64), Grid(8)))
    for p, dtype, words in (
        (p8, torch.float32, "takes bfloat16 apart, x is float32"),
        (pack_weight(quantize(torch.randn(8, 64), Grid(8, 32))), BF16, "one scale a row, and there are groups"),
        (pack_weight(quantize(torch.randn(8, 64), Grid(8, symmetric=False))), BF16, "knows no zero points"),
        (pack_weight(quantize(torch.randn(64, 64), Grid(4, 32)), layout="rows"), BF16, "not rows of nibbles"),
    ):
        assert words in compiled_digits.refuses(p, dtype, 1, library)
        with pytest.raises(ValueError, match=words):
            compiled_digits.product(torch.zeros(1, 64, dtype=dtype), p, library)
    assert compiled_digits.refuses(p4, BF16, 1, library) is compiled_digits.refuses(p8, BF16, 1, library) is None
    for x in (torch.zeros(64, dtype=BF16), torch.zeros(2, 63, dtype=BF16), torch.zeros(64, 2, dtype=BF16).t()):
        with pytest.raises(ValueError, match=r"x must be contiguous \[rows, 64\] on the CPU"):
            compiled_digits.product(x, p4, library)
    assert compiled_digits.product(torch.zeros(0, 64, dtype=BF16), p4, library).shape == (0, 64)


def test_without_the_library_it_says_so(monkeypatch):
    monkeypatch.setenv("QUANTLIB_COMPILED", "0")
    p = pack_weight(quantize(torch.randn(8, 64), Grid(8)))
    assert "was not built" in compiled_digits.refuses(p, BF16, 1)
    with pytest.raises(ValueError, match="was not built"):
        compiled_digits.product(torch.zeros(1, 64, dtype=BF16), p)


def test_small_codes_beside_an_outlier_lose_nothing_to_their_offset(library):
    """Codes are multiplied as code + 128; what 128 times an outlier adds must leave the sum without a trace."""
    x = torch.tensor([[628.0, -1056768.0, 157.0, -3.796875]], dtype=BF16)
    for out in (1, 5):
        codes = torch.tensor([[-1, 0, 1, -2]], dtype=torch.int8).expand(out, 4).contiguous()
        q = QuantizedTensor(codes, torch.ones(1, 1).half(), None, None, Grid(5, "tensor"))
        y = compiled_digits.product(x, pack_weight(q, layout="rows"), library)
        assert (y == -464.0).all(), y  # -463.4 in floats, in steps of half a unit of the outlier's digits
