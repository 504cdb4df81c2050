"""SmoothQuant: move what is hard to round from the activations into the weights. Start from :func:`smooth_scale`.

Dividing a column of x by s and multiplying the same column of W by s changes no product. Chosen well, s takes the
outliers out of x, whose rows share a scale, and spreads them over W, which has one scale a row of its own.

Source: Xiao et al. 2023 (arXiv:2211.10438), section 4, equations 3 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from quantlib.numerics.floats import floats


def smooth_scale(x_absmax: Tensor, w_absmax: Tensor, alpha: float) -> Tensor:
    """s [in] = x_absmax^alpha / w_absmax^(1 − alpha) (equation 4); 1 for a column that is zero in x or in W.

    x_absmax  [in], the largest magnitude of each input column on calibration text
    w_absmax  [in], of each column of all the weights that read this input
    alpha     0 leaves the difficulty with the activations, 1 gives all of it to the weights

    Raises ValueError for alpha outside [0, 1], shapes that differ, and values that are negative, NaN or infinite;
    TypeError for what is not floating point.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie in [0, 1], got {alpha!r}")
    x_absmax, w_absmax = floats(x_absmax, "x_absmax"), floats(w_absmax, "w_absmax")
    if x_absmax.ndim != 1 or x_absmax.shape != w_absmax.shape:
        raise ValueError(
            f"x_absmax and w_absmax must both be [in], got {list(x_absmax.shape)} and {list(w_absmax.shape)}"
        )
    for name, values in (("x_absmax", x_absmax), ("w_absmax", w_absmax)):
        if not bool((torch.isfinite(values) & (values >= 0)).all()):
            raise ValueError(f"{name} must hold magnitudes: finite and not negative")
    dead = (x_absmax == 0) | (w_absmax == 0)
    x, w = (torch.where(dead, 1.0, values.double()) for values in (x_absmax, w_absmax))
    return (x**alpha / w ** (1 - alpha)).to(x_absmax.dtype)


def fold(gain: Tensor, weights: Sequence[Tensor], s: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The gain [in] of the norm before some layers divided by s, and their weights [out, in] multiplied by it: new tensors.

    What the layers answer stays the same but for rounding (equation 3). A norm with a bias needs that divided as well.
    Raises ValueError for an s that is not positive, or other shapes.
    """
    s, gain = floats(s, "s"), floats(gain, "gain")
    weights = [floats(w, f"weights[{i}]") for i, w in enumerate(weights)]
    if not bool((s > 0).all()):
        raise ValueError(f"s must be positive, its smallest is {s.min().item():.4g}")
    for name, tensor in (("gain", gain), *((f"weights[{i}]", w) for i, w in enumerate(weights))):
        if tensor.shape[-1] != s.shape[0]:
            raise ValueError(f"{name} must end in {s.shape[0]} columns as s does, got {list(tensor.shape)}")
    return gain / s.to(gain.dtype), [w * s.to(w.dtype) for w in weights]
