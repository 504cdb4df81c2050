"""LLM.int8()'s decomposition in plain PyTorch: what is an outlier, what is rounded, and every corner of the two."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantlib import Grid, quantize
from quantlib.methods.digits import digits
from quantlib.methods.llm_int8 import (
    ROW_INT8,
    massive_activations,
    matmul_mixed,
    outlier_features,
    outlier_stats,
    quantize_rows,
)


def case(tokens, columns, out=16, seed=0, outliers=()):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((tokens, columns), generator=generator)
    x[:, list(outliers)] *= 40
    w = torch.randn((out, columns), generator=generator)
    return x, w, quantize(w, ROW_INT8, scale_dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 90), st.integers(0, 999), st.floats(-20, 20))
def test_rows_are_rounded_as_quantize_rounds_them(tokens, columns, seed, size):
    x = case(tokens, columns, seed=seed)[0] * 10**size
    got, expected = quantize_rows(x), quantize(x, ROW_INT8, scale_dtype=torch.float32)
    assert got.codes.equal(expected.codes) and got.scale.equal(expected.scale) and got.grid == expected.grid


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 30), st.integers(1, 90), st.integers(0, 999), st.lists(st.floats(0, 9), min_size=2, max_size=6))
def test_fewer_columns_are_kept_at_a_higher_threshold(tokens, columns, seed, thresholds):
    x = 3 * case(tokens, columns, seed=seed)[0]
    kept = [outlier_features(x, t) for t in sorted(thresholds)]
    assert all(bool((b <= a).all()) for a, b in zip(kept, kept[1:], strict=False))
    assert outlier_features(x, 0.0).all() and not outlier_features(x, None).any()


def test_the_threshold_itself_is_an_outlier():
    x = torch.tensor([[6.0, 5.999, -6.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert outlier_features(x, 6.0).tolist() == [True, False, True, False]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 20), st.integers(1, 90), st.integers(1, 4), st.integers(0, 999))
def test_digits_add_up_to_what_eight_bits_cannot_hold(tokens, columns, count, seed):
    x, *_ = case(tokens, columns, seed=seed, outliers=(0,))
    x = x.double() * 10.0 ** torch.randint(-3, 3, (tokens, 1))
    parts = digits(x, count)
    assert len(parts) == count and all(part.codes.dtype == torch.int8 for part in parts)
    missed = (x - sum(part.dequantize(torch.float64) for part in parts)).abs()
    assert bool((missed <= 1.001 * x.abs().amax(1, keepdim=True) / 254 / 254.0 ** (count - 1)).all())


def test_values_below_the_threshold_count_for_their_row_even_in_outlier_columns():
    x = torch.tensor([[50.0, 1.0, -2.0], [5.5, 1.0, -2.0]])
    q = quantize_rows(x, 6.0)
    assert torch.allclose(q.scale[:, 0] * 127, torch.tensor([2.0, 5.5])) and q.codes[:, 0].tolist() == [0, 0]
    assert q.codes[:, 1].tolist() == [64, 23] and quantize_rows(x, 6.0, outlier_features(x, 6.0)).codes.equal(q.codes)


def test_none_is_w8a8_and_zero_is_weight_only():
    x, w, q = case(7, 48, outliers=(3,))
    rounded = quantize_rows(x).dequantize(torch.float64) @ q.dequantize(torch.float64).t()
    assert torch.allclose(matmul_mixed(x, q, None), rounded, rtol=1e-6, atol=1e-9)
    assert torch.allclose(matmul_mixed(x, q, 0.0), x.double() @ q.dequantize(torch.float64).t(), rtol=1e-12)
    assert torch.allclose(matmul_mixed(x, q, 0.0, float_weight=w), x.double() @ w.double().t(), rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(4, 90), st.integers(0, 999))
def test_the_decomposition_undoes_what_outliers_do(tokens, columns, seed):
    x, w, q = case(tokens, columns, seed=seed, outliers=(1, 2))
    exact = x.double() @ w.double().t()

    def error(y):
        return (y - exact).norm()

    threshold = x[:, [1, 2]].abs().amax(0).min().item()
    if outlier_features(x, threshold).sum() == 2:
        assert error(matmul_mixed(x, q, threshold, float_weight=w)) < error(matmul_mixed(x, q, None))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_large_and_small_rows_in_every_dtype(dtype):
    largest = 60_000.0
    x = torch.tensor([[largest, -largest, 1.0], [0.0, 0.0, 0.0], [1e-7, 0.0, -1e-7]]).to(dtype)
    q = quantize_rows(x)
    assert q.codes[0].tolist() == [127, -127, 0] and q.codes[1].tolist() == [0, 0, 0]
    assert q.codes[2].tolist() == [127, 0, -127] and q.scale[1] == 1 and torch.isfinite(q.scale).all()


def test_nan_and_infinity_spoil_their_row_and_no_other():
    x, _, q = case(3, 8)
    x[0, 2], x[1, 4] = torch.nan, torch.inf
    y = matmul_mixed(x, q, None)
    assert y[:2].isnan().all() and torch.isfinite(y[2]).all()
    mixed = matmul_mixed(x, q, 6.0)  # the infinite column is an outlier: its product is infinite, as in floats
    assert mixed[0].isnan().all() and mixed[1].isinf().all() and torch.isfinite(mixed[2]).all()


def test_no_tokens_one_token_all_outliers():
    for tokens in (0, 1):
        x, _, q = case(tokens, 8)
        for threshold in (None, 0.0, 1e-9, 6.0, 1e9):
            assert matmul_mixed(x, q, threshold).shape == (tokens, 16)
    x, w, q = case(5, 8)
    everything = matmul_mixed(x, q, 1e-12, float_weight=w)
    assert torch.allclose(everything, x.double() @ w.double().t(), rtol=1e-12)


def test_stats_name_the_columns_how_often_and_how_large():
    x = torch.full((10, 6), 0.5)
    x[:6, 4], x[0, 1] = 20.0, -8.0
    stats = outlier_stats(x, 6.0)
    assert stats.features.tolist() == [4, 1] and stats.largest.tolist() == [20.0, 8.0]
    assert torch.allclose(stats.share_of_tokens, torch.tensor([0.6, 0.1]))
    assert stats.ratio.tolist() == [40.0, 16.0] and stats.share_of_columns == 2 / 6
    assert outlier_stats(x, 100.0).features.tolist() == []
    assert outlier_stats(torch.empty(0, 6), 6.0).share_of_columns == 0


def test_massive_activations_are_values_and_not_columns():
    x = torch.full((10, 6), 0.1)
    x[0, 2], x[3, 5], x[:, 1] = -900.0, 150.0, 20.0
    found = massive_activations(x)
    assert found.position.tolist() == [[0, 2], [3, 5]] and found.value.tolist() == [-900.0, 150.0]
    assert len(massive_activations(x * 0.5).value) == 1 and not len(massive_activations(torch.empty(0, 3)).value)


def test_wrong_arguments_are_named():
    x, _, q = case(2, 8)
    with pytest.raises(ValueError, match="threshold must be at least 0, or None"):
        outlier_features(x, -1.0)
    with pytest.raises(ValueError, match="threshold must be"):
        outlier_features(x, float("nan"))
    with pytest.raises(TypeError, match=r"x must be floating-point \[tokens, in\]"):
        quantize_rows(x[0])
    with pytest.raises(ValueError, match="w must be symmetric"):
        matmul_mixed(x, quantize(torch.randn(4, 8), Grid(8, 4)), 6.0)
    with pytest.raises(ValueError, match="float_weight must be"):
        matmul_mixed(x, q, 6.0, float_weight=torch.zeros(3, 3))
