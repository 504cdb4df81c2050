"""What the layers before have changed, corrected before this one is rounded. Start from :func:`corrected_target`.

A layer of a quantized model reads x, not x_float, and still should give W x_float. Least squares says which weight
comes closest: ‖x_float Wᵀ − x W′ᵀ‖² is least at W′ = W G H⁻¹ with G = x_floatᵀ x and H = xᵀx. Going there all the way
fits the calibration text; α says how far to go.

Sources: the idea is that of GPTAQ (arXiv:2504.02692), which puts the correction into the column loop, and of Qronos
(arXiv:2505.11695); this is the least squares beneath both.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.methods.cholesky import inverse_factor
from quantlib.methods.gptq import row_blocks
from quantlib.numerics.floats import floats


def corrected_target(w: Tensor, cross: Tensor, gram: Tensor, *, alpha: float = 0.25, damp: float = 0.01) -> Tensor:
    """W + α W (G − H)(H + λ)⁻¹, [out, in] in the dtype of w; computed in float64.

    w      floating point [out, in]. Never modified
    cross  G = x_floatᵀ x, [in, in], or [blocks, in, in] for blocks of rows
    gram   H = xᵀx, the same shape
    alpha  0: w itself; 1: the least squares solution
    damp   λ as a share of the mean of H's diagonal; it grows where H is not positive definite

    Raises ValueError for shapes that do not fit and for what inverse_factor refuses.
    """
    w, gram = floats(w, "w"), floats(gram, "gram")
    if not isinstance(cross, Tensor) or cross.shape != gram.shape:
        raise ValueError(f"cross must have gram's shape {list(gram.shape)}, got {list(getattr(cross, 'shape', ()))}")
    target = w.detach().to(torch.float64, copy=True)
    for (rows, H), (_, G) in zip(row_blocks(w, gram), row_blocks(w, cross), strict=True):
        H, G = H.double(), G.double()
        U, _ = inverse_factor(H, damp)  # UᵀU = (H/m + λ)⁻¹, m the mean of H's diagonal
        target[rows] += alpha / H.diagonal().mean() * (target[rows] @ (G - H)) @ U.t() @ U
    return target.to(w.dtype)
