"""The upper Cholesky factor of an inverse, without the inverse. Start from :func:`inverse_factor`.

H = R Rᵀ with an upper triangular R is the ordinary Cholesky factorization of H with rows and columns in reverse. Then
H⁻¹ = R⁻ᵀ R⁻¹, so R⁻¹ is the factor U that GPTQ asks for: one factorization and one triangular inverse, a third less
work than factor, inverse, factor again, and no inverse is ever rounded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

SMALL = 512  # from here on the triangular inverse is left to the library
LEAST_DAMP, MOST_DAMP = 1e-6, 1e6


def inverse_factor(gram: Tensor, damp: float) -> tuple[Tensor, float]:
    """Upper triangular U [n, n] with UᵀU = (H/m + damp · I)⁻¹, m the mean of H's diagonal, and the damping used.

    gram  H: symmetric, float32 or float64 [n, n]. Not modified. Inputs never seen (a 0 on the diagonal) are given a 1
    damp  a share of the mean diagonal; it grows tenfold until the matrix is positive definite

    Raises ValueError for NaN or infinite values, a diagonal with negative values or with zeros only, and for a matrix
    that no damping up to MOST_DAMP makes positive definite, which no Gram matrix is.
    """
    diagonal = gram.diagonal().double()
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("gram holds NaN or infinite values: look for the layer that made such inputs")
    if bool((diagonal < 0).any()):
        raise ValueError(f"gram has a negative diagonal ({diagonal.min().item():.4g}): it is no x.t() @ x")
    mean = diagonal.mean().item()
    if mean == 0:
        raise ValueError("gram is zero everywhere: no token reached the layer, or all its inputs are 0")
    H = (gram / mean).flip(0, 1)
    seen = H.diagonal() > 0
    H.diagonal().copy_(torch.where(seen, H.diagonal(), torch.ones_like(seen, dtype=H.dtype)))
    while True:
        damped = H.clone()
        damped.diagonal().add_(damp)
        L, info = torch.linalg.cholesky_ex(damped)
        if not info.item() and bool(torch.isfinite(L.diagonal()).all()):
            return upper_inverse(L.flip(0, 1)), damp
        damp = max(10 * damp, LEAST_DAMP)
        if not damp <= MOST_DAMP or math.isnan(damp):
            raise ValueError(
                f"gram is not positive definite even with {MOST_DAMP:g} times its mean diagonal added: is it x.t() @ x?"
            )


def upper_inverse(R: Tensor) -> Tensor:
    """The inverse of an upper triangular [n, n], by halves: [[A, B], [0, D]]⁻¹ = [[A⁻¹, −A⁻¹ B D⁻¹], [0, D⁻¹]]."""
    n = len(R)
    if n <= SMALL:
        return torch.linalg.solve_triangular(R, torch.eye(n, dtype=R.dtype, device=R.device), upper=True)
    half, inverse = n // 2, torch.zeros_like(R)
    A, D = upper_inverse(R[:half, :half]), upper_inverse(R[half:, half:])
    inverse[:half, :half], inverse[half:, half:] = A, D
    inverse[:half, half:] = -(A @ R[:half, half:]) @ D
    return inverse
