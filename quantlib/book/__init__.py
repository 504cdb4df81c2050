"""What a page shows with: figures, tables, widgets, the byte microscope, and claims that are checked."""

from quantlib.book.bars import Claim, Part, gigabytes, stacked
from quantlib.book.claims import claims, gpu_claims, note_on, speed_claims
from quantlib.book.figures import Stage, axes, comb, fade, label, new, number, show, ticks
from quantlib.book.microscope import microscope
from quantlib.book.svg import ERROR, EXACT, GRID, HAIR, INK, MUTED, picture
from quantlib.book.tables import exact, off_scale, show_table
from quantlib.book.widgets import Frame, choice, explore, steps

__all__ = [
    "ERROR", "EXACT", "GRID", "HAIR", "INK", "MUTED", "Claim", "Frame", "Part", "Stage", "axes", "choice", "claims",
    "comb", "exact", "explore", "fade", "gigabytes", "gpu_claims", "label", "microscope", "new", "note_on",
    "number", "off_scale", "picture", "show", "show_table", "speed_claims", "stacked", "steps", "ticks",
]  # fmt: skip
