"""Methods side by side: what each weighs and loses, which are beaten, which to take. Start from :func:`rows_of`.

Everything is decided on pairs, the losses of the same predictions: a difference whose interval holds 0 is a tie. Of two
that tie the smaller one beats the larger, whose bytes buy nothing that could be shown; of one size they both stay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from quantlib.measure.evaluate import PairedDifference, paired_bootstrap


@dataclass(frozen=True, eq=False)
class MethodRow:
    """One row of the table.

    linear, kept  bytes of the quantized layers (codes, scales, zero points) and of everything else in 16 bits
    bits          of a quantized weight, its share of scales and zero points included
    nll           [windows, predictions]; perplexity is exp of its mean
    lost          nats a token against the float row, paired; None of that row
    kl            mean, median and 99th percentile, nats
    same, flips   shares of the predictions: the same token first; right before and wrong now, or the other way
    seconds, peak to make the model, and the most bytes that the process held meanwhile; None where not measured
    """

    name: str
    linear: int
    kept: int
    bits: float
    perplexity: float
    nll: Tensor
    lost: PairedDifference | None
    kl: tuple[float, float, float]
    same: float
    flips: float
    seconds: float | None
    peak: int | None

    @property
    def total(self) -> int:
        """Bytes of the whole model."""
        return self.linear + self.kept


def rows_of(values: Mapping[str, Mapping], floats: str = "float") -> list[MethodRow]:
    """The rows of a record of part 7, against the row that is called `floats`.

    Raises ValueError if that one is missing.
    """
    if floats not in values:
        raise ValueError(f"values must hold the row {floats!r}, against which the others are held; got {', '.join(values)}")
    start = values[floats]["nll"]
    return [
        MethodRow(
            name, found["bytes"]["linear"], found["bytes"]["kept"], found["bytes"]["bits a weight"], found["perplexity"],
            found["nll"], None if name == floats else paired_bootstrap(start, found["nll"]),
            tuple(found["KL"][part] for part in ("mean", "median", "99 %")),
            found["same first"].mean().item(), found["flips"].mean().item(), found.get("seconds"), found.get("peak"),
        )
        for name, found in values.items()
    ]  # fmt: skip


def beaten_by(row: MethodRow, others: Collection[MethodRow]) -> list[MethodRow]:
    """Those that are smaller and lose no more, or as large and lose less, beyond a tie in either case."""

    def beats(other: MethodRow) -> bool:
        verdict = paired_bootstrap(other.nll, row.nll).verdict  # of this row, against the other
        return verdict == "higher" or (verdict == "tie" and other.total < row.total)

    return [other for other in others if other is not row and other.total <= row.total and beats(other)]


def front(rows: Collection[MethodRow]) -> list[MethodRow]:
    """The rows that no other beats, the smallest first."""
    return sorted((row for row in rows if not beaten_by(row, rows)), key=lambda row: row.total)


def advice(rows: Sequence[MethodRow], most_bytes: float) -> list[MethodRow]:
    """Of the rows that fit into so many bytes: the one that loses least, and all that tie with it; the quickest to make
    first. Empty if none fits.
    """
    fitting = [row for row in rows if row.total <= most_bytes]
    if not fitting:
        return []
    best = min(fitting, key=lambda row: row.perplexity)
    ties = [row for row in fitting if row is best or paired_bootstrap(best.nll, row.nll).verdict == "tie"]
    return sorted(ties, key=lambda row: row.seconds or 0.0)
