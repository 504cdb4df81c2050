"""No kernel runs before it answered right on this machine: planted faults are found, right kernels pass."""

import ctypes
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quantized_cases import weights

from quantlib import Grid, MixedInt8Linear, explain, linear, quantize
from quantlib.kernels import choose, forget, int8_matmul, kernels_of, pack_for_integers, pack_weight, usable
from quantlib.kernels.candidates import NAIVE, REFERENCE, Kernel, run_reference
from quantlib.kernels.cpu import ladder as cpu
from quantlib.kernels.packed import PackedWeight, cannot_hold
from quantlib.kernels.probes import UNKNOWN, fault_of

CPU = torch.device("cpu")
GRIDS = {
    "int8": Grid(8, "row"),
    "int8 narrow": Grid(8, "row", narrow_range=True),
    "int8 asymmetric": Grid(8, 64, symmetric=False),
    "int4": Grid(4, 64),
    "int4 asymmetric": Grid(4, 32, symmetric=False),
    "int4 row": Grid(4, "row"),
    "int3": Grid(3, 128),
}
KINDS = [(name, dtype) for name in GRIDS for dtype in (torch.float32, torch.bfloat16, torch.float16)]
KINDS += [(name, torch.int8) for name in ("int8", "int8 narrow")]


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("QUANTLIB_KERNEL", raising=False)
    forget()
    yield
    forget()


def with_codes(p, change):
    """p with other codes: change(codes int8 [out, in]) -> codes, whatever range they then have."""
    from quantlib.kernels.packed import unpack_weight

    q = unpack_weight(p)
    limit = 2 ** (7 if not p.nibbles else 3)
    codes = change(q.codes.clone().int()).clamp(-limit, limit - 1).to(torch.int8)
    return pack_weight(type(q)(codes, q.scale, q.zero_point, None, q.grid), layout=p.layout)


def misreads(change):
    return lambda x, p: run_reference(x, with_codes(p, change))


def one_in_a_thousand(codes):
    codes.view(-1)[::1000] += 1
    return codes


def spoils(change):
    """Right, and then y is changed: change(y, x, p)."""

    def run(x, p):
        y = run_reference(x, p)
        change(y, x, p)
        return y

    return run


def last_row_if_odd(y, x, p):
    if len(x) % 2:
        y[-1] = 0


def beyond_the_end(y, x, p):
    larger = x.new_empty((len(x), p.out_features), dtype=y.dtype)
    ctypes.memset(larger.data_ptr() + larger.nbytes, 0, p.out_features * larger.element_size())


FAULTS = {
    "one code in a thousand": misreads(one_in_a_thousand),
    "the lowest code": misreads(lambda codes: torch.where(codes == codes.min(), codes + 1, codes)),
    "an odd number of rows": spoils(last_row_if_odd),
    "a row beyond its end": spoils(beyond_the_end),
    "a row beyond x": spoils(lambda y, x, p: x.as_strided((1, x.shape[1]), x.stride(), x.storage_offset() + x.numel()).zero_()),
    "x itself": spoils(lambda y, x, p: x.zero_()),
    "the last column": misreads(lambda codes: torch.nn.functional.pad(codes[:, :-1], (0, 1))),
    "the last row of the matrix": spoils(lambda y, x, p: y[:, -1].zero_()),
    "one row of x only": spoils(lambda y, x, p: y.zero_() if len(x) == 1 else None),
    "many rows of x only": spoils(lambda y, x, p: y.zero_() if len(x) > 64 else None),
    "everything, as NaN": spoils(lambda y, x, p: y.fill_(torch.nan)),
    "the shape": lambda x, p: run_reference(x, p)[:, :-1],
    "the dtype": lambda x, p: run_reference(x, p).double(),
    "raising": lambda x, p: 1 / 0,
}  # fmt: skip


def fault(run, name, dtype, layout=None):
    packed = pack_weight(quantize(torch.randn(64, 128), GRIDS[name]), layout=layout)
    return fault_of(Kernel("planted", lambda p, dtype, rows: None, run), packed.layout, packed.grid, packed.scale.dtype, dtype, CPU)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind[0]} {str(kind[1]).removeprefix('torch.')}")
def test_planted_faults_are_found_and_the_reference_passes(kind):
    assert fault(run_reference, *kind) is None
    for name, run in FAULTS.items():
        assert fault(run, *kind), name


def test_faults_in_the_reading_of_scales_and_zero_points_are_found():
    def with_parts(p, scale=None, zero_point=None):
        parts = scale if scale is not None else p.scale, zero_point if zero_point is not None else p.zero_point
        return PackedWeight(p.data, *parts, None, p.grid, p.out_features, p.in_features, p.layout)

    for name in ("int4 asymmetric", "int8 asymmetric"):
        for dtype in (torch.float32, torch.bfloat16):
            assert fault(lambda x, p: run_reference(x, with_parts(p, p.scale.roll(1, 0))), name, dtype)
            assert fault(lambda x, p: run_reference(x, with_parts(p, p.scale.roll(1, 1))), name, dtype)
            assert fault(lambda x, p: run_reference(x, with_parts(p, zero_point=p.zero_point.roll(1, 0))), name, dtype)


def saturating(codes, p):
    """x · Wᵀ as x86 without VNNI multiplies u8 by s8: sums of two products are cut at ±32,768."""
    from quantlib.kernels.packed import unpack_weight

    w = unpack_weight(p).codes.int()  # [out, in]
    u = codes.int() + 128
    if w.shape[1] % 2:
        w, u = torch.nn.functional.pad(w, (0, 1)), torch.nn.functional.pad(u, (0, 1))
    total = torch.zeros(len(u), len(w), dtype=torch.int32)
    for k in range(0, w.shape[1], 2):
        pair = u[:, None, k] * w[None, :, k] + u[:, None, k + 1] * w[None, :, k + 1]
        total += pair.clamp(-(2**15), 2**15 - 1)
    return (total - 128 * w.sum(1)).float()


def test_a_saturating_product_is_refused_with_its_error_and_the_next_kernel_runs(monkeypatch):
    saturates = Kernel("onednn", lambda p, dtype, rows: None if p.layout == "onednn" else "another layout", saturating)
    others = tuple(k for k in cpu.INT8_KERNELS if k.name != "onednn")
    monkeypatch.setattr(cpu, "INT8_KERNELS", (saturates, *others))
    monkeypatch.setattr(cpu, "INT8_LAYOUTS", ((saturates, "onednn"), *cpu.INT8_LAYOUTS[1:]))
    layer = MixedInt8Linear.from_float(torch.nn.Linear(64, 32), None)
    text = explain(layer, 4)
    assert re.search(r"^  onednn +wrong on this CPU: relative error 0\.\d+ with", text, flags=re.MULTILINE), text
    assert "chosen" in text
    q = layer.quantized()
    codes = torch.full((5, 64), 127, dtype=torch.int8)
    assert int8_matmul(codes, pack_for_integers(q)).equal((codes.double() @ q.codes.double().t()).float())
    assert int8_matmul(codes, pack_weight(q, layout="onednn")).equal((codes.double() @ q.codes.double().t()).float())


def test_where_every_kernel_is_wrong_the_reference_runs():
    wrong = [Kernel(name, lambda p, dtype, rows: None, FAULTS["everything, as NaN"]) for name in ("a", "b")]
    packed, x = pack_weight(quantize(torch.randn(64, 64), Grid(4, 32))), torch.randn(3, 64)
    choice = choose.choice_for(wrong, x, packed)
    assert choice.kernel is REFERENCE and set(choice.wrong) == {"a", "b"} and not choice.seconds
    assert "relative error nan" in choice.wrong["a"] and usable(wrong[0], packed, x).startswith("wrong on this CPU: ")


def test_a_wrong_kernel_is_asked_once_and_not_timed():
    asked = []

    def run(x, p):
        asked.append(len(x))
        return run_reference(x, p) * 2

    wrong = Kernel("wrong", lambda p, dtype, rows: None, run)
    x = torch.randn(3, 64)
    for out in (64, 128):
        packed = pack_weight(quantize(torch.randn(out, 64), Grid(4, 32)))
        choice = choose.choice_for([wrong, NAIVE], x, packed)
        assert choice.kernel is NAIVE and "wrong" not in choice.seconds
    assert len(asked) == 1


def test_a_wrong_kernel_cannot_be_pinned(monkeypatch):
    wrong = Kernel("naive", lambda p, dtype, rows: None, FAULTS["everything, as NaN"])
    monkeypatch.setenv("QUANTLIB_KERNEL", "naive")
    with pytest.raises(ValueError, match="QUANTLIB_KERNEL=naive is wrong on this CPU: relative error nan"):
        choose.choice_for([wrong], torch.randn(3, 64), pack_weight(quantize(torch.randn(64, 64), Grid(4, 32))))


@settings(max_examples=60, deadline=None)
@given(data=st.data(), q=weights(most_rows=128, most_columns=600))
def test_a_kernel_that_can_take_a_weight_was_probed_for_it(data, q):
    dtype = data.draw(st.sampled_from((torch.float32, torch.bfloat16, torch.float16)))
    for layout in ("rows", "int4pack"):
        if not cannot_hold(layout, q, CPU):
            p = pack_weight(q, layout=layout)
            for kernel in kernels_of(CPU):
                if not kernel.refuses(p, dtype, 1):
                    assert fault_of(kernel, layout, p.grid, p.scale.dtype, dtype, CPU) != UNKNOWN, kernel.name


def test_products_are_right_whatever_this_cpu_is():
    for bits, x in ((8, torch.randn(5, 96)), (4, torch.randn(5, 96).bfloat16())):
        q = quantize(torch.randn(64, 96), Grid(bits, 32 if bits == 4 else "row"))
        y = linear(x, pack_weight(q))
        assert torch.allclose(y.double(), x.double() @ q.dequantize(torch.float64).t(), rtol=0.05, atol=0.05)
