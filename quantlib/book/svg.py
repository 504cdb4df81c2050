"""A matplotlib figure as lean SVG that follows the page's colours. Start from :func:`picture`.

Matplotlib's own SVG is rewritten: no style sheet, no background, text as text in the page's font, short numbers, and
each house colour as a CSS variable with a fixed fallback, ``var(--exact, #2a7cec)``. One SVG then serves a light and a
dark page; where no page reaches it (an <img>, a notebook) the fallbacks hold 3:1 on white and on black alike.

The same figure gives the same bytes in every process: nothing here depends on time, on object ids or on hash order.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from io import StringIO

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.backends.backend_svg import RendererSVG
from matplotlib.figure import Figure

EXACT, GRID, ERROR = "#2a7cec", "#e0621a", "#ac4f9c"
INK, MUTED, HAIR = "#777677", "#767776", "#8a8987"  # three greys that differ, so that each becomes its own variable
VARIABLES = {EXACT: "--exact", GRID: "--grid", ERROR: "--error", INK: "--ink", MUTED: "--muted", HAIR: "--rule"}
MONO = "var(--mono, ui-monospace, monospace)"
PIXELS = 13 / 9  # of a screen, for a unit: words of 9 units stand at 13 pixels where no page sets a width
RASTER = "raster"  # the label of a figure whose words stand in narrow columns: they keep their size on any page
ROOT = "font-family: var(--sans, system-ui, sans-serif); stroke-linejoin: round"
# what the root or SVG itself already says
_INITIAL = {"", "stroke-linejoin:round", "stroke-linecap:butt", "stroke-dashoffset:0", "text-anchor:start"}
_SETTINGS = {"svg.fonttype": "none", "svg.hashsalt": "book", "svg.image_inline": True}


@dataclass(frozen=True)
class Picture:
    """SVG without its root. box: (width, height) in units of 1/72 inch; elements: markup, in the order of painting."""

    box: tuple[float, float]
    elements: tuple[str, ...]

    def over(self, below: Picture) -> Picture:
        """Painted over another picture. What both define, a clip or a marker, is defined once."""
        known = {element for element in below.elements if element.startswith("<defs>")}
        return replace(below, elements=below.elements + tuple(e for e in self.elements if e not in known))

    def within(self, name: str) -> Picture:
        """The same picture with ids that start with name, so that several can live on one page."""
        named = (re.sub(r'( id="| href="#|url\(#)', rf"\g<1>{name}-", element) for element in self.elements)
        return replace(self, elements=tuple(named))

    def svg(self, alt: str) -> str:
        """The whole SVG, with the alternative text that it is read out as."""
        width, height = self.box
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" class="fig" role="img" aria-label="{escape(alt)}" '
            f'viewBox="0 0 {width:g} {height:g}" width="{width * PIXELS:.0f}" style="{ROOT}">'
            f"{''.join(self.elements)}</svg>"
        )


@mpl.rc_context(_SETTINGS)
def picture(figure: Figure) -> Picture:
    """A figure as SVG in the house colours."""
    figure.savefig(raw := StringIO(), format="svg", metadata={"Date": None, "Creator": None})
    return _rewrite(raw.getvalue(), figure)


@mpl.rc_context(_SETTINGS)
def picture_of(artists: list[Artist], figure: Figure) -> Picture:
    """Draw only these artists of a figure of 72 dpi whose layout is settled: in milliseconds, not in tens of them."""
    renderer = RendererSVG(*figure.bbox.size, raw := StringIO())
    for artist in sorted(artists, key=Artist.get_zorder):
        artist.draw(renderer)
    renderer.finalize()
    return _rewrite(raw.getvalue(), figure)


def _rewrite(source: str, figure: Figure) -> Picture:
    width, height = figure.get_size_inches() * 72
    elements = tuple(_leaves(ET.fromstring(source)))
    if figure.get_label() == RASTER:
        elements = tuple(re.sub(r"(font-size:[\d.]+px)", r"\1!important", element) for element in elements)
    return Picture((round(width, 1), round(height, 1)), elements)


def _leaves(parent: ET.Element) -> Iterator[str]:
    """What is painted, flat and in order, each definition by itself; groups that say nothing are opened."""
    for element in parent:
        tag = _local(element.tag)
        if tag == "g" and not set(element.keys()) - {"id"}:
            yield from _leaves(element)
        elif tag == "defs":
            yield from (f"<defs>{_write(child)}</defs>" for child in element if _local(child.tag) != "style")
        elif tag in ("g", "path", "use", "text", "image") and (text := _write(element, painted=True)):
            yield text


def _write(element: ET.Element, painted: bool = False) -> str:
    """One element and what it holds; "" if it is painted and nothing of it would show."""
    tag, attributes = _local(element.tag), {_local(name): value for name, value in element.items()}
    attributes["style"] = _style(attributes.pop("style", ""))
    inside = escape((element.text or "").strip()) + "".join(_write(child, painted) for child in element)
    if painted and (attributes["style"] == "fill:none" or (tag == "g" and not inside)):
        return ""
    if painted:
        attributes.pop("id", None)
    said = "".join(f' {n}="{escape(value)}"' for n, v in attributes.items() if (value := _value(n, v)))
    return f"<{tag}{said}>{inside}</{tag}>" if inside else f"<{tag}{said}/>"


def _value(name: str, value: str) -> str:
    if name == "d":
        return _path(value)
    if name in ("x", "y", "width", "height") and re.fullmatch(r"-?[\d.]+", value):
        return _short(value)
    if name == "transform" and re.match(r"rotate\(-?0 ", value):  # text that is not turned
        return ""
    return re.sub(r"-?\d+\.\d{5,}", lambda long: f"{float(long[0]):.4f}", value)


def _style(style: str) -> str:
    said = []
    for part in re.sub(r"\s*([:;])\s*", r"\1", style).split(";"):
        if part.startswith("font"):  # by size alone: the family is the page's, upright or monospaced
            said += [f"font-size:{size}" for size in re.findall(r"[\d.]+px", part)[:1]]
            said += [f"font-family:{MONO}"] * ("Mono" in part)
        elif part not in _INITIAL:
            said.append(part)
    return re.sub("|".join(VARIABLES), lambda colour: f"var({VARIABLES[colour[0]]},{colour[0]})", ";".join(said))


def _path(d: str) -> str:
    """Path data with one decimal, H and V for level and upright lines, and no letter said twice."""
    said, last, at = "", "", ["", ""]
    for letter, numbers in re.findall(r"([MLCQz])([^MLCQz]*)", d):
        points = [_short(n) for n in numbers.split()]
        at, (x, y) = points[-2:] or at, at
        if letter == "L" and y == at[1]:
            letter, points = "H", points[:1]
        elif letter == "L" and x == at[0]:
            letter, points = "V", points[1:]
        said += (" " if letter == last != "M" else letter) + " ".join(points)
        last = letter
    return said.replace(" -", "-")


def _short(number: str) -> str:
    return f"{round(float(number), 1) + 0:g}"  # + 0: no -0


def _local(name: str) -> str:
    return name.rpartition("}")[2]
