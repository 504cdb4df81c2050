"""Packing for the machine's kernels: nothing is lost, nothing is kept twice, what does not fit is refused."""

import pytest
import torch
from hypothesis import given, settings
from quantized_cases import act_ordered, weights

from quantlib import Grid, quantize
from quantlib.kernels.packed import LAYOUTS, cannot_hold, int4_block, pack_weight, unpack_weight
from quantlib.numerics.quantize import QuantizedTensor

CPU = torch.device("cpu")


def the_same(a, b):
    for part in ("codes", "scale", "zero_point", "g_idx"):
        x, y = getattr(a, part), getattr(b, part)
        assert (x is None) == (y is None) and (x is None or (x.dtype == y.dtype and x.equal(y))), part
    assert a.grid == b.grid


@settings(max_examples=150, deadline=None)
@given(q=weights())
def test_unpacking_gives_back_what_was_packed_in_every_layout(q):
    for layout in (None, *LAYOUTS):
        if layout is None or not cannot_hold(layout, q, CPU):
            packed = pack_weight(q, layout=layout)
            the_same(unpack_weight(packed), q)
            assert packed.nbytes <= 1.02 * q.nbytes + 4 * (q.grid.bits <= 4) * packed.groups


def test_a_packed_weight_shares_no_memory_with_what_it_came_from():
    for grid in (Grid(8), Grid(4, 32), Grid(4, 32, symmetric=False), Grid(8, 32, symmetric=False)):
        q = quantize(torch.randn(64, 64), grid)
        packed = pack_weight(q)
        kept = unpack_weight(packed)
        for part in (q.codes, q.scale, q.zero_point):
            if part is not None:
                part.zero_()
        the_same(unpack_weight(packed), kept)


def test_the_int4_order_is_pytorchs_own():
    codes = torch.randint(-8, 8, (128, 64), dtype=torch.int8)
    q = QuantizedTensor(codes, torch.ones(128, 2).half(), None, None, Grid(4, 32))
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":  # PyTorch's own kernel does not agree with its order there
        assert pack_weight(q).layout == ("int4pack" if int4_block() else "rows")
        return
    assert int4_block() in (32, 64), "PyTorch packs int4 in an order that is not known here"
    theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1)
    assert pack_weight(q).layout == "int4pack" and pack_weight(q).data.flatten().equal(theirs.flatten())


@pytest.mark.parametrize(
    ("layout", "grid", "shape", "reason"),
    [
        ("int4pack", Grid(8), (64, 64), "codes of up to 4 bits"),
        ("int4pack", Grid(4, 16), (64, 64), "groups of 32, 64, 128, 256"),
        ("int4pack", Grid(4, 32), (65, 64), "rows in blocks"),
        ("onednn", Grid(4), (64, 64), "5 to 8 bits"),
        ("onednn", Grid(8, 32), (64, 64), "one scale a row"),
        ("onednn", Grid(8, symmetric=False), (64, 64), "symmetric"),
        ("tinygemm", Grid(4, 128), (64, 128), "belongs to cuda"),
        ("colums", Grid(8), (4, 4), "not one of rows"),
    ],
)
def test_a_layout_that_cannot_hold_a_weight_says_why(layout, grid, shape, reason):
    with pytest.raises(ValueError, match=reason):
        pack_weight(quantize(torch.randn(shape), grid), layout=layout)


def test_groups_of_unequal_size_are_refused():
    q = quantize(torch.randn(4, 64), Grid(4, 32))
    g_idx = torch.zeros(64, dtype=torch.int32)
    with pytest.raises(ValueError, match="each of the 2 groups 32 columns"):
        pack_weight(QuantizedTensor(q.codes, q.scale, None, g_idx, q.grid))


def test_a_weight_without_rows_or_columns_is_packed():
    for shape in ((0, 32), (32, 0), (0, 0)):
        for grid in (Grid(8), Grid(4), Grid(4, 32)):
            q = quantize(torch.empty(shape), grid)
            the_same(unpack_weight(pack_weight(q)), q)


def test_a_meta_weight_has_the_bytes_of_a_real_one():
    for grid in (Grid(8), Grid(4, 32), Grid(3, "row", symmetric=False)):
        real, meta = (pack_weight(quantize(torch.zeros(64, 64, device=d), grid)) for d in ("cpu", "meta"))
        assert meta.data.is_meta and meta.data.shape == real.data.shape and meta.nbytes == real.nbytes


def test_act_order_keeps_the_columns_of_a_group_together():
    q = act_ordered(quantize(torch.randn(64, 128), Grid(4, 32)), torch.Generator().manual_seed(1))
    packed = pack_weight(q)
    assert q.g_idx[packed.order.long()].equal(torch.arange(128, dtype=torch.int32) // 32)
