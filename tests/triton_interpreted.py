"""The Triton kernels in Triton's interpreter, against float64. test_kernels_triton.py runs this in a process of its own.

TRITON_INTERPRET=1 has to be set before the kernels are defined, and would slow down or change every other test.
"""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quantlib.kernels.gpu import triton_w4a16, triton_w8a8, triton_w8a16
from quantlib.kernels.gpu.tuning import INTERPRETED, Config, interpreting
from quantlib.kernels.packed import pack_weight
from quantlib.kernels.reference import int8_matmul_reference, linear_reference, linear_w8a8_reference, rounding_bound
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize

assert os.environ.get("TRITON_INTERPRET") == "1", "run this with TRITON_INTERPRET=1, as test_kernels_triton.py does"

EXAMPLES = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
SEEDS = st.integers(0, 2**31)
# The function that users call takes INTERPRETED here, so an example with another config launches the kernel itself.
CONFIGS = st.sampled_from(
    (INTERPRETED, Config(16, 16, 64, 1, 1), Config(64, 32, 32, 1, 1, split=3), Config(32, 16, 128, 1, 1, split=16))
)


@st.composite
def products(draw, bits):
    """x [M, K] and a quantized weight [N, K], ragged: up to three blocks of each, since the interpreter's time grows with
    the blocks and a fourth is like the third.
    """
    rows = draw(st.sampled_from((0, 1, 1, 2, 3, 7, 16, 17, 33)))
    out = draw(st.integers(1, 48) | st.sampled_from((31, 32, 33, 64, 65)))
    groups = draw(st.sampled_from((1, 1, 2, 3, 4, 8)))
    group_size = draw(st.integers(1, max(1, 160 // groups)) | st.sampled_from((16, 32)))
    if groups > 1 and max(bits) <= 4:
        group_size += group_size % 2  # groups begin with a byte
    kind = draw(st.sampled_from(("row", "tensor"))) if groups == 1 else group_size
    symmetric = draw(st.booleans())
    grid = Grid(draw(st.sampled_from(bits)), kind, symmetric=symmetric, narrow_range=symmetric and draw(st.booleans()))
    generator = torch.Generator().manual_seed(draw(SEEDS))
    w = torch.randn((out, groups * group_size), generator=generator) + (0 if symmetric else 0.5)
    x = torch.randn((rows, groups * group_size), generator=generator)
    return x.to(draw(st.sampled_from((torch.float16, torch.float32)))), quantize(w, grid)


def check(y, x, q):
    assert y.dtype == x.dtype and y.shape == (x.shape[0], q.shape[0])
    assert bool(((y.double() - linear_reference(x, q)).abs() <= rounding_bound(x, q, x.dtype)).all())


@EXAMPLES
@given(products(range(5, 9)), CONFIGS)
def test_w8a16(product, config):
    x, q = product
    p = pack_weight(q, layout="rows")
    arguments = x, p.data, p.scale, p.zero_point
    usual = config is INTERPRETED or not len(x)
    check(triton_w8a16.w8a16(*arguments) if usual else triton_w8a16.launch(config, *arguments), x, q)


@EXAMPLES
@given(products(range(2, 5)), CONFIGS)
def test_w4a16(product, config):
    x, q = product
    p = pack_weight(q, layout="rows")
    arguments = x, p.data, p.scale, p.zero_point
    usual = config is INTERPRETED or not len(x)
    check(triton_w4a16.w4a16(*arguments) if usual else triton_w4a16.launch(config, *arguments), x, q)


@pytest.mark.parametrize("config", [INTERPRETED, Config(16, 16, 64, 1, 1)], ids=["split", "whole"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", ["row", 32])
def test_sums_that_float16_does_not_hold_are_given_in_float32(bits, group, config):
    q = quantize(torch.full((40, 64), 16.0), Grid(bits, group))
    p, x = pack_weight(q, layout="rows"), torch.full((3, 64), 66.0, dtype=torch.float16)
    kernel = triton_w8a16 if bits == 8 else triton_w4a16
    y = kernel.launch(config, x, p.data, p.scale, p.zero_point, torch.float32)
    assert y.dtype == torch.float32 and torch.allclose(y.double(), linear_reference(x, q), rtol=1e-6)
    whole = (kernel.w8a16 if bits == 8 else kernel.w4a16)(x, p.data, p.scale, p.zero_point, torch.float32)
    assert whole.dtype == torch.float32 and torch.allclose(whole, y, rtol=1e-6)


@EXAMPLES
@given(
    st.integers(0, 40),
    st.integers(1, 48),
    st.integers(1, 200),
    st.sampled_from((torch.int32, torch.float32)),
    st.sampled_from((torch.float16, torch.float32)),
    CONFIGS,
    SEEDS,
)
@example(rows=3, out=5, columns=256, bare=torch.int32, dtype=torch.float32, config=INTERPRETED, seed=0)
def test_w8a8(rows, out, columns, bare, dtype, config, seed):
    generator = torch.Generator().manual_seed(seed)
    x = quantize(torch.randn((rows, columns), generator=generator), Grid(8), scale_dtype=torch.float32)
    w = quantize(torch.randn((out, columns), generator=generator), Grid(8))

    def product(row_scale, column_scale, dtype):
        operands = x.codes, w.codes, row_scale, column_scale, dtype
        return triton_w8a8.w8a8(*operands) if config is INTERPRETED or not rows else triton_w8a8.launch(config, *operands)

    y = product(None, None, bare)
    assert y.dtype == bare and torch.equal(y, int8_matmul_reference(x.codes, w).to(bare))
    y, expected = product(x.scale.view(-1), w.scale.view(-1), dtype), linear_w8a8_reference(x, w)
    assert y.dtype == dtype
    # the integers are exact, so only the two scales and the result are rounded
    bound = 2 * torch.finfo(dtype).eps * expected.abs() + torch.finfo(dtype).tiny
    assert bool(((y.double() - expected).abs() <= bound).all())


def test_extreme_codes_are_summed_exactly():
    codes = torch.full((1, 256), -128, dtype=torch.int8)
    assert triton_w8a8.w8a8(codes, codes).item() == 256 * 128**2


def test_the_operands_that_meet_are_integers_and_so_is_their_sum(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    met, multiply = [], InterpreterBuilder.create_dot

    def watched(self, a, b, d, *rest):
        met.append((str(a.dtype), str(b.dtype), str(d.dtype)))
        return multiply(self, a, b, d, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_dot", watched)
    codes = torch.randint(-128, 128, (5, 70), dtype=torch.int8)
    triton_w8a8.w8a8(codes, codes, torch.rand(5), torch.rand(5), dtype=torch.float16)
    assert met and set(met) == {("int8", "int8", "int32")}


def test_the_interpreter_is_told_from_a_gpu():
    assert interpreting(triton_w8a16.w8a16_kernel)


@pytest.mark.parametrize("kernel", (triton_w8a16.w8a16, triton_w4a16.w4a16))
def test_bfloat16_is_refused(kernel):
    codes = torch.zeros((4, 8), dtype=torch.int8 if kernel is triton_w8a16.w8a16 else torch.uint8)
    x = torch.zeros((2, 8 if codes.dtype == torch.int8 else 16), dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="interpreter computes bfloat16 wrongly"):
        kernel(x, codes, torch.ones((1, 1), dtype=torch.float16))
