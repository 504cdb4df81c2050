"""Figures for the lessons, from the first line to the page. Start from :func:`new`, finish with :func:`show`.

    fig, ax = new("text")                                  # sizes: text, wide, margin
    ax.plot(bits, decibels, color=GRID)
    axes(ax, x="bits per weight", y="signal to error", unit="dB")
    label(ax, 8, 41.5, "one scale per row", GRID)          # words beside the line, not a legend
    show(fig, alt="Each further bit lowers the error by 6.02 dB, until …", caption="…")

A colour means one thing: EXACT the value as trained, GRID what it is rounded to, ERROR the difference. INK, MUTED and
HAIR are words, numbers and rules. Two things of one meaning differ by label, marker, dash or weight. Heat maps run from
the page itself to one of the three: ``ax.imshow(error, cmap=fade(ERROR), interpolation="none")``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.style
import numpy as np
from IPython.display import display
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation
from matplotlib.ticker import LogFormatter, ScalarFormatter

from quantlib.book.svg import ERROR, EXACT, GRID, HAIR, INK, MUTED, Picture, picture, picture_of

SIZES = {"text": (6.0, 3.1), "wide": (8.7, 3.1), "margin": (2.4, 1.9)}  # inches; an inch is 72 units of the SVG
# fmt: off
STYLE = {
    "figure.dpi": 72, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
    "font.size": 9.5, "axes.titlesize": 9.5, "axes.labelsize": 9.5, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "text.color": INK, "axes.labelcolor": MUTED, "xtick.labelcolor": MUTED, "ytick.labelcolor": MUTED,
    "axes.edgecolor": HAIR, "xtick.color": HAIR, "ytick.color": HAIR, "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False, "axes.unicode_minus": True,
    "axes.prop_cycle": mpl.cycler(color=[GRID, EXACT, ERROR, INK]),
    "xtick.major.width": 0.7, "xtick.major.size": 4, "ytick.major.size": 0, "ytick.major.pad": 2,
    "lines.linewidth": 1.6, "lines.markersize": 5, "lines.scale_dashes": False, "lines.solid_capstyle": "butt",
}
# fmt: on
THIN, MINUS = "\u2009", "\u2212"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def new(
    size: str = "text", rows: int = 1, cols: int = 1, *, height: float | None = None, **subplots
) -> tuple[Figure, Axes | np.ndarray]:
    """A figure of a house size and its axes, which are one Axes or an array of them.

    size: "text" (6 inches wide), "wide" (8.7) or "margin" (2.4); height in inches; subplots as Figure.subplots takes
    them. Sets matplotlib's defaults to the house style. The figure is not pyplot's: only `show` shows it.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}")
    mpl.style.use(["default", STYLE])
    width, usual = SIZES[size]
    figure = Figure(figsize=(width, height or usual), layout="constrained")
    return figure, figure.subplots(rows, cols, **subplots)


def axes(ax: Axes, x: str = "", y: str = "", *, unit: str = "", xunit: str = "") -> None:
    """Name the axes, with units. The upright axis has its name above it, level, where it can be read."""
    ax.set_xlabel(f"{x} ({xunit})" if xunit else x, loc="left")
    ax.set_title(f"{y} ({unit})" if unit else y, loc="left", color=MUTED, pad=8)
    for axis in (ax.xaxis, ax.yaxis):
        if isinstance(axis.get_major_formatter(), ScalarFormatter | LogFormatter):  # words given to the ticks stay
            axis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))


def ticks(ax: Axes, *, x: Sequence[float] = (), y: Sequence[float] = ()) -> None:
    """Ticks at these values and nowhere between, in plain digits where matplotlib writes powers: 0.01, 1, 1,000."""
    ax.minorticks_off()
    for axis, values in ((ax.xaxis, x), (ax.yaxis, y)):
        if len(values):
            axis.set_ticks(values, [f"{value:,}" for value in values])


def label(
    ax: Axes, x: float, y: float, text: str, color: str = INK, *, dx: float = 6, dy: float = 0, **words
) -> Annotation:
    """Words beside the thing they name, in its colour; dx and dy in units of the SVG; words: how they stand, as ha."""
    words = {"ha": "left", "va": "center", "linespacing": 1.4, "annotation_clip": False} | words
    return ax.annotate(text, (x, y), (dx, dy), textcoords="offset points", color=color, **words)


def comb(ax: Axes, x, low, high, color: str = GRID, width: float = 1.2, **line) -> Line2D:
    """Upright strokes at x from low to high, all in one path: grid points, or weights. low and high broadcast to x."""
    x, low, high = (np.broadcast_to(v, np.shape(x)) for v in (x, low, high))
    y = np.column_stack([low, high, np.full(len(x), np.nan)])  # [strokes, 3]: NaN lifts the pen
    return ax.plot(np.repeat(x, 3), y.ravel(), color=color, lw=width, **line)[0]


def fade(color: str) -> ListedColormap:
    """A colour map from nothing to color: low values show the page, light or dark."""
    return ListedColormap([(*to_rgb(color), (i / 255) ** 0.8) for i in range(256)])


def number(x: float, unit: str = "", digits: int = 3) -> str:
    """A number for people: `digits` digits, a prefix from a thousand on, a thin space, a true minus.

    >>> number(13_478_000_000, "B"), number(-0.0321), number(999.6)
    ('13.5\u2009GB', '\u22120.0321', '1.00\u2009k')
    """
    if not math.isfinite(x):
        return {math.inf: "∞", -math.inf: f"{MINUS}∞"}.get(x, "undefined")
    mantissa, _, power = f"{x:.{digits - 1}e}".partition("e")  # after rounding: 999.6 is 1.00 k
    power = int(power)
    if power < -4:
        text = f"{mantissa}·10{str(power).translate(_RAISED)}{THIN}"
    elif power < 0:
        text = f"{x:.{digits - 1 - power}f}".rstrip("0") + THIN
    else:
        step = min(power // 3, 4)
        decimals = max(digits - 1 - power + 3 * step, 0) if x else 0
        text = f"{x / 1000**step:.{decimals}f}{THIN}{('', 'k', 'M', 'G', 'T')[step]}"
    return f"{text}{unit}".rstrip(THIN).replace("-", MINUS)


def show(figure: Figure | Picture, *, alt: str, caption: str = "", columns: Sequence[tuple[str, str]] = ()) -> None:
    """Show a figure on a page: one SVG for light and dark, with its caption; as text, "Figure: " and alt.

    alt      what the figure shows, in a sentence with its numbers, for those who cannot see it; ValueError for less
    caption  how to see it. Plain words with *emphasis*, `code` and [coloured words]{.exact}.
    columns  (words, number) pairs that stand under equal parts of a wide figure.
    """
    words = alt.split() if isinstance(alt, str) else ()
    if len(words) < 4:
        raise ValueError(f"alt must say what the figure shows, in a sentence with its numbers, got {alt!r}")
    alt = " ".join(words)
    drawn = figure if isinstance(figure, Picture) else picture(figure)
    about = {"alt": alt, "caption": caption, "columns": [list(pair) for pair in columns]}
    show_captioned({"image/svg+xml": drawn.svg(alt), "text/plain": f"Figure: {alt}"}, about)


def show_captioned(data: dict[str, str], about: dict) -> None:
    """Show an output, its richest form first, with what the book has to know about it; below it the caption, if any."""
    kind = next(iter(data))
    display(data, metadata={kind: {name: value for name, value in about.items() if value}}, raw=True)
    if about["caption"]:  # for notebooks: the book has it from the metadata above, and drops this
        plain = re.sub(r"\[([^\]]*)\]\{\.\w+\}", r"\1", about["caption"])
        role = {"text/markdown": {"role": "caption"}}
        display({"text/markdown": plain, "text/plain": plain}, metadata=role, raw=True)


class Stage:
    """Axes drawn once, under many pictures that differ in what is put on them: a widget's frames, in milliseconds each.

        stage = Stage(fig)                      # limits, names, ticks, and all that stays are set
        def draw(bits):
            with stage as (ax,):
                comb(ax, points(bits), 0, 1)
                return Frame(stage.picture(), "…")

    What is added inside `with` is painted over the axes and removed at its end. Limits stay as they are.
    """

    def __init__(self, figure: Figure):
        figure.dpi = 72
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for ax in figure.axes:
            ax.autoscale(False)
        self.figure, self._kept = figure, []
        self._still, self._kept = picture(figure), self._added()

    def __enter__(self) -> list[Axes]:
        return self.figure.axes

    def __exit__(self, *failure: object) -> None:
        for artist in self._added():
            artist.remove()

    def picture(self) -> Picture:
        """The axes and what was added to them so far."""
        return picture_of(self._added(), self.figure).over(self._still)

    def _added(self) -> list[Artist]:
        return [artist for ax in self.figure.axes for artist in ax.get_children() if artist not in self._kept]
