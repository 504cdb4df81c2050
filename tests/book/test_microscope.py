"""The byte microscope shows the codes and bytes that quantize and pack make."""

import re

import pytest
import torch

from quantlib.book.figures import picture
from quantlib.book.microscope import microscope
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import pack
from quantlib.numerics.quantize import quantize

W = torch.randn(64, generator=torch.Generator().manual_seed(0)) / 20


def words(figure):
    """The words of a figure in the order of painting."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", "".join(picture(figure).elements))


def rows(figure, *names):
    """name -> its words on all lines: each row is painted before its name."""
    found, pending = {name: [] for name in names}, []
    for word in words(figure):
        if word in found:
            found[word] += pending
        pending = [] if word in (*names, "weight", "error") else [*pending, word]
    return found


@pytest.mark.parametrize(
    "grid", [Grid(4, 32), Grid(4, 64, narrow_range=True), Grid(3, "row", symmetric=False), Grid(8, "row"), Grid(2, 32)]
)
def test_codes_and_bytes_are_those_of_the_tensor(grid):
    q = quantize(W[None], grid)
    shown = rows(microscope(W, q), "code", "bytes")
    assert [int(word.replace("\u2212", "-")) for word in shown["code"]] == q.codes[0].tolist()
    assert bytes.fromhex("".join(shown["bytes"])) == bytes(pack(q.codes, grid.bits)[0].tolist())


def test_the_first_code_is_the_low_nibble():
    w = torch.zeros(32)
    w[0], w[1] = 1.0, -1.0  # codes 7 and −7: nibbles f and 1
    assert rows(microscope(w, quantize(w[None], Grid(4, narrow_range=True))), "bytes")["bytes"][0] == "1f"


def test_later_stages_stand_below():
    q = quantize(W[None], Grid(4, 32))
    shown = rows(
        microscope(W, q, {"words": [0x12345678, -1], "output": torch.tensor([0.25, -3.0]), "file": b"\x00\xff"}),
        "bytes",
        "words",
        "output",
        "file",
    )
    assert shown["words"] == ["12345678", "ffffffff"]
    assert shown["output"] == ["0.25", "\u22123.00"]
    assert shown["file"] == ["00", "ff"]


def test_each_group_has_its_own_points():
    w = torch.cat([W[:32], W[:32] / 10])
    paths = [e for e in picture(microscope(w, quantize(w[None], Grid(4, 32)))).elements if "stroke-width:0.5" in e]
    levels = [sorted({float(n) for n in re.findall(r"M[\d.]+ ([\d.]+)", path)}) for path in paths]
    assert [len(path.split("M")) - 1 for path in paths] == [16, 16]
    assert levels[0][-1] - levels[0][0] > 5 * (levels[1][-1] - levels[1][0])


def test_it_fits_the_budget_of_a_figure():
    assert len(picture(microscope(W, quantize(W[None], Grid(4, 32)))).svg("a b c d")) < 40_000


@pytest.mark.parametrize(
    ("w", "q"), [(W[:40], W[None, :40]), (W, W[None, :32]), (W[None], W[None]), (W[:0], W[None, :32])]
)
def test_weights_and_codes_must_belong_together(w, q):
    with pytest.raises(ValueError, match=r"microscope needs w \[n\] and q \[1, n\] with n a multiple of 32"):
        microscope(w, quantize(q, Grid(4)))
