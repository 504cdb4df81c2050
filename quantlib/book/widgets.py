"""One widget, live in Jupyter and on paper. Start from :func:`explore`.

    def draw(bits, per):
        …                                        # a row, a layer or a record; never a model: 200 ms at most
        return Frame(figure, f"At {bits} bits the error is {error} % of the weights.", {"error": f"{error} %"})

    explore(draw, bits=range(2, 9), per={"row": "row", 64: "64 weights"}, title="How many bits?")

Two views share markup, style and script. Live, in any front end of ipywidgets, the kernel draws a frame when its
setting is first chosen, and an error is shown in its place. On a page without a kernel, such as the book's, the
output's text/html holds all frames: they are drawn where a page is built (QUANTLIB_STATIC=1, or no notebook at all),
and in a notebook as far as two seconds reach, since no reader waits long for what only a saved notebook needs.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import anywidget
import traitlets

from quantlib.book import frames, markup
from quantlib.book.choices import Choice, choice, steps
from quantlib.book.frames import Frame

__all__ = ["Frame", "choice", "explore", "steps"]
_MOST_FRAMES, _MOST_KILOBYTES = 120, 200
_PATIENCE = 2.0  # seconds


def explore(
    draw: Callable,
    *,
    title: str = "",
    question: str = "",
    caption: str = "",
    name: str = "",
    **choices: Choice | Iterable | Mapping,
) -> Explorable:
    """A picture with controls, one for each argument of draw.

    draw      draw(**setting) -> Frame, or only its figure: a matplotlib Figure, the Picture of a Stage, HTML
    choices   for each argument its values: numbers make a ruler, words make segments or a list, a mapping gives values
              the words to show; `choice(…)` adds label, unit, start and help, `steps(…)` also Play and Step
    title     one question, the widget's heading; question says what to find; caption how to read the picture
    name      unique on its page: the address of a setting is #name:4,row. Without it, the arguments' names

    Its `setting` follows the reader and can be assigned: ``widget.setting = {"bits": 3}``.

    Raises ValueError for choices that draw does not take, more than 120 settings, or a bad name; while a page is
    built also for more than 200 kB, and RuntimeError for a setting that draw cannot draw.
    """
    made = {key: value if isinstance(value, Choice) else choice(value) for key, value in choices.items()}
    made = {key: replace(value, label=value.label or key.replace("_", " ")) for key, value in made.items()}
    name = name or "-".join(made)
    if not made:
        raise ValueError("explore needs at least one choice, such as explore(draw, bits=range(2, 9))")
    try:
        inspect.signature(draw).bind(**made)
    except TypeError as error:
        raise ValueError(f"draw and the choices do not fit: {error}; the choices are {', '.join(made)}") from None
    if not re.fullmatch(r"[A-Za-z][\w-]*", name):
        raise ValueError(f"name must be letters, digits, - and _, a letter first, for the address, got {name!r}")
    count = math.prod(len(one.values) for one in made.values())
    if count > _MOST_FRAMES:
        has = f"{count} settings ({' × '.join(f'{len(one.values)} {key}' for key, one in made.items())})"
        raise ValueError(f"the widget {name} has {has}, the budget is {_MOST_FRAMES}: offer fewer stops")
    widget = Explorable(draw, name, made, {"title": title, "question": question, "caption": caption})
    if _building():
        widget.static()
    return widget


class Explorable(anywidget.AnyWidget):
    """What `explore` returns. Its traits `setting` and `at` say the same, in values and in stops."""

    _esm = markup.STATIC / "explore.js"
    _css = markup.STATIC / "explore.css"
    html = traitlets.Unicode().tag(sync=True)
    at = traitlets.List(traitlets.Int()).tag(sync=True)  # the setting, as the stop of each choice
    frame = traitlets.Dict().tag(sync=True)
    setting = traitlets.Dict()

    def __init__(self, draw: Callable, name: str, choices: dict[str, Choice], words: dict[str, str]):
        self._choices, self._name, self._words = choices, name, words
        self._shown = functools.cache(lambda at: frames.shown(draw, name, choices, at))
        self._start = [made.start for made in choices.values()]
        first = self._message(self._start)
        html = markup.figure(choices, words, first, {})
        super().__init__(at=self._start, setting=frames.values(choices, self._start), frame=first, html=html)

    def __repr__(self) -> str:
        return f"Widget {self._name}: {', '.join(frames.said(self._choices, self.at))}"

    def _repr_mimebundle_(self, **kwargs: object) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        try:
            html = self.static(time.perf_counter() + _PATIENCE)
        except Exception:  # the reader meets it in its place, live; here one frame is kept
            html = markup.page(markup.still(self._words, self._message(self._start)), self._name, script=False)
        return data | {"text/html": html, "text/plain": repr(self)}, metadata

    def static(self, deadline: float = math.inf) -> str:
        """The widget with all its frames as HTML that needs no kernel and no network.

        Raises RuntimeError for a setting that draw fails on, ValueError beyond 200 kB, and TimeoutError if frames are
        left to be drawn when time.perf_counter() is past the deadline.
        """
        drawn = []
        for at in frames.settings(self._choices):
            try:
                drawn.append(self._shown(at))
            except Exception as error:
                told = _told(error, self._choices, at)
                raise RuntimeError(f"{told}: every setting must draw before the page can be built") from error
            if time.perf_counter() > deadline:
                raise TimeoutError(f"{len(drawn)} frames were drawn in time")
        figure = markup.figure(self._choices, self._words, self._message(self._start), frames.pack(drawn))
        html = markup.page(figure, self._name, script=True)
        if (size := len(html.encode()) / 1e3) > _MOST_KILOBYTES:
            stops = ", ".join(f"{key} has {len(made.values)}" for key, made in self._choices.items())
            raise ValueError(
                f"the widget {self._name} takes {size:.0f} kB with its {len(drawn)} frames, the budget is "
                f"{_MOST_KILOBYTES} kB: offer fewer stops ({stops}) or draw less that differs between frames"
            )
        return html

    def _message(self, at: Sequence[int]) -> dict:
        try:
            return {"at": list(at)} | frames.message(self._shown(tuple(at)))
        except Exception as error:
            return {"at": list(at), "error": _told(error, self._choices, at)}

    @traitlets.validate("at")
    def _check_at(self, proposal: dict) -> list[int]:
        if tuple(proposal["value"]) not in frames.settings(self._choices):
            raise ValueError(f"at must give a stop for each of {', '.join(self._choices)}, got {proposal['value']}")
        return proposal["value"]

    @traitlets.validate("setting")
    def _check_setting(self, proposal: dict) -> dict:
        wanted = frames.values(self._choices, self.at) | proposal["value"]
        for unknown in wanted.keys() - self._choices.keys():
            raise ValueError(f"setting names {unknown!r}; this widget has {', '.join(self._choices)}")
        return frames.values(self._choices, [made.stop(wanted[key]) for key, made in self._choices.items()])

    @traitlets.observe("setting")
    def _aim(self, change: dict) -> None:
        self.at = [made.stop(change["new"][key]) for key, made in self._choices.items()]

    @traitlets.observe("at")
    def _move(self, change: dict) -> None:
        self.setting = frames.values(self._choices, change["new"])
        self.frame = self._message(change["new"])


def _building() -> bool:
    """Whether a page is being built, rather than read in a notebook."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return os.environ.get("QUANTLIB_STATIC") == "1" or not hasattr(shell, "kernel")


def _told(error: Exception, choices: Mapping[str, Choice], at: Sequence[int]) -> str:
    """What went wrong, where, for whom: draw(bits=3) failed in line 4, `x / 0`: ZeroDivisionError: division by zero."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    words = traceback.format_exception_only(error)[-1].strip()
    setting = ", ".join(f"{name}={value!r}" for name, value in frames.values(choices, at).items())
    return f"draw({setting}) failed in line {last.lineno}, `{last.line}`: {words}"
