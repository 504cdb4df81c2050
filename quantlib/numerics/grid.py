"""Which integers a weight may become, and how many weights share a scale. Everything else builds on :class:`Grid`.

Sources: Jacob et al. 2018 (arXiv:1712.05877), section 2.1, for the affine grid; Dettmers et al. 2022
(arXiv:2208.07339), section 2, for absmax grids; Frantar et al. 2023 (arXiv:2210.17323), section 4, and its
reference code for the full-range grid.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """The integers a weight may become, and how many weights share one scale.

    Parameters
    ----------
    bits : int, 2 to 8
    group_size : int, "row" or "tensor"
        How many neighbouring weights of a row share a scale. "row": a channel of W, or a token of X.
    symmetric : bool
        Symmetric grids have code 0 at weight 0 and no zero_point. Asymmetric ones span [min, max] of the
        group, widened to contain 0, so that a weight of 0 stays exactly 0.
    narrow_range : bool
        Symmetric only. True: scale = absmax / (2^(bits-1) - 1), codes ±(2^(bits-1) - 1), as in LLM.int8()
        and AWQ. False: scale = 2 absmax / (2^bits - 1), all 2^bits codes, as in GPTQ and compressed-tensors.

    Raises TypeError or ValueError, naming the argument, for anything else.
    """

    bits: int
    group_size: int | str = "row"
    symmetric: bool = True
    narrow_range: bool = False

    def __post_init__(self):
        object.__setattr__(self, "bits", _integer("bits", self.bits))
        if not 2 <= self.bits <= 8:
            raise ValueError(
                f"bits must be from 2 to 8, got {self.bits}: one bit has no symmetric grid, and codes are stored in int8"
            )
        if isinstance(self.group_size, str):
            if self.group_size not in ("row", "tensor"):
                raise ValueError(f'group_size must be an int, "row" or "tensor", got {self.group_size!r}')
        else:
            object.__setattr__(self, "group_size", _integer("group_size", self.group_size))
            if self.group_size < 1:
                raise ValueError(f'group_size must be at least 1, got {self.group_size}; for one scale a row say "row"')
        for name in ("symmetric", "narrow_range"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.narrow_range and not self.symmetric:
            raise ValueError(
                "narrow_range=True belongs to symmetric grids; an asymmetric grid uses every code: drop one of the two"
            )

    @property
    def qmin(self) -> int:
        """The lowest code."""
        return -self.qmax if self.narrow_range else -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The highest code."""
        return 2 ** (self.bits - 1) - 1

    @property
    def steps(self) -> int:
        """How many steps lie between the lowest and the highest code."""
        return self.qmax - self.qmin

    def scale_shape(self, rows: int, columns: int) -> tuple[int, int]:
        """The shape of the scales of a [rows, columns] matrix: [rows or 1, groups].

        Raises ValueError, with the sizes that would do, if group_size does not divide the columns.
        """
        if self.group_size == "tensor":
            return 1, 1
        if self.group_size == "row":
            return rows, 1
        if columns % self.group_size:
            raise ValueError(
                f"group_size {self.group_size} does not divide the {columns} columns of a row; "
                f'these would: {", ".join(map(str, _divisors_near(columns, self.group_size)))} (or "row")'
            )
        return rows, columns // self.group_size


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r} ({type(value).__name__})") from None


def _divisors_near(columns: int, wanted: int, most: int = 4) -> list[int]:
    """The divisors of columns nearest to wanted, in ascending order."""
    divisors = {d for i in range(1, math.isqrt(columns) + 1) if columns % i == 0 for d in (i, columns // i)}
    return sorted(sorted(divisors, key=lambda d: (abs(math.log(d / wanted)), d))[:most])
