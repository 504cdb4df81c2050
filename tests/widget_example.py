"""Two small widgets that tests show live and on paper."""

import numpy as np

from quantlib.book.figures import ERROR, EXACT, GRID, Stage, axes, comb, new, number
from quantlib.book.widgets import Frame, choice, explore, steps

WEIGHTS = np.random.default_rng(0).normal(size=64) / 4


def rounding(fails_at=None):
    """Bits × where one scale ends × clip: an SVG, readouts, a best stop. Fails at so many bits, if told to."""
    figure, ax = new("text", height=1.5)
    ax.set(xlim=(-1, 1), ylim=(-1, 1), yticks=[])
    axes(ax, x="weight")
    stage = Stage(figure)

    def error(bits, per, clip):
        top = 2 ** (bits - 1) - 1
        step = (1 if per == "matrix" else np.abs(WEIGHTS).max()) * clip / top
        rounded = np.clip(np.round(WEIGHTS / step), -top, top) * step
        return step, top, np.sqrt(((WEIGHTS - rounded) ** 2).mean() / (WEIGHTS**2).mean())

    def draw(bits, per, clip):
        if bits == fails_at:
            raise ZeroDivisionError("no bits, no steps")
        step, top, rms = error(bits, per, clip)
        with stage as (ax,):
            comb(ax, WEIGHTS, 0, 0.8, EXACT)
            comb(ax, np.arange(-top, top + 1) * step, -0.8, -0.2, GRID)
            ax.plot([-rms, rms], [0, 0], color=ERROR)
            picture = stage.picture()
        best = min((0.5, 0.75, 1.0), key=lambda end: error(bits, per, end)[2])
        said = number(100 * rms, "%")
        finding = f"With {bits} bits, a scale per {per} and an end at {clip:g} the error is {said}."
        return Frame(
            picture, finding, {"error": said, "points": str(2 * top + 1)}, "error", {"clip": best}, f"{bits} bits"
        )

    return explore(
        draw,
        name="rounding",
        bits=choice(range(2, 6), label="Bits per weight", start=4),
        per=choice({"matrix": "matrix", "row": "this row"}, label="One scale per", start="row"),
        clip=choice((0.5, 0.75, 1.0), label="The grid ends at", start=1.0, help="of the largest weight"),
        title="Where should the grid end?",
        question="Find the *best* end for two bits.",
        caption="Blue: the [weights]{.exact}. Orange: the points.",
    )


def walk():
    """A sequence of HTML tables, and a list to choose from."""

    def draw(column, order):
        return Frame(
            f"<table><tr><td>{order}</td><td>{column}</td></tr></table>", f"Column {column} of the {order} order."
        )

    orders = choice(["natural", "by size, largest first", "by size, smallest first"], label="Order", kind="select")
    return explore(draw, name="walk", column=steps(range(5), label="Column"), order=orders)
