"""Figures for the lessons, from the first line to the page. Start from :func:`new`, finish with :func:`show`.

    fig, ax = new("text")                                  # sizes: text, wide, margin
    ax.plot(bits, decibels, color=GRID)
    axes(ax, x="bits per weight", y="signal to error", unit="dB")
    label(ax, 8, 41.5, "one scale per row", GRID)          # words beside the line, not a legend
    show(fig, alt="Each further bit lowers the error by 6.02 dB, until …", caption="…")

The style itself is in quantlib.figures, what becomes of a figure on its way to the page in quantlib.svg.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from IPython.display import display
from matplotlib.figure import Figure

from quantlib.figures import ERROR, EXACT, GRID, HAIR, INK, MUTED, Stage, axes, comb, fade, label, new, number, picture
from quantlib.microscope import microscope
from quantlib.svg import Picture

__all__ = [
    "ERROR", "EXACT", "GRID", "HAIR", "INK", "MUTED", "Stage",
    "axes", "comb", "fade", "label", "microscope", "new", "number", "picture", "show",
]  # fmt: skip


def show(figure: Figure | Picture, *, alt: str, caption: str = "", columns: Sequence[tuple[str, str]] = ()) -> None:
    """Show a figure on a page: one SVG for light and dark, with its alternative text and caption.

    alt      what the figure shows, in a sentence with its numbers, for those who cannot see it. Required.
    caption  how to see it. Plain words with *emphasis*, `code` and [coloured words]{.exact}.
    columns  (words, number) pairs that stand under equal parts of a wide figure.

    In the book the SVG is set inline and follows the page's colours; in JupyterLab its fallback colours read on light
    and dark, and the caption stands below. As text the output is "Figure: " and alt. Raises ValueError for an alt that
    is no sentence.
    """
    alt = _sentence(alt)
    drawn = figure if isinstance(figure, Picture) else picture(figure)
    about = {"alt": alt, "caption": caption, "columns": [list(pair) for pair in columns]}
    about = {name: value for name, value in about.items() if value}
    display(
        {"image/svg+xml": drawn.svg(alt), "text/plain": f"Figure: {alt}"}, metadata={"image/svg+xml": about}, raw=True
    )
    if caption:  # for notebooks: the book has it from the metadata above, and drops this
        plain = re.sub(r"\[([^\]]*)\]\{\.\w+\}", r"\1", caption)
        display(
            {"text/markdown": plain, "text/plain": plain}, metadata={"text/markdown": {"role": "caption"}}, raw=True
        )


def _sentence(alt: str) -> str:
    words = alt.split() if isinstance(alt, str) else ()
    if len(words) < 4:
        raise ValueError(f"alt must say what the figure shows, in a sentence with its numbers, got {alt!r}")
    return " ".join(words)
