"""Codes to bytes and back, bit-exactly. Start from :func:`pack`; checkpoints keep words (:func:`pack_words`).

Two widths exist, because two widths are what kernels read: a nibble for codes of 2 to 4 bits, a byte for 5 to 8.
A 3-bit code therefore costs 4 bits of memory and a 6-bit code 8: ``QuantizedTensor.nbytes`` counts what is
allocated, ``bits_per_weight`` what is needed, and the two differ exactly there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight neighbours the nibbles of a word hold, the lowest first


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


def pack_words(values: Tensor, bits: int, order: Sequence[int] | None = None) -> Tensor:
    """Unsigned values uint8 [rows, n] of 2, 4 or 8 bits to int32 words [rows, ceil(n · bits / 32)], the lowest bits first.

    order  which of 32 / bits neighbours the places of a word hold, from the lowest on; None: as they stand. A row whose
           length no word divides ends in zeros.

    Raises TypeError if values are no uint8 matrix, ValueError for other bits and a value that does not fit into them.

    >>> hex(pack_words(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8), 4).item() & 0xFFFFFFFF)
    '0x87654321'
    """
    count = per_word(bits)
    if values.dtype != torch.uint8 or values.ndim != 2:
        raise TypeError(f"values must be uint8 [rows, n], got {values.dtype} {list(values.shape)}")
    if values.numel() and int(values.max()) >= 2**bits:
        raise ValueError(f"values reach {int(values.max())}, but {bits} bits hold 0 to {2**bits - 1}")
    rows, n = values.shape
    padded = values.new_zeros((rows, -(-n // count) * count))
    padded[:, :n] = values
    if order is not None:
        padded = padded.unflatten(1, (-1, count))[..., list(order)].flatten(1)
    parts = padded.unflatten(1, (-1, 8 // bits))  # [rows, bytes, values of a byte]
    packed = padded.new_zeros(parts.shape[:2])
    for place in range(parts.shape[2]):
        packed |= parts[..., place] << (bits * place)
    return packed.flatten().view(torch.int32).view(rows, -(-n // count))  # [rows, words]


def unpack_words(words: Tensor, bits: int, n: int, order: Sequence[int] | None = None) -> Tensor:
    """Words from pack_words back to values uint8 [rows, n].

    Raises TypeError if words are no int32 matrix, ValueError for other bits and rows that are not as long as n needs.
    """
    count = per_word(bits)
    if words.dtype != torch.int32 or words.ndim != 2:
        raise TypeError(f"words must be int32 [rows, words], got {words.dtype} {list(words.shape)}")
    if words.shape[1] != -(-n // count):
        raise ValueError(f"{n} values of {bits} bits take {-(-n // count)} words a row, got {words.shape[1]}")
    packed = words.flatten().view(torch.uint8).view(len(words), 4 * words.shape[1])  # [rows, bytes]
    parts = [packed >> (bits * place) & (2**bits - 1) for place in range(8 // bits)]
    values = torch.stack(parts, dim=-1).flatten(1)  # [rows, words · values of a word]
    if order is not None:
        places = torch.tensor(order, device=words.device).argsort()
        values = values.unflatten(1, (-1, count))[..., places].flatten(1)
    return values[:, :n].contiguous()


def per_word(bits: int) -> int:
    """How many values of 2, 4 or 8 bits a word of 32 holds. Raises ValueError for others, which cross words."""
    if bits not in (2, 4, 8):
        raise ValueError(f"bits must be 2, 4 or 8 to fill words of 32 without a remainder, got {bits!r}")
    return 32 // bits
