"""A quantized matrix in the bytes that a machine's kernels read. Start from :func:`pack_weight`.

A :class:`~quantlib.numerics.quantize.QuantizedTensor` keeps one int8 per code, whatever the bits. A layer keeps a
:class:`PackedWeight`: as many bytes as the codes need, in the order in which the kernels of its device want them.
The order differs between devices, and between CPUs. So packed bytes are never saved: :func:`unpack_weight` gives back
exactly what was packed, and that is what a checkpoint holds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from quantlib.kernels.tinygemm import pack_tinygemm, unpack_tinygemm
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import pack, packed_bytes, unpack, width
from quantlib.numerics.quantize import QuantizedTensor

LAYOUTS = ("rows", "int4pack", "onednn", "tinygemm")
INT4PACK_GROUPS = (32, 64, 128, 256)
BLOCKS_AT_ONCE = 16  # when they are packed


@dataclass(frozen=True, eq=False)
class PackedWeight:
    """The weight of one linear layer, ready to be multiplied with.

    data        the codes. layout "rows": int8 [out, in] for 5 to 8 bits, uint8 [out, ceil(in/2)] nibbles for 2 to 4
                (quantlib.numerics.packing). "int4pack": uint8 [out/B, in, B/2], PyTorch's order on CPUs, where a byte of block
                b holds code + 8 of row bB + r in its low nibble and of row bB + r + B/2 in its high one. "onednn":
                int8 [out, in] in oneDNN's blocks, opaque. "tinygemm": PyTorch's order for tensor cores.
    scale       [groups, out|1] for 2 to 4 bits, [out|1, groups] for 5 to 8
    zero_point  None on a symmetric grid; else int8 [out|1, groups], or for 2 to 4 bits nibbles uint8
                [groups, ceil(out/2)]: of row j in the low half, of row j + ceil(out/2) in the high one
    order       int32 [in] or None: column i of data is column order[i] of the matrix (act-order)
    """

    data: Tensor
    scale: Tensor
    zero_point: Tensor | None
    order: Tensor | None
    grid: Grid
    out_features: int
    in_features: int
    layout: str
    signature: str = field(init=False)  # equal for weights that the same kernel serves equally fast

    def __post_init__(self):
        words = (self.layout, self.data.device, self.grid, self.out_features, self.in_features, self.scale.dtype)
        object.__setattr__(
            self, "signature", " ".join(map(str, words)) + (" ordered" if self.order is not None else "")
        )

    @property
    def nibbles(self) -> bool:
        """Whether a byte holds two codes."""
        return width(self.grid.bits) == 4

    @property
    def group_size(self) -> int:
        """How many neighbouring columns of data share a scale; all of them where a row or the matrix does."""
        return self.in_features if isinstance(self.grid.group_size, str) else self.grid.group_size

    @property
    def groups(self) -> int:
        return self.scale.shape[0 if self.nibbles else 1]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(t.nbytes for t in (self.data, self.scale, self.zero_point, self.order) if t is not None)

    def zero_points(self) -> Tensor | None:
        """int8, the shape of scale; None on a symmetric grid."""
        if self.zero_point is None or not self.nibbles:
            return self.zero_point
        halves = torch.cat(
            (self.zero_point & 15, self.zero_point >> 4), dim=1
        )  # several times faster than interleaving
        return halves[:, : self.scale.shape[1]].view(torch.int8) - 8  # [groups, out|1]


def pack_weight(
    q: QuantizedTensor, device: torch.device | str | None = None, layout: str | None = None
) -> PackedWeight:
    """q as its device's kernels read it, or as the kernels of another device do.

    layout  one of LAYOUTS; by default the one whose kernels are fastest: int4pack on a CPU for 2 to 4 bits where the
            shape allows it, else rows.

    Raises ValueError for a layout that cannot hold q, for codes, zero points or a g_idx outside the grid, and for a
    g_idx whose groups are not equally large.
    """
    q.check_range()  # codes may have been written into since q was made
    return pack_checked(q, device, layout)


def pack_checked(
    q: QuantizedTensor, device: torch.device | str | None = None, layout: str | None = None
) -> PackedWeight:
    """pack_weight for what a layer has held already: its codes were checked when they came, and are not read again.

    After `Module.to_empty` they are whatever the memory held, until a state_dict is loaded.
    """
    device = torch.device(q.codes.device if device is None else device)
    layout = layout or best_layout(q, device)
    reason = cannot_hold(layout, q, device)
    if reason:
        raise ValueError(f"layout={layout!r} cannot hold this weight: {reason}")
    codes, scale, zero_point = (None if t is None else t.to(device) for t in (q.codes, q.scale, q.zero_point))
    order = None if q.g_idx is None else _order(q).to(device)
    if order is not None:
        codes = codes[:, order.long()]  # [out, in], columns of a group side by side
    if width(q.grid.bits) == 4:
        scale = scale.t().clone(memory_format=torch.contiguous_format)  # [groups, out|1]
        zero_point = None if zero_point is None else _halves(zero_point.t())  # [groups, ceil(out/2)]
    elif device == q.codes.device:  # the layer's own: whoever made q may go on with it
        scale, zero_point = scale.clone(), None if zero_point is None else zero_point.clone()
    data = _on_meta(layout, codes, q.grid.bits) if codes.is_meta else _INTO[layout](codes, q.grid.bits)
    return PackedWeight(data, scale, zero_point, order, q.grid, *q.shape, layout)


def unpack_weight(p: PackedWeight) -> QuantizedTensor:
    """The QuantizedTensor that p was packed from: the same codes, scale, zero_point and g_idx, bit for bit."""
    codes = _OUT_OF[p.layout](p)  # [out, in]
    scale, zero_point = p.scale, p.zero_points()
    if p.nibbles:
        scale = scale.t()  # [out|1, groups]
        zero_point = None if zero_point is None else zero_point.t()
    g_idx = None
    if p.order is not None:
        order = p.order.long()
        codes = torch.empty_like(codes).index_copy_(1, order, codes)
        g_idx = torch.empty_like(p.order)
        g_idx[order] = torch.arange(p.in_features, device=order.device, dtype=torch.int32) // p.group_size
    own = (None if t is None else t.clone(memory_format=torch.contiguous_format) for t in (scale, zero_point))
    return QuantizedTensor.of_clamped(codes, *own, g_idx, p.grid)


def best_layout(q: QuantizedTensor, device: torch.device) -> str:
    """The layout that serves every number of rows on this device."""
    return "int4pack" if not cannot_hold("int4pack", q, device) else "rows"


def cannot_hold(layout: str, q: QuantizedTensor, device: torch.device) -> str | None:
    """Why a layout cannot hold q on a device, as a sentence; None if it can."""
    if layout not in LAYOUTS:
        return f"it is not one of {', '.join(LAYOUTS)}"
    if layout == "rows":
        return None
    wanted = "cuda" if layout == "tinygemm" else "cpu"
    if device.type not in (wanted, "meta"):
        return f"it belongs to {wanted} and the weight is on {device.type}"
    out, columns = q.shape
    if layout == "onednn":
        if width(q.grid.bits) != 8 or not q.grid.symmetric or q.scale.shape[1] != 1:
            return "it takes symmetric codes of 5 to 8 bits with one scale a row or matrix"
        return None if q.codes.numel() else "the matrix is empty"
    if width(q.grid.bits) != 4:
        return f"it takes codes of up to 4 bits, these have {q.grid.bits}"
    if q.grid.group_size not in INT4PACK_GROUPS:
        return f"it takes groups of {', '.join(map(str, INT4PACK_GROUPS))}, these are {q.grid.group_size}"
    block = int4_block()
    if layout == "int4pack" and (block == 0 or out % block or not q.codes.numel()):
        return f"it takes rows in blocks of {block or 'an unknown size'}, there are {out}"
    if layout == "tinygemm" and (out % 8 or columns % 128):
        return f"it takes rows in eights and columns in blocks of 128, this is {out} × {columns}"
    return None


@cache
def int4_block() -> int:
    """Rows in a block of PyTorch's int4 order on this CPU: 64 with AVX-512, 32 with AVX2; 0 if it is another order.

    Found out by packing known codes, because the order is PyTorch's own affair and may change.
    """
    codes = torch.arange(128 * 64).mul(7).remainder(61).remainder(16).sub(8).to(torch.int8).view(128, 64)  # two blocks
    try:
        theirs = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int() + 8, 1).flatten()
    except (AttributeError, RuntimeError):
        return 0
    return next((b for b in (64, 32) if torch.equal(_blocks(codes, b).flatten(), theirs)), 0)


def _blocks(codes: Tensor, block: int) -> Tensor:
    """Codes [out, in] of up to 4 bits to bytes uint8 [out/block, in, block/2], some rows at a time: little more memory."""
    out, columns = codes.shape
    data = torch.empty((out // block, columns, block // 2), dtype=torch.uint8, device=codes.device)
    for blocks, rows in zip(data.split(BLOCKS_AT_ONCE), codes.split(BLOCKS_AT_ONCE * block), strict=True):
        nibbles = (rows + 8).view(torch.uint8).view(-1, 2, block // 2, columns)  # [blocks, 2, block/2, in]
        blocks.copy_((nibbles[:, 0] | nibbles[:, 1] << 4).transpose(1, 2))
    return data


def _from_blocks(p: PackedWeight) -> Tensor:
    nibbles = torch.stack((p.data & 15, p.data >> 4), dim=1)  # [out/B, 2, in, B/2]
    return nibbles.transpose(2, 3).reshape(p.out_features, p.in_features).view(torch.int8) - 8  # [out, in]


def _halves(zero_point: Tensor) -> Tensor:
    """Zero points int8 [groups, out] to nibbles uint8 [groups, ceil(out/2)], as PackedWeight keeps them."""
    half = (zero_point.shape[1] + 1) // 2
    nibbles = torch.zeros((zero_point.shape[0], 2 * half), dtype=torch.uint8, device=zero_point.device)
    nibbles[:, : zero_point.shape[1]] = zero_point + 8
    return nibbles[:, :half] | nibbles[:, half:] << 4


def _from_rows(p: PackedWeight) -> Tensor:
    return unpack(p.data.view(torch.uint8), p.grid.bits, p.in_features)


def _to_rows(codes: Tensor, bits: int) -> Tensor:
    packed = pack(codes, bits)
    if width(bits) == 4:
        return packed
    return packed.view(torch.int8).clone() if packed.data_ptr() == codes.data_ptr() else packed.view(torch.int8)


def _to_onednn(codes: Tensor, bits: int) -> Tensor:
    return torch.ops.onednn.qlinear_prepack(codes.contiguous(), None)


def _to_tinygemm(codes: Tensor, bits: int) -> Tensor:
    return pack_tinygemm(codes)


def _from_tinygemm(p: PackedWeight) -> Tensor:
    return unpack_tinygemm(p.data, p.out_features, p.in_features)


def _on_meta(layout: str, codes: Tensor, bits: int) -> Tensor:
    if layout == "int4pack":
        return torch.empty(
            (codes.shape[0] // int4_block(), codes.shape[1], int4_block() // 2), dtype=torch.uint8, device="meta"
        )
    out, columns = codes.shape
    if width(bits) == 8:
        return torch.empty((out, columns), dtype=torch.int8, device="meta")
    return torch.empty((out, packed_bytes((1, columns), bits)), dtype=torch.uint8, device="meta")


def _order(q: QuantizedTensor) -> Tensor:
    """Columns sorted by group, int32 [in]; inside a group they keep their order."""
    groups = q.grid.scale_shape(*q.shape)[1]
    counts = (
        torch.bincount(q.g_idx.long(), minlength=groups) if q.g_idx.numel() else torch.zeros(groups, dtype=torch.long)
    )
    if len(counts) != groups or (counts != q.shape[1] // groups).any():
        raise ValueError(
            f"g_idx must give each of the {groups} groups {q.shape[1] // groups} columns, got {counts.tolist()[:8]}…: "
            "quantize with groups of one size"
        )
    return q.g_idx.argsort(stable=True).to(torch.int32)


_INTO = {
    "rows": _to_rows,
    "int4pack": lambda codes, bits: _blocks(codes, int4_block()),
    "onednn": _to_onednn,
    "tinygemm": _to_tinygemm,
}
_OUT_OF = {
    "rows": _from_rows,
    "int4pack": _from_blocks,
    "onednn": lambda p: p.data.to_dense().t().contiguous(),  # oneDNN holds the transposed matrix
    "tinygemm": _from_tinygemm,
}
