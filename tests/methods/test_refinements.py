"""The searched scales and the corrected target, each against what it is the minimum of."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib import Grid, quantize
from quantlib.methods.residual import corrected_target
from quantlib.methods.scales import RATIOS, weighted_clip


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cost(w, q, diagonal):
    """Σ_j H_jj (w_j − ŵ_j)² of each group, [out, groups]."""
    error = (q.dequantize(torch.float64) - w.double()).square() * diagonal
    return error.unflatten(1, (q.scale.shape[1], -1)).sum(-1)


@settings(max_examples=20, deadline=None)
@given(
    st.builds(Grid, st.integers(2, 8), st.sampled_from(["row", "tensor", 16, 32]), symmetric=st.booleans()),
    st.integers(0, 10**6),
)
def test_each_groups_clip_costs_least_of_all_ratios(grid, seed):
    w, x = randn(seed, 24, 64), randn(seed + 1, 100, 64) * torch.logspace(-2, 2, 64)
    gram = x.t() @ x
    clip, diagonal = weighted_clip(w, gram, grid), gram.diagonal().double()
    costs = torch.stack([cost(w, quantize(w, grid, clip=ratio), diagonal) for ratio in RATIOS])
    got = cost(w, quantize(w, grid, clip=clip), diagonal)
    assert clip.shape == grid.scale_shape(24, 64)
    if grid.group_size == "tensor":
        assert got.sum() <= costs.sum((1, 2)).min() * (1 + 1e-5)
    else:
        assert bool((got <= costs.amin(0) * (1 + 1e-5) + 1e-12).all())


def test_blocks_of_rows_have_their_own_weights():
    w, grams = randn(0, 24, 64), torch.stack([torch.diag(10.0 ** randn(s, 64)) for s in (1, 2, 3)])
    clip = weighted_clip(w, grams, Grid(3, 32))
    assert clip.equal(torch.cat([weighted_clip(p, H, Grid(3, 32)) for p, H in zip(w.split(8), grams, strict=True)]))
    assert not clip.equal(weighted_clip(w, grams[0], Grid(3, 32)))


def test_twenty_steps_of_two_percent():
    assert len(RATIOS) == 20 and RATIOS[0] == 1 and RATIOS[-1] == pytest.approx(0.62)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_whole_correction_is_least_squares_and_half_of_it_is_half(dtype):
    x = randn(0, 400, 32).to(dtype)
    x_float, w = x + 0.3 * randn(1, 400, 32).to(dtype), randn(2, 16, 32).to(dtype)
    before = w.clone()
    whole = corrected_target(w, x_float.t() @ x, x.t() @ x, alpha=1.0, damp=0.0)
    best = torch.linalg.lstsq(x.double(), x_float.double() @ w.double().t()).solution.t()
    assert torch.allclose(whole.double(), best, atol=1e-4) and whole.dtype == dtype and w.equal(before)
    half = corrected_target(w, x_float.t() @ x, x.t() @ x, alpha=0.5, damp=0.0)
    assert torch.allclose(half, (w + whole) / 2, atol=1e-5)


def test_nothing_is_corrected_where_nothing_changed():
    x, w = randn(0, 400, 32), randn(1, 16, 32)
    gram = x.t() @ x
    assert corrected_target(w, gram, gram, alpha=1.0).equal(w)
    assert corrected_target(w, gram.expand(4, 32, 32), gram.expand(4, 32, 32), alpha=1.0).equal(w)
    with pytest.raises(ValueError, match="cross must have gram's shape"):
        corrected_target(w, gram, gram.expand(4, 32, 32))


def test_blocks_of_rows_are_corrected_by_their_own():
    w, x = randn(0, 16, 32), [randn(s, 400, 32) for s in (1, 2)]
    H, G = (torch.stack([a.t() @ b for a, b in pairs]) for pairs in (zip(x, x), zip(x[::-1], x)))  # noqa: B905
    both = corrected_target(w, G, H, alpha=1.0)
    apart = [corrected_target(p, g, h, alpha=1.0) for p, g, h in zip(w.split(8), G, H, strict=True)]
    assert both.equal(torch.cat(apart))
