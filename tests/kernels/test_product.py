"""Every kernel against the float64 reference, and the choice between them."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_cases import inputs, weights

from quantlib import Grid, explain, linear, quantize
from quantlib.kernels import choose, forget, int8_matmul, pack_weight, usable
from quantlib.kernels.candidates import Kernel, run_naive
from quantlib.kernels.cpu import ladder as cpu
from quantlib.kernels.explained import describe
from quantlib.kernels.gpu import ladder as gpu
from quantlib.kernels.packed import cannot_hold, int4_block
from quantlib.kernels.reference import (
    int8_matmul_reference,
    linear_reference,
    linear_w8a8_reference,
    rounding_bound,
)
from quantlib.numerics.quantize import QuantizedTensor

CPU = torch.device("cpu")


# what each kernel takes, so that every one of its examples runs it
TAKES = {
    "int4pack": {"bits": st.integers(2, 4), "groups": (32, 64, 128, 256), "out": st.integers(1, 3).map(lambda n: 64 * n)},
    "int8pack": {"bits": st.integers(5, 8), "groups": ("row", "tensor"), "columns_in": 16, "affine": False},
}
DTYPES = {"int4pack": (torch.bfloat16,), "int8pack": (torch.bfloat16,), "workspace bf16": (torch.bfloat16,)}
WIDER = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("kernel", [k for k in cpu.KERNELS if not k.name.startswith("compiled")], ids=lambda k: k.name)
@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_every_kernel_is_within_its_dtypes_bound_of_the_reference(kernel, data):
    """The compiled kernels have tests of their own."""
    q = data.draw(weights(**TAKES.get(kernel.name, {})))
    x = data.draw(inputs(q.shape[1], DTYPES.get(kernel.name, WIDER), least_rows=1))
    expected = linear_reference(x, q)
    ran = 0
    for layout in ("rows", "int4pack"):
        if cannot_hold(layout, q, CPU):
            continue
        packed = pack_weight(q, layout=layout)
        ordered = x if packed.order is None else x[:, packed.order.long()]
        if kernel.refuses(packed, x.dtype, len(x)):
            continue
        ran += 1
        if not usable(kernel, packed, x):  # else it is wrong on this CPU, and never runs
            y = kernel.run(ordered.contiguous(), packed)
            assert y.dtype == x.dtype and y.shape == expected.shape
            assert bool(((y.double() - expected).abs() <= rounding_bound(x, q, x.dtype)).all()), layout
    here = {"int4pack": int4_block() > 0, "workspace bf16": cpu.multiplies_bfloat16()}
    assert ran or not here.get(kernel.name, True)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), q=weights())
def test_float64_is_computed_in_float64(data, q):
    x = data.draw(inputs(q.shape[1], (torch.float64,)))
    y = linear(x, pack_weight(q))
    assert y.dtype == torch.float64
    assert bool(((y - linear_reference(x, q)).abs() <= rounding_bound(x, q, x.dtype)).all())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), q=weights(most_rows=64, most_columns=128))
def test_linear_takes_any_leading_shape(data, q):
    leading = data.draw(st.lists(st.integers(0, 3), max_size=3))
    x = torch.randn(*leading, q.shape[1])
    bias = torch.randn(q.shape[0])
    y, expected = linear(x, pack_weight(q), bias), linear_reference(x, q, bias)
    assert y.shape == expected.shape == (*leading, q.shape[0])
    assert bool(((y - expected).abs() <= rounding_bound(x, q, x.dtype, bias)).all())


@settings(max_examples=250, deadline=None)
@given(
    rows=st.integers(0, 20), out=st.integers(1, 80), columns=st.integers(1, 200), seed=st.integers(0, 99),
    bits=st.integers(5, 8),
)  # fmt: skip
def test_integer_products_are_exact(rows, out, columns, seed, bits):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
    q = quantize(torch.randn((out, columns), generator=generator), Grid(bits, "row"))
    expected = int8_matmul_reference(codes, q).float()
    for layout in ("rows", "onednn"):
        packed = pack_weight(q, layout=layout)
        assert int8_matmul(codes, packed).equal(expected)
        for kernel in cpu.INT8_KERNELS:
            if rows and not usable(kernel, packed, codes):
                assert kernel.run(codes, packed).equal(expected), kernel.name


@pytest.mark.parametrize("rows, out, columns", [(1, 2, 1), (3, 5, 1), (1, 1, 1), (1, 7, 64), (2, 1, 64)])
def test_integer_products_do_not_depend_on_the_stride_of_a_dimension_of_size_one(rows, out, columns):
    q = quantize(torch.randn(out, columns), Grid(8, "row", narrow_range=True))
    codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    strides = tuple(0 if size == 1 else stride for size, stride in zip(codes.shape, codes.stride(), strict=True))
    for given in (codes, codes.as_strided(codes.shape, strides)):
        for layout in ("rows", "onednn"):
            packed = pack_weight(q, layout=layout)
            assert int8_matmul(given, packed).equal(int8_matmul_reference(codes, q).float()), (layout, given.stride())


def test_the_w8a8_reference_is_the_product_of_the_rounded_matrices():
    x, w = (quantize(torch.randn(n, 50), Grid(8, "row", narrow_range=True), scale_dtype=torch.float32) for n in (7, 9))
    bias = torch.randn(9)
    expected = x.dequantize(torch.float64) @ w.dequantize(torch.float64).t() + bias.double()
    assert torch.allclose(linear_w8a8_reference(x, w, bias), expected, rtol=1e-13)
    with pytest.raises(ValueError, match="w must be symmetric with one scale a row"):
        linear_w8a8_reference(x, quantize(torch.randn(9, 50), Grid(8, symmetric=False)))


def test_pytorchs_int8_operator_is_kept_from_rows_that_it_reads_beyond():
    kernel = next(k for k in cpu.KERNELS if k.name == "int8pack")
    packed = pack_weight(quantize(torch.randn(8, 40), Grid(8)))
    assert "multiple of 16, and 40 is not" in kernel.refuses(packed, torch.bfloat16, 1)


# --- the choice


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.delenv("QUANTLIB_KERNEL", raising=False)
    forget()
    yield
    forget()


class Clock:
    """A clock that kernels move."""

    now = 0.0

    def __call__(self):
        return self.now


def pretended(name, seconds, clock, runs, refuses=None):
    def run(x, p):
        runs.append(name)
        clock.now += seconds
        return run_naive(x, p)

    return Kernel(name, lambda p, dtype, rows: refuses, run)


def test_the_fastest_kernel_is_kept_and_the_slow_one_is_not_run_again(fresh):
    clock, runs = Clock(), []
    kernels = [pretended(n, s, clock, runs) for n, s in (("slow", 7), ("quick", 1), ("close", 1.5))]
    best = choose.fastest_of(
        kernels, lambda k: k.run(torch.zeros(1, 4), pack_weight(quantize(torch.ones(2, 4), Grid(8)))), clock=clock
    )
    assert best == {"slow": 7, "quick": 1, "close": 1.5}
    assert runs.count("slow") == 2 and runs.count("quick") == runs.count("close") == 1 + choose.ROUNDS


def test_a_hopeless_kernel_runs_once(fresh):
    clock, runs = Clock(), []
    kernels = [pretended(n, s, clock, runs) for n, s in (("hopeless", 9), ("quick", 1))]
    x, packed = torch.zeros(1, 4), pack_weight(quantize(torch.ones(2, 4), Grid(8)))
    best = choose.fastest_of(kernels, lambda k: k.run(x, packed), clock=clock)
    assert best == {"hopeless": 9, "quick": 1} and runs.count("hopeless") == 1
    shorter = [pretended(n, s, clock, runs) for n, s in (("short", 0.09), ("shortest", 0.01))]
    assert choose.fastest_of(shorter, lambda k: k.run(x, packed), clock=clock)["short"] == pytest.approx(0.09)
    assert runs.count("short") == 2


def test_a_choice_is_made_once_for_a_kind_of_product(fresh):
    clock, runs = Clock(), []
    kernels = [pretended("a", 1, clock, runs), pretended("b", 1, clock, runs)]
    packed = pack_weight(quantize(torch.ones(2, 4), Grid(8)))
    first = choose.choice_for(kernels, torch.zeros(5, 4), packed)
    made = len(runs)
    assert made and choose.choice_for(kernels, torch.zeros(8, 4), packed) is first and len(runs) == made
    choose.choice_for(kernels, torch.zeros(9, 4), packed)
    assert len(runs) > made


def test_no_able_kernel_is_an_error_with_all_the_reasons(fresh):
    packed = pack_weight(quantize(torch.ones(2, 4), Grid(8)))
    kernels = [pretended("a", 1, Clock(), [], "it is Tuesday"), pretended("b", 1, Clock(), [], "it rains")]
    with pytest.raises(ValueError, match="a: it is Tuesday; b: it rains"):
        choose.kernel_for(lambda: kernels, torch.zeros(1, 4), packed)


@pytest.mark.parametrize(("rows", "bucket"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32), (1000, 1024), (9999, 1024)])
def test_rows_are_counted_in_powers_of_two(rows, bucket):
    assert choose.rows_bucket(rows) == bucket


def test_a_pinned_kernel_runs(fresh, monkeypatch):
    packed = pack_weight(quantize(torch.randn(64, 64), Grid(4, 32)))
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    for kernel in cpu.KERNELS:
        monkeypatch.setenv("QUANTLIB_KERNEL", kernel.name)
        if usable(kernel, packed, x):
            with pytest.raises(ValueError, match=f"QUANTLIB_KERNEL={kernel.name} (cannot take this|is wrong on this CPU)"):
                linear(x, packed)
        else:
            assert linear(x, packed).equal(kernel.run(x, packed))
            assert "because QUANTLIB_KERNEL names it" in explain(packed, 3)
    monkeypatch.setenv("QUANTLIB_KERNEL", "fastest")
    with pytest.raises(ValueError, match="QUANTLIB_KERNEL=fastest is no kernel: use one of"):
        linear(x, packed)


def test_every_name_that_can_be_pinned_is_a_kernels(fresh):
    lists = cpu.KERNELS, cpu.INT8_KERNELS, gpu.KERNELS, gpu.INT8_KERNELS
    assert {k.name for kernels in lists for k in kernels} == choose.KNOWN_NAMES


def test_explain_names_every_kernel_with_its_time_or_its_reason(fresh):
    text = explain(pack_weight(quantize(torch.randn(64, 64), Grid(4, 32))), 5)
    for kernel in cpu.KERNELS:
        assert re.search(rf"^  {kernel.name} +([0-9.]+ ms|cannot: \w|wrong on this CPU: \w)", text, flags=re.MULTILINE), kernel.name
    assert text.count("chosen: the fastest") == 1 and "5 rows of bfloat16 × [64, 64], 4 bits, groups of 32" in text
    only = pretended("only", 1, Clock(), [])
    packed = pack_weight(quantize(torch.randn(8, 8), Grid(8)))
    assert "chosen, because no other can" in describe(packed, 1, torch.float32, lambda device, integer: [only])
    with pytest.raises(ValueError, match="rows must be"):
        explain(pack_weight(quantize(torch.randn(8, 8), Grid(8))), 0)
    with pytest.raises(TypeError, match="layer must be"):
        explain(torch.nn.Linear(2, 2), 1)


# --- what is refused


def test_wrong_inputs_are_named():
    packed = pack_weight(quantize(torch.randn(8, 16), Grid(8)))
    for x, error, words in (
        (torch.zeros(3, 16, dtype=torch.int64), TypeError, "x must be a floating-point tensor, got torch.int64"),
        (torch.zeros(3, 15), ValueError, r"x must end in the 16 features of the weight, got shape \[3, 15\]"),
        (torch.tensor(1.0), ValueError, "must end in the 16 features"),
        (torch.zeros(3, 16, device="meta"), ValueError, "x is on meta and the weight on cpu"),
    ):
        with pytest.raises(error, match=words):
            linear(x, packed)
    with pytest.raises(TypeError, match="codes must be int8"):
        int8_matmul(torch.zeros(3, 16), packed)
    with pytest.raises(ValueError, match="one scale a row"):
        int8_matmul(torch.zeros(3, 16, dtype=torch.int8), pack_weight(quantize(torch.randn(8, 16), Grid(8, 8))))


def test_large_float16_values_do_not_overflow_inside():
    codes = torch.full((8, 64), 127, dtype=torch.int8)
    q = QuantizedTensor(codes, torch.full((8, 1), 100.0).half(), None, None, Grid(8, narrow_range=True))
    x = torch.full((2, 64), 0.05, dtype=torch.float16)
    assert torch.allclose(linear(x, pack_weight(q)).double(), linear_reference(x, q), rtol=2e-3)  # 40,640
