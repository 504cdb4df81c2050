"""The byte microscope: the same few weights, drawn the same way on every page. Start from :func:`microscope`.

Weights stand side by side, 32 to a line. Top down: the weight as trained, and the points of its group's grid with the
one it is rounded to; the code; the error; the bytes that hold the codes. Later pages add what comes after: words, a
checkpoint, an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from quantlib.book.figures import ERROR, EXACT, GRID, HAIR, INK, MUTED, SIZES, comb, new, number
from quantlib.book.svg import RASTER
from quantlib.numerics.packing import pack
from quantlib.numerics.quantize import QuantizedTensor

_LINE = 32  # weights
_LEFT, _WIDTH = 46, SIZES["text"][0] * 72  # units: where the first weight stands, how wide the figure is
_COLUMN = (_WIDTH - _LEFT) / _LINE
_BAND, _TEETH, _ROW = 76, 28, 16  # units: the height of the weights, of the errors, of a row of text
_GAP = 20  # units between lines
_MOST_POINTS = 31  # a grid with more points is shown by its two ends


def microscope(
    w: Tensor, q: QuantizedTensor, stages: Mapping[str, bytes | Sequence] | None = None, name: str = "weight"
) -> Figure:
    """Draw weights from float to bytes: show(microscope(w, quantize(w[None], Grid(bits=4, group_size=32))), alt="…").

    w       float [n], n a multiple of 32: part of a row, as trained
    q       the same weights on their grid: codes int8 [1, n], in the order of w; ValueError if they do not fit
    stages  what comes after the packed bytes, name -> bytes (shown in hexadecimal), whole numbers (words of 32 bits, in
            hexadecimal), other numbers, or words; spread evenly under the weights
    name    what w holds
    """
    if w.ndim != 1 or tuple(q.shape) != (1, len(w)) or not len(w) or len(w) % _LINE:
        raise ValueError(
            f"microscope needs w [n] and q [1, n] with n a multiple of {_LINE}, "
            f"got {list(w.shape)} and {list(q.shape)}: cut a part of one row"
        )
    rows = {"bytes": bytes(pack(q.codes, q.grid.bits)[0].tolist())} | dict(stages or {})
    lines = len(w) // _LINE
    code_height, turned = (_ROW, 0) if q.grid.bits <= 4 else (2 * _ROW, 90)
    height = _BAND + code_height + _TEETH + _ROW * len(rows)  # of a line, in units
    figure, ax = new("text", height=(lines * height + (lines - 1) * _GAP + 4) / 72)
    figure.set_layout_engine("none")
    figure.set_label(RASTER)
    ax.set(position=(0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(figure.get_figheight() * 72, 0))  # units, downwards
    ax.axis("off")
    values, rounded = (t.detach().double().numpy() for t in (w, q.dequantize()[0]))
    errors = np.clip((values - rounded) / _per_weight(q, q.scale), -0.5, 0.5)  # cut off where a weight was clipped
    unit = (_BAND / 2 - 4) / (max(np.abs(values).max(), np.abs(rounded).max()) or 1.0)
    codes = [str(code).replace("-", "\u2212") for code in q.codes[0].tolist()]
    for line in range(lines):
        part, top = slice(line * _LINE, (line + 1) * _LINE), line * (height + _GAP)
        _grid(ax, top + _BAND / 2, rounded[part] * unit, _points(q)[:, part] * unit)
        _strokes(ax, top + _BAND / 2, name, values[part] * unit, EXACT, 1.8)
        top += _BAND
        _text_row(ax, top + code_height / 2, "code", codes[part], GRID, color=GRID, size=9, rotation=turned)
        top += code_height
        _strokes(ax, top + _TEETH / 2, "error", errors[part] * (_TEETH - 4), ERROR, 3)
        top += _TEETH
        for row, items in rows.items():
            if words := _share(_words(items), line, lines):
                _under(ax, top, row, words)
            top += _ROW
    return figure


def _columns(count: int = _LINE) -> np.ndarray:
    """The centres of so many equal columns."""
    return _LEFT + (np.arange(count) + 0.5) * _COLUMN * _LINE / count


def _per_weight(q: QuantizedTensor, values: Tensor) -> np.ndarray:
    """Values of the groups [1, groups] as one a weight, [n]."""
    group = torch.arange(q.shape[1]) * values.shape[1] // q.shape[1] if q.g_idx is None else q.g_idx.long()
    return values[0, group].double().numpy()


def _points(q: QuantizedTensor) -> np.ndarray:
    """The grid points of each weight, [points, n]; of a fine grid only its two ends."""
    codes = np.arange(q.grid.qmin, q.grid.qmax + 1)
    codes = codes if len(codes) <= _MOST_POINTS else codes[[0, -1]]
    zero = 0 if q.zero_point is None else _per_weight(q, q.zero_point)
    return (codes[:, None] - zero) * _per_weight(q, q.scale)


def _grid(ax: Axes, middle: float, rounded: np.ndarray, points: np.ndarray) -> None:
    """The points of each group's grid, and the one that each weight is rounded to."""
    x, half, reach = _columns(), _COLUMN * 0.42, _BAND / 2 - 4
    cuts = [0, *(np.flatnonzero((np.diff(points) != 0).any(0)) + 1).tolist(), _LINE]
    for start, end in pairwise(cuts):  # the groups on this line: columns whose points are equal
        y = middle - np.clip(points[:, start], -reach, reach)
        _dashes(ax, x[start] - half, x[end - 1] + half, y, 0.5, alpha=0.6)
    _dashes(ax, x - half, x + half, middle - rounded, 2.2)


def _dashes(ax: Axes, left: ArrayLike, right: ArrayLike, y: np.ndarray, lw: float, color: str = GRID, **line) -> None:
    """Level strokes from left to right at y, all in one path."""
    ends = np.stack(np.broadcast_arrays(left, right, np.nan), -1) + 0 * y[:, None]  # [strokes, 3]: NaN lifts the pen
    ax.plot(ends.ravel(), np.repeat(y, 3), color=color, lw=lw, **line)


def _strokes(ax: Axes, middle: float, name: str, heights: np.ndarray, colour: str, width: float) -> None:
    """One upright stroke a weight, from a rule in the middle."""
    ax.plot([_LEFT, _WIDTH], [middle, middle], color=HAIR, lw=0.7)
    comb(ax, _columns(), middle, middle - heights, colour, width)
    _text_row(ax, middle, name, [], colour)


def _under(ax: Axes, top: float, name: str, words: list[str]) -> None:
    """Words under the weights that they hold; a rule above each says how many these are."""
    x, narrow = _columns(len(words)), len(words) >= _LINE
    if not narrow:
        half = (_LINE / len(words) - 1) * _COLUMN / 2 + 2
        _dashes(ax, x - half, x + half, np.full(len(words), top), 0.7, HAIR)
    _text_row(ax, top + _ROW / 2, name, words, MUTED, color=INK, size=8.5 if narrow else 9, family="monospace")


def _text_row(ax: Axes, y: float, name: str, words: list[str], colour: str, **style) -> None:
    """Words in equal columns, and left of them the row's name in its colour."""
    for x, word in zip(_columns(len(words)) if words else [], words, strict=True):
        ax.text(x, y, word, ha="center", va="center", **style)
    ax.text(0, y, name, color=colour, size=9, ha="left", va="center")


def _words(items: bytes | Sequence) -> list[str]:
    if isinstance(items, bytes):
        return [f"{byte:02x}" for byte in items]
    said = {int: lambda word: f"{word & 0xFFFFFFFF:08x}", float: number}
    return [said.get(type(item), str)(item) for item in (items.tolist() if hasattr(items, "tolist") else items)]


def _share(words: list[str], line: int, lines: int) -> list[str]:
    """The words that stand under one of the lines; all under the first, where they cannot be shared out evenly."""
    each = len(words) if len(words) % lines else len(words) // lines
    return words[line * each : (line + 1) * each]
