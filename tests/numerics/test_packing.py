"""packing.py: round trips are exact, and the bytes are the documented ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.numerics.packing import pack, packed_bytes, unpack, width


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 8), st.integers(0, 6), st.integers(0, 33), st.integers(0, 2**31))
def test_round_trip(bits, rows, columns, seed):
    codes = torch.randint(
        -(2 ** (bits - 1)), 2 ** (bits - 1), (rows, columns), generator=torch.Generator().manual_seed(seed)
    ).to(torch.int8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8 and packed.numel() == packed_bytes(codes.shape, bits)
    assert torch.equal(unpack(packed, bits, columns), codes)


def test_the_bytes_themselves():
    codes = torch.tensor([[-8, 7, 0, -1, 3]], dtype=torch.int8)
    assert [f"{b:02x}" for b in pack(codes, 4)[0].tolist()] == [
        "f0",
        "78",
        "0b",
    ]  # low nibble first, code + 8, padded with 0
    assert [f"{b:02x}" for b in pack(torch.tensor([[-128, -1, 0, 127]], dtype=torch.int8), 8)[0].tolist()] == [
        "80",
        "ff",
        "00",
        "7f",
    ]


def test_non_contiguous_codes_pack_as_their_copy_does():
    codes = torch.randint(-8, 8, (6, 8), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    for bits in (4, 8):
        assert torch.equal(pack(codes.T, bits), pack(codes.T.contiguous(), bits))


def test_packing_never_shares_memory_on_the_way_back():
    packed = pack(torch.zeros(2, 2, dtype=torch.int8), 8)
    unpack(packed, 8, 2).fill_(1)
    assert not packed.any()


def test_width_is_what_a_kernel_reads():
    assert [width(b) for b in range(2, 9)] == [4, 4, 4, 8, 8, 8, 8]
    for bits in (0, 1, 9, 3.5, "4"):
        with pytest.raises(ValueError, match="bits must be"):
            width(bits)


def test_what_does_not_fit_is_refused():
    codes = torch.tensor([[5]], dtype=torch.int8)
    with pytest.raises(ValueError, match="codes run from 5 to 5, but 3 bits hold -4 to 3"):
        pack(codes, 3)
    with pytest.raises(TypeError, match="codes must be int8"):
        pack(codes.int(), 4)
    with pytest.raises(TypeError, match="packed must be uint8"):
        unpack(codes, 4, 1)
    with pytest.raises(ValueError, match="9 codes of 4 bits take 5 bytes a row, got 4"):
        unpack(torch.zeros(1, 4, dtype=torch.uint8), 4, 9)
