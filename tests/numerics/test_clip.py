"""mse_clip: the search is exhaustive, so it must beat every other clip, and it must never lose to none."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import CLIP_RATIOS, mse_clip, quantize


def squared_error(w, grid, clip, **options):
    """float64 [rows or 1, groups]."""
    q = quantize(w, grid, clip=clip, **options)
    error = (q.dequantize(torch.float64) - w.double()).unflatten(1, (q.scale.shape[1], -1)).square().sum(-1)
    return error.sum().reshape(1, 1) if grid.group_size == "tensor" else error


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(2, 8),
    st.sampled_from(["row", "tensor", 4, 16]),
    st.sampled_from([(True, False), (True, True), (False, False)]),
    st.sampled_from([torch.float16, torch.float32]),
    st.sampled_from([0.5, 1.0, 3.0]),
)
def test_no_ratio_beats_the_one_that_is_returned(seed, bits, group, kind, scale_dtype, tail):
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(3, 32, generator=generator)
    w = w.sign() * w.abs() ** tail  # tails from lighter than a normal distribution's to much heavier
    grid = Grid(bits, group, *kind)
    clip = mse_clip(w, grid, scale_dtype=scale_dtype)
    assert clip.shape == grid.scale_shape(3, 32)
    least = squared_error(w, grid, clip, scale_dtype=scale_dtype)
    for ratio in CLIP_RATIOS:
        assert (least <= squared_error(w, grid, ratio, scale_dtype=scale_dtype) * (1 + 1e-5) + 1e-12).all()


def test_a_heavy_tail_is_clipped_and_a_flat_row_ends_at_its_last_midpoint():
    generator = torch.Generator().manual_seed(0)
    w = torch.rand(2, 512, generator=generator) * 2 - 1
    w[1, 0] = 5.0  # one weight far out, but not so far that clipping it would cost more than all others gain
    clip = mse_clip(w, Grid(3, narrow_range=True)).flatten()
    # seven equal cells over [−1, 1]: the last point lies in the middle of its own
    assert clip[0] == pytest.approx(6 / 7, rel=0.04)
    assert clip[1] < 0.35
    before, after = (squared_error(w, Grid(3, narrow_range=True), c)[0] for c in (1.0, clip.reshape(2, 1)))
    assert after <= before


def test_a_normal_row_ends_where_theory_says():
    # The mean-squared-error optimal uniform quantizer of a normal source with 16 levels has step 0.335 σ (Max 1960, table II).
    w = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0))
    q = quantize(w, Grid(4), clip=mse_clip(w, Grid(4)))
    assert q.scale.item() == pytest.approx(0.335, rel=0.07)


@pytest.mark.parametrize("group", ["row", "tensor", 2])
def test_zeros_empty_and_meta_keep_the_whole_grid(group):
    for w in (torch.zeros(3, 4), torch.empty(0, 4), torch.empty(3, 4, device="meta")):
        clip = mse_clip(w, Grid(4, group))
        assert tuple(clip.shape) == Grid(4, group).scale_shape(*w.shape)
        assert clip.is_meta or bool((clip == 1).all())


def test_chunks_do_not_change_the_answer(monkeypatch):
    w = torch.randn(31, 24, generator=torch.Generator().manual_seed(6)) ** 3
    grids = Grid(3, "tensor"), Grid(3), Grid(3, 8, symmetric=False)
    whole = [mse_clip(w, grid) for grid in grids]
    monkeypatch.setattr("quantlib.numerics.rounding.CACHED_ELEMENTS", 100)
    for grid, expected in zip(grids, whole, strict=True):
        assert torch.equal(mse_clip(w, grid), expected)


def test_float64_and_bad_weights():
    assert mse_clip(torch.randn(2, 8, dtype=torch.float64), Grid(4)).dtype == torch.float64
    with pytest.raises(ValueError, match="NaN or infinite"):
        mse_clip(torch.tensor([[1.0, float("nan")]]), Grid(4))
    with pytest.raises(ValueError, match="does not divide"):
        mse_clip(torch.ones(2, 6), Grid(4, 4))
    with pytest.raises(TypeError, match="w must be"):
        mse_clip(torch.ones(2), Grid(4))
