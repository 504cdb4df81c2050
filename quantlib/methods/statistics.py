"""What a method knows of the inputs of a linear layer. Start from :class:`InputStats`.

The text that a layer was calibrated on is not kept, only sums over it: their size does not depend on how many tokens
were read. quantlib.models.calibration collects them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.numerics.floats import floats, is_float


@dataclass(frozen=True, eq=False)
class InputStats:
    """Sums over the inputs x [tokens, in] of a linear layer.

    gram     xᵀx, floating point [in, in]: H of GPTQ up to a factor. [blocks, in, in] where blocks of rows of the
             weight, equally many rows each, have a matrix of their own
    absmean  mean |x| of each input, [in]
    absmax   largest |x| of each input, [in]
    tokens   how many rows of x were summed

    Raises ValueError or TypeError if these do not fit each other.
    """

    gram: Tensor
    absmean: Tensor
    absmax: Tensor
    tokens: int

    def __post_init__(self):
        columns = self.gram.shape[-1] if self.gram.ndim else 0
        if self.gram.ndim not in (2, 3) or self.gram.shape[-2] != columns or not is_float(self.gram.dtype):
            raise TypeError(
                "gram must be floating-point [in, in] or [blocks, in, in], "
                f"got {self.gram.dtype} {list(self.gram.shape)}"
            )
        for name in ("absmean", "absmax"):
            values = getattr(self, name)
            if tuple(values.shape) != (columns,) or not is_float(values.dtype):
                raise ValueError(
                    f"{name} must be floating-point [{columns}], got {values.dtype} {list(values.shape)}"
                )
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 1:
            raise ValueError(
                f"tokens must be a whole number from 1 on, got {self.tokens!r}: no token reached the layer"
            )

    @classmethod
    def of(cls, x: Tensor) -> InputStats:
        """Of inputs that are all there, x [tokens, in]; computed in float32, or in float64 for float64 x."""
        if x.ndim != 2 or not x.is_floating_point():
            raise TypeError(f"x must be floating-point [tokens, in], got {x.dtype} {list(x.shape)}")
        if not len(x):
            raise ValueError("x must hold at least one token, got none")
        x = floats(x, "x").detach()
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        return cls(x.t() @ x, x.abs().mean(0), x.abs().amax(0), len(x))

    def divided_by(self, s: Tensor) -> InputStats:
        """Of the inputs divided by s [in], positive."""
        s = s.to(self.gram)
        return InputStats(self.gram / s / s[:, None], self.absmean / s, self.absmax / s, self.tokens)
