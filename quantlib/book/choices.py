"""What a reader of a widget may choose from. Start from :func:`choice`; :func:`steps` is one that plays.

A choice is a row of stops. Numbers become a ruler that snaps, a few words become segments, many words a list; numbers
that were given words are words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from urllib.parse import quote

KINDS = ("slider", "segments", "select", "steps")


@dataclass(frozen=True)
class Choice:
    """Stops and how they are offered: value and words of each, where to start, label, unit, kind, a line of help."""

    values: tuple
    words: tuple[str, ...]
    start: int
    label: str
    unit: str
    kind: str
    help: str

    @property
    def keys(self) -> tuple[str, ...]:
        """How the address of a page names the stops."""
        return tuple(quote(_plain(value), safe="") for value in self.values)

    def said(self, stop: int) -> str:
        """A stop as it is read out: words and unit."""
        return f"{self.words[stop]}\u2009{self.unit}" if self.unit else self.words[stop]

    def stop(self, value: object) -> int:
        """The place of a value; ValueError if it is not among the stops."""
        if value not in self.values:
            offered = ", ".join(map(str, self.values))
            raise ValueError(f"{self.label or 'a choice'} must be one of {offered}, got {value!r}")
        return self.values.index(value)


def choice(
    values: Iterable, *, label: str = "", unit: str = "", start: object = None, kind: str = "", help: str = ""
) -> Choice:
    """A choice for `explore`.

    values  a range or list of numbers or words; a mapping from value to the words that the reader sees
    label   what is chosen, with its unit in `unit`; without it, the name of draw's parameter
    start   the value to begin with; the first without it
    kind    "slider", "segments", "select" or "steps", where another than the usual one is wanted
    help    one line under the control

    Raises ValueError for no values, a value twice, a start that is not among them, or an unknown kind.
    """
    named = values if isinstance(values, Mapping) else {}
    stops = tuple(value.item() if hasattr(value, "item") else value for value in values)
    if not stops:
        raise ValueError(f"a choice needs at least one value to choose from, got {values!r}")
    if len(set(stops)) < len(stops):
        raise ValueError(f"a choice must list each value once, got {', '.join(map(str, stops))}")
    if kind and kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    numbers = [value for value in stops if isinstance(value, Real) and not isinstance(value, bool)]
    words = tuple(named[v] if named else _plain(v).replace("-", "\u2212") if v in numbers else str(v) for v in stops)
    few = len(words) <= 4 and sum(map(len, words)) <= 28
    usual = "slider" if len(numbers) == len(stops) and not named else "segments" if few else "select"
    made = Choice(stops, words, 0, label, unit, kind or usual, help)
    return made if start is None else replace(made, start=made.stop(start))


steps = partial(choice, kind="steps")  # a choice that is walked through in order: a ruler with Back, Play and Step


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
