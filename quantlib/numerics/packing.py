"""Codes to bytes and back, bit-exactly. Start from :func:`pack`.

Two widths exist, because two widths are what kernels read: a nibble for codes of 2 to 4 bits, a byte for 5 to 8.
A 3-bit code therefore costs 4 bits of memory and a 6-bit code 8: ``QuantizedTensor.nbytes`` counts what is
allocated, ``bits_per_weight`` what is needed, and the two differ exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def width(bits: int) -> int:
    """The bits that a code of so many bits occupies: 4 or 8. Raises ValueError outside 2 to 8."""
    if bits not in range(2, 9):
        raise ValueError(f"bits must be a whole number from 2 to 8, got {bits!r}")
    return 4 if bits <= 4 else 8


def packed_bytes(shape: Sequence[int], bits: int) -> int:
    """Bytes of the packed form of codes [..., in]; each row starts at a byte of its own."""
    *rows, columns = shape
    return torch.Size(rows).numel() * -(-columns * width(bits) // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes int8 [out, in] to bytes uint8: [out, ceil(in/2)] for up to 4 bits, [out, in] for more.

    A nibble holds code + 8, so that nibble 0 is code −8; of two neighbours the first takes the low nibble, and
    the last nibble of an odd row is 0. A byte holds the code in two's complement, as int8 does.

    Raises TypeError if codes are not an int8 matrix, ValueError if one does not fit into so many bits.
    """
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise TypeError(f"codes must be int8 [out, in], got {codes.dtype} {list(codes.shape)}")
    limit = 2 ** (bits - 1) if width(bits) else 0
    if codes.numel() and not codes.is_meta:
        low, high = (int(v) for v in codes.aminmax())
        if low < -limit or high >= limit:
            raise ValueError(
                f"codes run from {low} to {high}, but {bits} bits hold {-limit} to {limit - 1}: use more bits or clamp first"
            )
    if width(bits) == 8:
        return codes.contiguous().view(torch.uint8)
    out, columns = codes.shape
    nibbles = torch.zeros(
        (out, columns + columns % 2), dtype=torch.uint8, device=codes.device
    )  # [out, in rounded up to even]
    nibbles[:, :columns] = codes + 8
    return nibbles[:, 0::2] | nibbles[:, 1::2] << 4  # [out, ceil(in/2)]


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Bytes from pack back to codes int8 [out, columns].

    Raises TypeError if packed is not a uint8 matrix, ValueError if its rows are not as long as columns need.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 2:
        raise TypeError(f"packed must be uint8 [out, bytes], got {packed.dtype} {list(packed.shape)}")
    if packed.shape[1] != packed_bytes((1, columns), bits):
        raise ValueError(
            f"{columns} codes of {bits} bits take {packed_bytes((1, columns), bits)} bytes a row, got {packed.shape[1]}: were they packed with other bits?"
        )
    if width(bits) == 8:
        return packed.view(torch.int8).clone()
    nibbles = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(1)  # [out, in rounded up to even]
    return (nibbles[:, :columns].to(torch.int8) - 8).contiguous()  # [out, in]
