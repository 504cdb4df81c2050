"""packing.py: round trips are exact, and the bytes are the documented ones."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.numerics.packing import AWQ_ORDER, pack, pack_words, packed_bytes, unpack, unpack_words, width


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


# --- words, as checkpoints keep them


def _by_hand(values, bits, order):
    """The words of one row, in plain integers."""
    count = 32 // bits
    words = []
    for start in range(0, len(values), count):
        part = (values[start : start + count] + [0] * count)[:count]
        word = sum(part[k] << (bits * place) for place, k in enumerate(order or range(count)))
        words.append(word - 2**32 if word >= 2**31 else word)
    return words


@given(st.data())
def test_words_are_what_integers_say_and_come_back(data):
    bits = data.draw(st.sampled_from([2, 4, 8]))
    order = AWQ_ORDER if bits == 4 and data.draw(st.booleans()) else None
    rows, n = data.draw(st.integers(1, 4)), data.draw(st.integers(0, 70))
    values = torch.randint(0, 2**bits, (rows, n), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)
    words = pack_words(values, bits, order)
    assert words.tolist() == [_by_hand(row, bits, order) for row in values.tolist()]
    assert unpack_words(words, bits, n, order).equal(values)


def test_words_refuse_what_does_not_fit():
    for bits in (3, 5, 16):
        with pytest.raises(ValueError, match="2, 4 or 8"):
            pack_words(torch.zeros(1, 8, dtype=torch.uint8), bits)
    with pytest.raises(ValueError, match="4 bits hold 0 to 15"):
        pack_words(torch.full((1, 8), 16, dtype=torch.uint8), 4)
    with pytest.raises(ValueError, match="9 values of 4 bits take 2 words a row, got 1"):
        unpack_words(torch.zeros(1, 1, dtype=torch.int32), 4, 9)
    with pytest.raises(TypeError):
        pack_words(torch.zeros(1, 8, dtype=torch.int8), 4)
    with pytest.raises(TypeError):
        unpack_words(torch.zeros(1, 8, dtype=torch.uint8), 4, 8)
