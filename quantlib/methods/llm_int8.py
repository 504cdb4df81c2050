"""Activations in int8, and the few columns of them that must not be: LLM.int8(). Start from :func:`matmul_mixed`.

A few input features of a linear layer are many times larger than the others. They set the scale of their whole row,
and everything else in it rounds to little or nothing. LLM.int8() finds those columns at run time, multiplies them in
floating point, and only the rest in int8. This module is the method in plain PyTorch, in any dtype; the layer that does
it at speed is quantlib.layers.weight_only.MixedInt8Linear.

Apart from them stand massive activations: single values, not columns, of a few tokens.

Sources: Dettmers et al. 2022 (arXiv:2208.07339), section 3 for the decomposition, section 4 for what counts as an
outlier feature; Sun et al. 2024 (arXiv:2402.17762), section 2, for massive activations.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor
from quantlib.numerics.rounding import working_dtype

ROW_INT8 = Grid(8, "row", symmetric=True, narrow_range=True)  # absmax / 127: LLM.int8(), equation 1
MASSIVE = 100.0  # Sun et al., section 2.1: larger than this, and
MASSIVE_RATIO = 1000.0  # at least so many times the median magnitude


def outlier_features(x: Tensor, threshold: float | None) -> Tensor:
    """Which columns of x [tokens, in] hold a value of at least threshold in magnitude: bool [in] (section 3.2).

    threshold None: none. 0.0: all. Without tokens there are none, unless the threshold is 0. A column with an infinite
    value is one; NaN alone makes none.

    Raises TypeError for an x that is not a floating-point matrix, ValueError for a negative threshold or NaN.
    """
    x = _checked(x)
    if threshold is None:
        return torch.zeros(x.shape[1], dtype=torch.bool, device=x.device)
    if not threshold >= 0:
        raise ValueError(f"threshold must be at least 0, or None for no outliers, got {threshold!r}")
    if threshold == 0:
        return torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    return (x.abs() >= threshold).any(0)


def quantize_rows(x: Tensor, threshold: float | None = None, outliers: Tensor | None = None) -> QuantizedTensor:
    """The rows of x [tokens, in] in int8, each with a scale of its own; outlier columns get the code 0.

    threshold  of outlier_features; None: no column is an outlier
    outliers   bool [in], outlier_features(x, threshold), if it is known already

    codes int8 [tokens, in], scale float32 (float64 for float64 x) [tokens, 1] = largest magnitude below the threshold
    / 127, 1 for a row without any. Values below the threshold count even in outlier columns: the paper leaves this open,
    bitsandbytes does so. float16 and bfloat16 are computed in float32, so that nothing overflows. A row with NaN, or
    with an infinite value that is no outlier, gets the scale NaN: what is multiplied by it becomes NaN, as it would in
    floating point.
    """
    x = _checked(x)
    outliers = outlier_features(x, threshold) if outliers is None else outliers
    values = x.detach().to(working_dtype(x.dtype))
    magnitude = values.abs()
    if threshold is not None:
        magnitude = magnitude.masked_fill_(magnitude >= threshold, 0)
    largest = magnitude.amax(1, keepdim=True) if x.shape[1] else values.new_zeros((len(x), 1))  # [tokens, 1]
    scale = torch.where(largest > 0, largest / ROW_INT8.qmax, 1.0)
    scale = torch.where(torch.isfinite(largest), scale, torch.nan)
    # a scale so small that it became 0 would divide by 0
    scale = torch.where(scale == 0, torch.finfo(scale.dtype).tiny, scale)
    codes = (values / scale).nan_to_num_(0.0).round_().clamp_(ROW_INT8.qmin, ROW_INT8.qmax).to(torch.int8)
    if threshold is not None:
        codes.masked_fill_(outliers, 0)
    return QuantizedTensor.of_clamped(codes, scale, None, None, ROW_INT8)


def matmul_mixed(x: Tensor, w: QuantizedTensor, threshold: float | None, float_weight: Tensor | None = None) -> Tensor:
    """x · Ŵᵀ as LLM.int8() computes it (equation 8), in float64: the reference for layers.

    x             floating point [tokens, in]
    w             int8 codes [out, in], one scale a row: quantize(weight, ROW_INT8)
    threshold     of outlier_features; None is plain W8A8
    float_weight  [out, in]: outlier columns are multiplied by these; default: by the dequantized codes, as in
                  bitsandbytes, which keeps no float weight

    Raises ValueError for a w with groups or a zero point, and for a float_weight of another shape.
    """
    if w.scale.shape[1] != 1 or w.zero_point is not None:
        raise ValueError(f"w must be symmetric with one scale a row, got {w.grid}")
    if float_weight is not None and float_weight.shape != w.shape:
        raise ValueError(f"float_weight must be {list(w.shape)}, got {list(float_weight.shape)}")
    outliers = outlier_features(x, threshold)
    q = quantize_rows(x, threshold, outliers)
    products = q.codes.double() @ w.codes.double().t()  # [tokens, out], exact integers
    regular = products * q.scale.double() * w.scale.double().t()
    kept = (w.dequantize(torch.float64) if float_weight is None else float_weight.double())[:, outliers]
    return regular + x.double()[:, outliers] @ kept.t()


@dataclass(frozen=True, eq=False)
class OutlierStats:
    """The outlier features of one layer's input x [tokens, in], largest first.

    features         int64 [k], the columns
    largest          float32 [k], the largest magnitude in each
    share_of_tokens  float32 [k], the share of tokens in which it is at least the threshold
    ratio            float32 [k], largest over the largest magnitude among all columns that are no outliers
    columns, tokens  of x
    """

    features: Tensor
    largest: Tensor
    share_of_tokens: Tensor
    ratio: Tensor
    columns: int
    tokens: int

    @property
    def share_of_columns(self) -> float:
        """How many of the columns would be kept in floating point."""
        return len(self.features) / self.columns if self.columns else 0.0


def outlier_stats(x: Tensor, threshold: float = 6.0) -> OutlierStats:
    """Which columns of x [tokens, in] are outliers, how often, how large beside the rest (section 4.1, Table 4).

    The paper calls a feature an outlier feature of a model if this happens in at least 25 % of its layers, on at least
    6 % of the tokens: a statement about many of these.
    """
    x = _checked(x)
    outliers = outlier_features(x, threshold)
    magnitude = x.detach().abs().float()
    largest = magnitude.amax(0) if len(x) else magnitude.new_zeros(x.shape[1])  # [in]
    rest = largest[~outliers]
    features = outliers.nonzero()[:, 0]
    features = features[largest[features].argsort(descending=True, stable=True)]
    often = (magnitude[:, features] >= threshold).float().mean(0) if len(x) else largest[features]
    beside = rest.max() if len(rest) else largest.new_tensor(torch.nan)
    return OutlierStats(features, largest[features], often, largest[features] / beside, x.shape[1], len(x))


@dataclass(frozen=True, eq=False)
class MassiveActivations:
    """position int64 [k, 2] of (token, feature), value float32 [k] with its sign, largest magnitude first; median: of |x|."""

    position: Tensor
    value: Tensor
    median: float


def massive_activations(x: Tensor) -> MassiveActivations:
    """Values of x [tokens, in] above MASSIVE in magnitude and MASSIVE_RATIO times the median (Sun et al., section 2.1)."""
    x = _checked(x)
    magnitude = x.detach().abs().float()
    if not x.numel():
        return MassiveActivations(torch.empty((0, 2), dtype=torch.int64), magnitude.flatten(), 0.0)
    median = magnitude.median().item()
    position = ((magnitude > MASSIVE) & (magnitude >= MASSIVE_RATIO * median)).nonzero()  # [k, 2]
    value = x.detach().float()[position[:, 0], position[:, 1]]
    order = value.abs().argsort(descending=True, stable=True)
    return MassiveActivations(position[order], value[order], median)


def _checked(x: Tensor) -> Tensor:
    """x as it is computed with; or a sentence why these are no activations."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim != 2:
        kind = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        remedy = "use x.float()" if isinstance(x, Tensor) and x.ndim == 2 else "use x.reshape(-1, x.shape[-1])"
        raise TypeError(f"x must be floating-point [tokens, in], got {kind}: {remedy}")
    return floats(x, "x")
