"""Stacked bars of bytes, as HTML for a widget. Start from :func:`stacked`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

THIN = "\u2009"
_KEYS = {  # how the key of a part is filled, as its bar is
    "codes": "var(--x-grid)",
    "scales": "repeating-linear-gradient(90deg, var(--x-grid) 0 1.5px, transparent 1.5px 4px)",
    "kept": "var(--x-exact)",
}


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its words, its bytes, and its meaning, which is "codes", "scales" or "kept"."""

    words: str
    size: float
    meaning: str


@dataclass(frozen=True)
class Claim:
    """A stretch that somebody said the bar would end in: from and to in bytes, and who says what."""

    start: float
    end: float
    words: str


def gigabytes(count: float) -> str:
    """Bytes in words: "3.89 GB", and "126 MB" below a gigabyte."""
    return f"{count / 1e9:.2f}{THIN}GB" if count >= 1e9 else f"{count / 1e6:.0f}{THIN}MB"


def stacked(headline: str, full: float, after: Sequence[Part], claim: Claim) -> str:
    """Two bars on one scale, all of it in 16 bits and what comes after, with a bracket for the claim and keys.

    headline  HTML: words of a meaning stand in <span class="exact">, "grid" or "error"
    full      bytes of all of it in 16 bits
    """

    def share(count: float) -> str:
        return f"{100 * count / full:.3g}%"

    bar = "\n".join(f'<span class="{part.meaning}" style="--w:{share(part.size)}"></span>' for part in after)
    keys = "\n".join(f'<li style="--k:{_KEYS[p.meaning]}">{escape(p.words)} {gigabytes(p.size)}</li>' for p in after)
    return f"""<div class="bytes">
<p class="big">{headline}</p>
<p class="label">16 bits</p>
<div class="stack"><span class="kept" style="--w:100%"></span></div>
<p class="label" style="margin-top:1rem">Quantized</p>
<div class="stack">
{bar}
</div>
<div class="claim" style="--from:{share(claim.start)};--to:{share(claim.end)}"><span>{escape(claim.words)}</span></div>
<ul class="keys">
{keys}
</ul>
</div>"""
