"""Codes in the order of PyTorch's own 4-bit operator for CUDA, and back. Start from :func:`pack_tinygemm`."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.numerics.packing import pack

TILES = 8  # of 16 columns, side by side in memory: the widest that the operator loads at once


def pack_tinygemm(codes: Tensor) -> Tensor:
    """Codes of up to 4 bits, int8 [out, in] on CUDA, to int32 [out/8, in/128, 32, 4] in the order of tensor cores.

    The operator wants the even column of a pair in the high nibble: quantlib.numerics.packing puts it into the low one.
    """
    swapped = codes.unflatten(1, (-1, 2)).flip(-1).flatten(1)  # [out, in], each pair of columns exchanged
    return torch.ops.aten._convert_weight_to_int4pack(pack(swapped, 4), TILES)


def unpack_tinygemm(data: Tensor, out: int, columns: int) -> Tensor:
    """The codes that pack_tinygemm was given, int8 [out, in].

    The order is PyTorch's own affair, so the operator itself is asked: the product with rows of the identity, scales of
    1 and zeros of 0, is the codes, column by column.
    """
    pairs = torch.zeros((columns // 32, out, 2), dtype=torch.bfloat16, device=data.device)
    pairs[..., 0] = 1
    each = torch.arange(columns, device=data.device)
    parts = []
    for some in each.split(1024):
        identity = (some[:, None] == each).to(torch.bfloat16)  # [≤ 1024, in]
        parts.append(torch.ops.aten._weight_int4pack_mm(identity, data, 32, pairs).to(torch.int8))  # [≤ 1024, out]
    return torch.cat(parts).t().contiguous()
