"""What a page's checked cells print, compared with what they once printed. Start from :func:`differences`.

Numbers may differ a little between CPUs, words may not. Of two printings of a cell

- text is compared exactly, but for spaces beside a number: they are padding, and move when a number's width does;
- whole numbers are compared exactly: counts, sizes, bits;
- a number with a decimal point or an exponent may differ by the cell's stated relative tolerance (tag `rtol=1e-3`)
  or, where none is stated, by one unit of its last printed digit or 1e-5 of itself, whichever is more;
- nan equals nan, an infinity itself. 1,234.5 and 1 234.5 (thin space), −3 and -3 read as numbers; 4096x11008,
  v1.2, 2.13.0, Q4_1 and 0x7f are text;
- pictures and widgets are not compared, but the alt text of a picture is.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

THIN = ",\u2009\u202f"  # what stands between thousands
NUMBER = re.compile(
    rf"""
    (?<![\w.]) (?P<sign>[-+\u2212]?)
    (?: (?P<whole> [0-9]{{1,3}} (?:[{THIN}][0-9]{{3}})+ (?![0-9]) | [0-9]+ ) (?P<fraction>\.[0-9]+)?
        (?P<exponent>e[-+\u2212]?(?:[0-9]{{1,2}}|[12][0-9]{{2}}) (?!\w))?
        (?![0-9]) (?!\.[0-9])
      | (?P<word>nan|inf) (?!\w) )
    """,
    re.VERBOSE | re.IGNORECASE,
)
COMPARED = ("text/plain", "text/html", "text/markdown", "text/latex")
DEFAULT_RTOL = 1e-5  # float32 sums over another order of terms differ by less


@dataclass(frozen=True)
class Number:
    """A printed number. unit: one in its last printed place, None for a whole number, nan and inf. line: its line."""

    value: float
    unit: float | None
    text: str
    line: str


def comparable(outputs: Sequence[Mapping]) -> tuple[dict[str, str], ...]:
    """Notebook outputs reduced to {"stdout": …}, {"error": …} or the texts of a display, by MIME type."""
    reduced = (_reduce(output) for output in outputs)
    return tuple(output for output in reduced if output)


def differences(
    recorded: Sequence[Mapping[str, str]], computed: Sequence[Mapping[str, str]], rtol: float | None
) -> list[str]:
    """In words, how a cell's outputs now differ from the recorded ones; empty if they do not. rtol None: as printed."""
    if [set(output) for output in recorded] != [set(output) for output in computed]:
        return [f"recorded were {_kinds(recorded)}, but the cell shows {_kinds(computed)}"]
    return [
        line
        for old, new in zip(recorded, computed, strict=True)
        for kind in old
        for line in text_differences(old[kind], new[kind], rtol)
    ]


def text_differences(recorded: str, computed: str, rtol: float | None) -> list[str]:
    """As differences, of two texts."""
    (old_words, old_numbers), (new_words, new_numbers) = _split(recorded), _split(computed)
    if old_words != new_words:
        lines = difflib.unified_diff(recorded.splitlines(), computed.splitlines(), "recorded", "computed", lineterm="")
        return ["\n".join(["the text differs from the recording:", *lines])]
    return [
        line for old, new in zip(old_numbers, new_numbers, strict=True) for line in _number_difference(old, new, rtol)
    ]


def _number_difference(old: Number, new: Number, rtol: float | None) -> list[str]:
    if old.text == new.text or (math.isnan(old.value) and math.isnan(new.value)):
        return []
    if old.unit is new.unit is None or not math.isfinite(old.value - new.value):
        return [f"{old.text} was recorded, {new.text} is computed, in: {new.line}"]
    if rtol is None:
        allowed = max(old.unit or 0.0, new.unit or 0.0, DEFAULT_RTOL * abs(old.value))
    else:
        allowed = rtol * abs(old.value)
    gap = abs(new.value - old.value)
    if gap <= allowed * (1 + 1e-9):  # the product itself was rounded
        return []
    return [f"{old.text} was recorded, {new.text} is computed ({gap:.2g} apart, {allowed:.2g} allowed), in: {new.line}"]


def _split(text: str) -> tuple[list[str], list[Number]]:
    """The words between the numbers, without the padding of the numbers, and the numbers."""
    words, numbers, position = [], [], 0
    for match in NUMBER.finditer(text):
        words.append(text[position : match.start()])
        numbers.append(_number(match, _line_at(text, match.start())))
        position = match.end()
    words.append(text[position:])
    last = len(words) - 1
    return [_without_padding(word, after=i > 0, before=i < last) for i, word in enumerate(words)], numbers


def _without_padding(word: str, *, after: bool, before: bool) -> str:
    word = word.lstrip(" \t") if after else word
    return word.rstrip(" \t") if before else word


def _line_at(text: str, position: int) -> str:
    return text[text.rfind("\n", 0, position) + 1 :].partition("\n")[0].strip()


def _number(match: re.Match[str], line: str) -> Number:
    sign = match["sign"].replace("\u2212", "-")
    if match["word"]:
        return Number(float(sign + match["word"]), None, match[0], line)
    whole = re.sub(f"[{THIN}]", "", match["whole"])
    fraction, exponent = match["fraction"] or "", (match["exponent"] or "").replace("\u2212", "-")
    if not fraction and not exponent:
        return Number(float(sign + whole), None, match[0], line)
    places = max(len(fraction) - 1, 0)  # the point is no place
    return Number(float(sign + whole + fraction + exponent), 10.0 ** (int(exponent[1:] or 0) - places), match[0], line)


def _reduce(output: Mapping) -> dict[str, str]:
    kind = output["output_type"]
    if kind == "stream":
        return {output["name"]: output["text"]} if output["name"] == "stdout" else {}
    if kind == "error":
        return {"error": f"{output['ename']}: {output['evalue']}"}
    data = output["data"]
    if any(mime.startswith("application/vnd.jupyter.widget") for mime in data):
        return {}
    if any(mime.startswith("image/") for mime in data):
        alts = {
            mime: about["alt"]
            for mime, about in output.get("metadata", {}).items()
            if isinstance(about, Mapping) and "alt" in about
        }
        return {"alt": next(iter(alts.values()))} if alts else {}
    return {mime: data[mime] for mime in COMPARED if mime in data}


def _kinds(outputs: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(" + ".join(sorted(output)) for output in outputs) or "nothing"
