"""InputStats: what it holds, and what it refuses."""

import pytest
import torch

from quantlib.methods.statistics import InputStats


def test_of_inputs_that_are_all_there():
    x = torch.randn((50, 8), generator=torch.Generator().manual_seed(0))
    stats = InputStats.of(x)
    assert torch.allclose(stats.gram.double(), x.double().t() @ x.double(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(stats.absmean, x.abs().mean(0)) and stats.absmax.equal(x.abs().amax(0)) and stats.tokens == 50
    assert InputStats.of(x.half()).gram.dtype == torch.float32 and InputStats.of(x.double()).gram.dtype == torch.float64


@pytest.mark.parametrize(
    ("gram", "tokens", "error", "words"),
    [
        (torch.eye(4), 0, ValueError, "no token reached the layer"),
        (torch.eye(5), 3, ValueError, r"absmean must be floating-point \[5\]"),
        (torch.zeros(4, 5), 3, TypeError, r"gram must be floating-point \[in, in\]"),
        (torch.eye(4).int(), 3, TypeError, "gram must be floating-point"),
    ],
)
def test_refused(gram, tokens, error, words):
    with pytest.raises(error, match=words):
        InputStats(gram, torch.ones(4), torch.ones(4), tokens)


def test_blocks_of_rows_are_one_more_dimension():
    assert InputStats(torch.eye(4).expand(3, 4, 4), torch.ones(4), torch.ones(4), 7).gram.shape == (3, 4, 4)
    with pytest.raises(ValueError, match="at least one token"):
        InputStats.of(torch.ones(0, 4))
