"""One frame of a widget, and all of them packed. Start from :class:`Frame`, which a widget's draw function returns.

Frames of one widget differ in little. `pack` stores every piece of markup once, in a table, and each frame as the list
of its pieces: a hundred frames of a figure take about as much as ten whole ones.
"""

from __future__ import annotations

import itertools
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape

from matplotlib.figure import Figure

from quantlib.book.choices import Choice
from quantlib.book.svg import Picture, picture


@dataclass(frozen=True)
class Frame:
    """What one setting shows.

    figure    a matplotlib Figure, the Picture of a `Stage`, or HTML (a table, bars) as a string; once drawn, pieces of it
    finding   what is to be seen, in words with numbers: the alternative text of the figure, read out after each change
    readouts  name -> number with unit, up to four, the same names in every frame
    meaning   "exact", "grid" or "error": the colour of the first readout
    best      choice -> its best value while the others stay: a mark under its ruler
    remark    a line under the controls
    """

    figure: Figure | Picture | str | tuple[str, ...]
    finding: str = ""
    readouts: Mapping[str, str] = field(default_factory=dict)
    meaning: str = ""
    best: Mapping[str, object] = field(default_factory=dict)
    remark: str = ""


def message(frame: Frame) -> dict:
    """What a kernel sends of what `shown` made: the picture has the finding as its alternative text."""
    said = {name: value for name, value in vars(frame).items() if name != "figure"}
    picture = "".join(frame.figure).replace('aria-label=""', f'aria-label="{escape(frame.finding)}"', 1)
    return said | {"picture": picture, "readouts": [list(pair) for pair in frame.readouts.items()]}


def settings(choices: Mapping[str, Choice]) -> list[tuple[int, ...]]:
    """Every setting as the stops of its choices; the last choice runs fastest."""
    return list(itertools.product(*(range(len(made.values)) for made in choices.values())))


def values(choices: Mapping[str, Choice], at: Sequence[int]) -> dict:
    """The arguments of draw for a setting."""
    return {name: made.values[stop] for (name, made), stop in zip(choices.items(), at, strict=True)}


def said(choices: Mapping[str, Choice], at: Sequence[int]) -> list[str]:
    """A setting in words, choice by choice."""
    return [f"{made.label} {made.said(stop)}" for made, stop in zip(choices.values(), at, strict=True)]


def shown(draw: Callable, name: str, choices: Mapping[str, Choice], at: Sequence[int]) -> Frame:
    """The frame of one setting as a page needs it: figure as pieces of markup, an SVG's root still without its words;
    best as stops. Raises what draw raises, and TypeError or ValueError if it returns no frame.
    """
    drawn = draw(**values(choices, at))
    frame = drawn if isinstance(drawn, Frame) else Frame(drawn)
    finding = " ".join(frame.finding.split()) or ", ".join(said(choices, at))
    for choice in frame.best.keys() - choices.keys():
        raise ValueError(f"best names {choice!r}, which is no choice of this widget: use one of {', '.join(choices)}")
    best = {choice: choices[choice].stop(value) for choice, value in frame.best.items()}
    return replace(frame, figure=_pieces(frame.figure, name), finding=finding, best=best)


def _pieces(figure: object, name: str) -> tuple[str, ...]:
    """Markup in the pieces that frames may have in common: elements, and how they look."""
    if isinstance(figure, Figure):
        if "matplotlib.pyplot" in sys.modules:  # else a notebook shows pyplot's figures a second time
            sys.modules["matplotlib.pyplot"].close(figure)
        figure = picture(figure)
    if isinstance(figure, Picture):
        figure = figure.within(name).svg("")
    html = figure._repr_html_() if hasattr(figure, "_repr_html_") else figure
    if not isinstance(html, str):
        raise TypeError(f"draw must return a Frame, a matplotlib Figure or HTML, got {type(figure).__name__}")
    # where a thing lies differs between frames, how it looks hardly ever: cut between
    return tuple(re.split("(?<=\n)|(?=<[^/]| clip-path=| style=|;stroke:)", html))


def pack(frames: Sequence[Frame]) -> dict:
    """All frames of a widget as `shown` makes them, in the order of `settings`, as JSON for its page.

    table   pieces of markup, in the order of their first use
    frames  for each: p its pieces as places in the table ("0-12 40"), f finding, v values of readouts, b best, r remark
    Raises ValueError if the frames name their readouts differently.
    """
    names = list(dict.fromkeys(", ".join(frame.readouts) or "none" for frame in frames))
    if len(names) > 1:
        raise ValueError(f"all frames must have the same readouts: one has {names[0]}, another {names[1]}")
    first, packed = frames[0], []
    table: dict[str, int] = {}
    for frame in frames:
        places = [table.setdefault(piece, len(table)) for piece in frame.figure]
        values = list(frame.readouts.values())
        kept = {"p": _runs(places), "f": frame.finding, "v": values, "b": dict(frame.best), "r": frame.remark}
        packed.append({key: value for key, value in kept.items() if value})
    return {"table": list(table), "readouts": list(first.readouts), "meaning": first.meaning, "frames": packed}


def _runs(places: list[int]) -> str:
    """[0, 1, 2, 7] -> "0-2 7"."""
    runs = itertools.groupby(enumerate(places), lambda pair: pair[1] - pair[0])
    ends = [(run[0][1], run[-1][1]) for run in (list(pairs) for _, pairs in runs)]
    return " ".join(f"{a}-{b}" if b > a else str(a) for a, b in ends)
