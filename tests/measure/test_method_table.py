"""method_table.py on rows whose order is known."""

import pytest
import torch

from quantlib.measure.method_table import advice, beaten_by, front, rows_of

NOISE = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))


def found(loss, linear, seconds, noise=0.0, seed=1):
    own = torch.randn(6, 40, generator=torch.Generator().manual_seed(seed))
    nll = 3 + loss + 0.1 * NOISE + noise * own
    share = torch.full((6,), 0.5)
    return {
        "perplexity": nll.double().mean().exp().item(), "nll": nll, "KL": {"mean": loss, "median": loss, "99 %": loss},
        "same first": share, "flips": share / 5, "seconds": seconds,
        "bytes": {"linear": linear, "kept": 100, "bits a weight": linear / 100},
    }  # fmt: skip


VALUES = {
    "float": found(0.0, 1600, 0.0),
    "eight": found(0.001, 800, 1.0, noise=0.05),
    "four": found(0.5, 400, 2.0),
    "four, better": found(0.2, 400, 50.0, noise=0.01),
    "four, other": found(0.2, 400, 20.0, noise=0.01, seed=2),
    "large and bad": found(0.9, 500, 1.0),
}
ROWS = rows_of(VALUES)
BY_NAME = {row.name: row for row in ROWS}


def test_rows_are_held_against_the_float_row():
    assert BY_NAME["float"].lost is None and BY_NAME["eight"].lost.verdict == "tie"
    assert BY_NAME["four"].lost.verdict == "higher" and BY_NAME["four"].lost.mean == pytest.approx(0.5, abs=1e-6)
    assert BY_NAME["four"].total == 500 and BY_NAME["four"].flips == pytest.approx(0.1)
    with pytest.raises(ValueError, match="must hold the row 'float'"):
        rows_of({"four": VALUES["four"]})


def test_of_two_that_tie_the_smaller_beats_the_larger():
    assert beaten_by(BY_NAME["float"], ROWS) == [BY_NAME["eight"]] and beaten_by(BY_NAME["four, better"], ROWS) == []
    assert [row.name for row in beaten_by(BY_NAME["four"], ROWS)] == ["four, better", "four, other"]
    assert {row.name for row in beaten_by(BY_NAME["large and bad"], ROWS)} == {"four", "four, better", "four, other"}
    assert [row.name for row in front(ROWS)] == ["four, better", "four, other", "eight"]


def test_advice_is_the_best_that_fits_and_its_ties_the_quickest_first():
    assert [row.name for row in advice(ROWS, 600)] == ["four, other", "four, better"]
    assert [row.name for row in advice(ROWS, 1e9)] == ["float", "eight"]
    assert advice(ROWS, 10) == []
