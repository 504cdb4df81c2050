"""The byte microscope: the same few weights, drawn the same way on every page. Start from :func:`microscope`.

Weights stand side by side, 32 to a line. Top down: the weight as trained, and the points of its group's grid with the
one it is rounded to; the code; the error; the bytes that hold the codes. Later pages add what comes after: words, a
checkpoint, an output.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from quantlib.figures import ERROR, EXACT, GRID, HAIR, INK, MUTED, SIZES, comb, new, number
from quantlib.grid import QuantizedTensor
from quantlib.packing import pack
from quantlib.svg import RASTER

_LINE = 32  # weights
_LEFT, _WIDTH = 46, SIZES["text"][0] * 72  # units: where the first weight stands, how wide the figure is
_COLUMN = (_WIDTH - _LEFT) / _LINE
_BAND, _TEETH, _ROW = 76, 28, 16  # units: the height of the weights, of the errors, of a row of text
_GAP = 20  # units between lines
_MOST_POINTS = 31  # a grid with more points is shown by its two ends


def microscope(
    w: Tensor, q: QuantizedTensor, stages: Mapping[str, bytes | Sequence] | None = None, name: str = "weight"
) -> Figure:
    """Draw weights from float to bytes.

    w       float [n], n a multiple of 32: part of a row, as trained
    q       the same weights on their grid: codes int8 [1, n], in the order of w
    stages  what comes after the packed bytes, name -> bytes (shown in hexadecimal), whole numbers (words of 32 bits, in
            hexadecimal), other numbers, or words; spread evenly under the weights
    name    what w holds

    Raises ValueError if w and q do not belong together.

    >>> q = quantize(w[None], Grid(bits=4, group_size=32))
    >>> show(microscope(w, q), alt="…")
    """
    if w.ndim != 1 or tuple(q.shape) != (1, len(w)) or not len(w) or len(w) % _LINE:
        raise ValueError(
            f"microscope needs w [n] and q [1, n] with n a multiple of {_LINE}, "
            f"got {list(w.shape)} and {list(q.shape)}: cut a part of one row"
        )
    rows = {"bytes": bytes(pack(q.codes, q.grid.bits)[0].tolist())} | dict(stages or {})
    lines = len(w) // _LINE
    code_height = _ROW if q.grid.bits <= 4 else 2 * _ROW
    height = _BAND + code_height + _TEETH + _ROW * len(rows)  # of a line, in units
    figure, ax = new("text", height=(lines * height + (lines - 1) * _GAP + 4) / 72)
    figure.set_layout_engine("none")
    figure.set_label(RASTER)
    ax.set(position=(0, 0, 1, 1), xlim=(0, _WIDTH), ylim=(figure.get_figheight() * 72, 0))  # units, downwards
    ax.axis("off")
    values, rounded = (t.detach().double().numpy() for t in (w, q.dequantize()[0]))
    reach = max(np.abs(values).max(), np.abs(rounded).max()) or 1.0
    for line in range(lines):
        part = slice(line * _LINE, (line + 1) * _LINE)
        top = line * (height + _GAP)
        _weights(ax, top, values[part], rounded[part], _points(q, part), reach, name)
        _codes(ax, top + _BAND, q.codes[0, part].tolist(), code_height)
        _errors(ax, top + _BAND + code_height, values[part] - rounded[part], _steps(q, part))
        for place, (name, items) in enumerate(rows.items()):
            _text_row(ax, top + _BAND + code_height + _TEETH + place * _ROW, name, _share(_words(items), line, lines))
    return figure


def _columns(count: int = _LINE) -> np.ndarray:
    """The centres of so many equal columns."""
    return _LEFT + (np.arange(count) + 0.5) * _COLUMN * _LINE / count


def _steps(q: QuantizedTensor, part: slice) -> np.ndarray:
    """The grid step of each weight, [32]."""
    return _per_weight(q, q.scale)[part]


def _per_weight(q: QuantizedTensor, values: Tensor) -> np.ndarray:
    """Values of the groups [1, groups] as one a weight, [n]."""
    columns = q.shape[1]
    group = q.g_idx.long() if q.g_idx is not None else None
    spread = values[0, group] if group is not None else values[0].repeat_interleave(columns // values.shape[1])
    return spread.double().numpy()


def _points(q: QuantizedTensor, part: slice) -> np.ndarray:
    """The grid points of each weight, [points, 32]; of a fine grid only its two ends."""
    codes = np.arange(q.grid.qmin, q.grid.qmax + 1)
    codes = codes if len(codes) <= _MOST_POINTS else codes[[0, -1]]
    zero = 0 if q.zero_point is None else _per_weight(q, q.zero_point)[part]
    return (codes[:, None] - zero) * _steps(q, part)


def _weights(
    ax: Axes, top: float, values: np.ndarray, rounded: np.ndarray, points: np.ndarray, reach: float, name: str
) -> None:
    x, middle, unit = _columns(), top + _BAND / 2, (_BAND / 2 - 4) / reach
    for start, end in _runs(points):
        left, right = x[start] - _COLUMN * 0.42, x[end - 1] + _COLUMN * 0.42
        _dashes(ax, left, right, middle - np.clip(points[:, start], -reach, reach) * unit, 0.5, alpha=0.6)
    _dashes(ax, x - _COLUMN * 0.42, x + _COLUMN * 0.42, middle - rounded * unit, 2.2)
    ax.plot([_LEFT, _WIDTH], [middle, middle], color=HAIR, lw=0.7)
    comb(ax, x, middle, middle - values * unit, EXACT, 1.8)
    _name(ax, middle, name, EXACT)


def _dashes(
    ax: Axes,
    left: np.ndarray | float,
    right: np.ndarray | float,
    y: np.ndarray,
    width: float,
    color: str = GRID,
    alpha: float = 1,
) -> None:
    """Level strokes from left to right at y, all in one path."""
    ends = np.stack(np.broadcast_arrays(left, right, np.nan), -1) + 0 * y[:, None]  # [strokes, 3]: NaN lifts the pen
    ax.plot(ends.ravel(), np.repeat(y, 3), color=color, lw=width, alpha=alpha)


def _runs(points: np.ndarray) -> list[tuple[int, int]]:
    """Where stretches of columns with equal points [points, 32] start and end: the groups on a line."""
    cuts = [0, *(np.flatnonzero((np.diff(points) != 0).any(0)) + 1).tolist(), points.shape[1]]
    return list(pairwise(cuts))


def _codes(ax: Axes, top: float, codes: list[int], height: float) -> None:
    for x, code in zip(_columns(), codes, strict=True):
        said = str(code).replace("-", "\u2212")
        ax.text(
            x,
            top + height / 2,
            said,
            color=GRID,
            size=9,
            ha="center",
            va="center",
            rotation=0 if height == _ROW else 90,
        )
    _name(ax, top + height / 2, "code", GRID)


def _errors(ax: Axes, top: float, errors: np.ndarray, steps: np.ndarray) -> None:
    """Errors in steps: half a step is as high as the band allows, what was clipped is cut off there."""
    middle = top + _TEETH / 2
    ax.plot([_LEFT, _WIDTH], [middle, middle], color=HAIR, lw=0.7)
    comb(ax, _columns(), middle, middle - np.clip(errors / steps, -0.5, 0.5) * (_TEETH - 4), ERROR, 3)
    _name(ax, middle, "error", ERROR)


def _text_row(ax: Axes, top: float, name: str, words: list[str]) -> None:
    """Words under the weights that they hold; a rule above each says how many these are."""
    if words and len(words) < _LINE:
        half = (_LINE / len(words) - 1) * _COLUMN / 2 + 2
        _dashes(ax, _columns(len(words)) - half, _columns(len(words)) + half, np.full(len(words), top), 0.7, HAIR)
    for x, word in zip(_columns(len(words)), words, strict=True):
        ax.text(
            x,
            top + _ROW / 2,
            word,
            color=INK,
            size=9 if len(words) < _LINE else 8.5,
            ha="center",
            va="center",
            family="monospace",
        )
    if words:
        _name(ax, top + _ROW / 2, name, MUTED)


def _name(ax: Axes, y: float, text: str, colour: str) -> None:
    ax.text(0, y, text, color=colour, size=9, ha="left", va="center")


def _words(items: bytes | Sequence) -> list[str]:
    if isinstance(items, (bytes, bytearray)):
        return [f"{byte:02x}" for byte in items]
    items = items.tolist() if hasattr(items, "tolist") else list(items)
    return [
        f"{v & 0xFFFFFFFF:08x}" if isinstance(v, int) else number(v) if isinstance(v, float) else str(v) for v in items
    ]


def _share(words: list[str], line: int, lines: int) -> list[str]:
    """The words that stand under one of the lines; all under the first, where they cannot be shared out evenly."""
    if len(words) % lines:
        return words if line == 0 else []
    each = len(words) // lines
    return words[line * each : (line + 1) * each]
