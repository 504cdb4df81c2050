"""The CUDA candidates on a machine without CUDA: what they refuse, on GPUs of a table, and what needs no GPU to be run."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.kernels import tinygemm
from quantlib.kernels.gpu import ladder as gpu
from quantlib.kernels.gpu.ladder import Capability
from quantlib.kernels.packed import PackedWeight, pack_weight
from quantlib.kernels.reference import int8_matmul_reference, linear_reference, rounding_bound
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize

V100 = Capability((7, 0), triton=True)
T4 = Capability((7, 5), triton=True)
A100 = Capability((8, 0), triton=True)
H100 = Capability((9, 0), triton=True)
WINDOWS = Capability((8, 9), triton=False)
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64


def packed(bits, group="row", out=128, columns=256, *, symmetric=True, layout="rows"):
    w = torch.randn((out, columns), generator=torch.Generator().manual_seed(bits))
    p = pack_weight(quantize(w, Grid(bits, group, symmetric=symmetric)), layout="rows")
    fields = p.data, p.scale, p.zero_point, p.order, p.grid, p.out_features, p.in_features
    return PackedWeight(*fields, layout)


INT8, GROUPED8, INT4 = packed(8), packed(8, 64), packed(4, 64)
SHIFTED8, SHIFTED4 = packed(8, symmetric=False), packed(3, 64, symmetric=False)
ODD4, TINYGEMM = packed(4, columns=255), packed(4, 64, layout="tinygemm")
LONG = PackedWeight(INT8.data, INT8.scale, None, None, INT8.grid, 128, 2**17, "rows")

TAKES = [  # candidate, the weights it takes, the dtypes, the GPUs
    (gpu.triton_w8a16_refuses, (INT8, GROUPED8, SHIFTED8), (FP16, BF16, FP32), (A100, H100)),
    (gpu.triton_w4a16_refuses, (INT4, SHIFTED4, ODD4), (FP16, BF16, FP32), (A100, H100)),
    (gpu.tinygemm_refuses, (TINYGEMM,), (BF16,), (A100, H100, WINDOWS)),
    (gpu.compiled_int8_refuses, (INT8,), (BF16, FP32), (V100, T4, A100, H100)),
    (gpu.compiled_int4_refuses, (INT4, SHIFTED4), (FP16, BF16, FP32), (V100, T4, A100, H100)),
]
WEIGHTS = (INT8, GROUPED8, SHIFTED8, INT4, SHIFTED4, ODD4, TINYGEMM)


@pytest.mark.parametrize(("refuses", "weights", "dtypes", "gpus"), TAKES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_candidate_takes_exactly_its_own(refuses, weights, dtypes, gpus):
    for p in WEIGHTS:
        for dtype in (FP16, BF16, FP32, FP64):
            for machine in (V100, T4, A100, H100, WINDOWS):
                reason = refuses(p, dtype, 1, machine)
                able = any(p is w for w in weights) and dtype in dtypes and machine in gpus
                assert (reason is None) == able, (p.grid, p.layout, dtype, machine, reason)
                assert able or (reason[0].islower() and not reason.endswith(".")), "a clause, for explain()"


@pytest.mark.parametrize(
    ("refuses", "p", "rows", "machine", "words"),
    [
        (gpu.int_mm_refuses, INT8, 16, H100, "more than 16 rows, x has 16"),
        (gpu.int_mm_refuses, packed(8, columns=252), 17, H100, "sizes in eights, and in is 252"),
        (gpu.int_mm_refuses, packed(8, out=12), 17, H100, "sizes in eights, and out is 12"),
        (gpu.int_mm_refuses, INT4, 17, H100, "reads int8 in rows"),
        (gpu.int_mm_refuses, INT8, 17, V100, "compute capability 7.5, this GPU has 7.0"),
        (gpu.int_mm_refuses, INT8, 17, WINDOWS, None),
        (gpu.triton_w8a8_refuses, INT8, 1, A100, None),
        (gpu.triton_w8a8_refuses, INT8, 1, T4, "compute capability 8.0, this GPU has 7.5"),
        (gpu.triton_w8a8_refuses, INT8, 1, WINDOWS, "triton package"),
        (gpu.triton_w8a8_refuses, INT4, 1, A100, "reads int8 in rows, this weight is 4 bits"),
        (gpu.triton_w8a8_refuses, LONG, 1, A100, "int32 does not hold the sum of 131072 products"),
    ],
)
def test_integer_candidates(refuses, p, rows, machine, words):
    reason = refuses(p, torch.int8, rows, machine)
    assert reason is None if words is None else words in reason


def test_candidates_ask_about_the_gpu_of_the_weight(monkeypatch):
    monkeypatch.setattr(gpu, "capability_of", lambda device: V100)
    by_name = {k.name: k for k in (*gpu.KERNELS, *gpu.INT8_KERNELS)}
    assert len(by_name) == len(gpu.KERNELS) + len(gpu.INT8_KERNELS)
    assert "this GPU has 7.0" in by_name["triton w8a16"].refuses(INT8, FP16, 1)
    assert by_name["torch.compile int4"].refuses(INT4, FP16, 1) is None
    for p in WEIGHTS:
        for dtype in (FP16, BF16, FP32, FP64):
            assert not all(k.refuses(p, dtype, 1) for k in gpu.KERNELS), "every weight has a kernel"
    assert by_name["naive int8"].refuses(INT8, torch.int8, 1) is None


def test_capability_of_a_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu.capability_of.cache_clear()
    assert gpu.capability_of(torch.device("cuda", 0)) == Capability((8, 6), triton=False)
    gpu.capability_of.cache_clear()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 20), st.integers(1, 4), st.integers(1, 24), st.booleans(), st.integers(0, 2**31)
)
def test_expressions_equal_float64(rows, out, groups, half_group, symmetric, seed):
    """What torch.compile is given, run as it stands."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn((out, groups * 2 * half_group), generator=generator)
    x = torch.randn((rows, w.shape[1]), generator=generator)
    q4 = quantize(w, Grid(4, 2 * half_group, symmetric=symmetric))
    p4 = pack_weight(q4, layout="rows")
    y = gpu.int4_expression(x, p4.data, p4.scale, p4.zero_points())
    assert bool(((y.double() - linear_reference(x, q4)).abs() <= rounding_bound(x, q4, FP32)).all())
    q8 = quantize(w, Grid(8))
    p8 = pack_weight(q8, layout="rows")
    y = gpu.int8_expression(x, p8.data, p8.scale)
    assert bool(((y.double() - linear_reference(x, q8)).abs() <= rounding_bound(x, q8, FP32)).all())


def test_int_mm_and_naive_products_are_exact():
    q = quantize(torch.randn((24, 64), generator=torch.Generator().manual_seed(0)), Grid(8))
    p = pack_weight(q, layout="rows")
    x = torch.randint(-128, 128, (17, 64), dtype=torch.int8, generator=torch.Generator().manual_seed(1))
    exact = int8_matmul_reference(x, q).float()
    assert torch.equal(gpu.INT8_KERNELS[-1].run(x, p), exact)
    assert torch.equal(gpu.run_int_mm(x, p), exact)


class FakeTinygemm:
    """PyTorch's two CUDA operators as their documentation has them: the even column of a pair in the high nibble,
    w = (nibble − 8) · scale + zero. Bytes are regrouped, so that nothing but the operator can read them."""

    def _convert_weight_to_int4pack(self, data, tiles):
        assert data.dtype == torch.uint8 and data.is_contiguous() and tiles in (2, 4, 8)
        out, half = data.shape
        assert out % 8 == 0 and 2 * half % (16 * tiles) == 0
        words = data.view(torch.int32).view(out // 8, 8, 2 * half // (16 * tiles), 4, tiles // 2)
        return words.transpose(1, 2).reshape(out // 8, -1, 32, tiles // 2).contiguous()

    def _weight_int4pack_mm(self, x, data, group_size, pairs):
        tiles, columns = 2 * data.shape[3], x.shape[1]
        assert x.dtype == pairs.dtype == torch.bfloat16 and group_size in (32, 64, 128, 256)
        assert pairs.shape == (columns // group_size, 8 * data.shape[0], 2) and data.shape[2] == 32
        words = data.view(data.shape[0], -1, 8, 4, tiles // 2).transpose(1, 2).contiguous()
        codes = words.view(torch.uint8).view(8 * data.shape[0], columns // 2)
        nibbles = torch.stack((codes >> 4, codes & 15), dim=-1).flatten(1).double() - 8  # [out, in]
        scale, zero = pairs.double().repeat_interleave(group_size, 0).unbind(-1)  # [in, out] each
        return (x.double() @ (nibbles.t() * scale + zero)).to(x.dtype)


@pytest.mark.parametrize(("out", "columns", "group"), [(8, 128, 32), (24, 1280, 64), (16, 256, 256)])
@pytest.mark.parametrize("symmetric", (True, False))
def test_tinygemm_packs_multiplies_and_unpacks(out, columns, group, symmetric, monkeypatch):
    monkeypatch.setattr(torch.ops, "aten", FakeTinygemm())
    generator = torch.Generator().manual_seed(columns)
    q = quantize(torch.randn((out, columns), generator=generator) + 0.3, Grid(4, group, symmetric=symmetric))
    rows = pack_weight(q, layout="rows")
    data = tinygemm.pack_tinygemm(q.codes)
    p = PackedWeight(data, rows.scale, rows.zero_point, None, q.grid, out, columns, "tinygemm")
    assert torch.equal(tinygemm.unpack_tinygemm(p.data, *q.shape), q.codes)
    x = torch.randn((3, columns), generator=generator).to(BF16)
    y = gpu.run_tinygemm(x, p)
    assert y.dtype == BF16
    assert bool(((y.double() - linear_reference(x, q)).abs() <= 2 * rounding_bound(x, q, BF16)).all())
