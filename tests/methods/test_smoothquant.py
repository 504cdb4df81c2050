"""SmoothQuant's scale, and that folding it changes nothing that the layers answer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib.methods.smoothquant import fold, smooth_scale


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 50), st.floats(0, 1), st.integers(0, 999))
def test_folding_preserves_the_function(columns, alpha, seed):
    generator = torch.Generator().manual_seed(seed)
    x, gain = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((5, columns), (columns,)))
    weights = [torch.randn((3, columns), generator=generator, dtype=torch.float64) for _ in range(2)]
    w_absmax = torch.cat(weights).abs().amax(0)
    s = smooth_scale((x * gain).abs().amax(0), w_absmax, alpha)
    before = [gain.clone(), *(w.clone() for w in weights)]
    new_gain, new_weights = fold(gain, weights, s)
    for old, new in zip(weights, new_weights, strict=True):
        assert torch.allclose((x * new_gain) @ new.t(), (x * gain) @ old.t(), rtol=1e-9, atol=1e-9)
    assert all(a.equal(b) for a, b in zip(before, [gain, *weights], strict=True))


def test_the_ends_and_the_middle_of_alpha():
    x, w = torch.tensor([16.0, 1.0]), torch.tensor([4.0, 1.0])
    assert smooth_scale(x, w, 1.0).tolist() == [16.0, 1.0]  # x / s: all columns alike
    assert smooth_scale(x, w, 0.0).tolist() == [0.25, 1.0]  # w · s: all columns alike
    s = smooth_scale(x, w, 0.5)
    assert torch.allclose(x / s, w * s)  # the difficulty is shared


def test_dead_columns_are_left_alone():
    s = smooth_scale(torch.tensor([0.0, 2.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]), 0.5)
    assert s.tolist() == [1.0, 1.0, 1.0]


def test_wrong_arguments_are_named():
    ones = torch.ones(3)
    for arguments, words in (
        ((ones, ones, 1.5), r"alpha must lie in \[0, 1\]"),
        ((ones, torch.ones(4), 0.5), r"must both be \[in\]"),
        ((-ones, ones, 0.5), "x_absmax must hold magnitudes"),
        ((ones, ones * torch.inf, 0.5), "w_absmax must hold magnitudes"),
    ):
        with pytest.raises(ValueError, match=words):
            smooth_scale(*arguments)
    with pytest.raises(ValueError, match="s must be positive"):
        fold(ones, [], torch.zeros(3))
    with pytest.raises(ValueError, match=r"weights\[0\] must end in 3 columns"):
        fold(ones, [torch.ones(2, 4)], ones)
