"""Random quantized weights for the tests of kernels and layers: every grid, ragged shapes, act-order."""

import torch
from hypothesis import strategies as st

from quantlib import Grid, quantize
from quantlib.numerics.quantize import QuantizedTensor


def act_ordered(q, generator):
    """q with its columns dealt to the groups at random, equally many to each."""
    if isinstance(q.grid.group_size, str):
        return q
    g_idx = torch.arange(q.shape[1], dtype=torch.int32) // q.grid.group_size
    g_idx = g_idx[torch.randperm(len(g_idx), generator=generator)]
    return QuantizedTensor(q.codes, q.scale, q.zero_point, g_idx, q.grid)


GROUPS = ("row", "tensor", 1, 8, 32, 32, 64, 96, 128)


@st.composite
def weights(
    draw, bits=st.integers(2, 8), groups=GROUPS, out=None, most_rows=200, most_columns=320, columns_in=1, affine=True
):
    """A QuantizedTensor [out, in]: with and without act-order.

    groups      group sizes to draw from;  out: a strategy, by default any number of rows up to most_rows
    columns_in  what the number of columns is a multiple of, where rows are not in groups
    affine      whether grids may have zero points
    """
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    group = draw(st.sampled_from(groups))
    symmetric = not affine or draw(st.booleans())
    narrow_range = symmetric and draw(st.booleans())
    unit = columns_in if isinstance(group, str) else group
    columns = unit * draw(st.integers(1, max(1, most_columns // unit)))
    out = draw(st.one_of(st.integers(1, most_rows), st.sampled_from([32, 64, 128, 192])) if out is None else out)
    grid = Grid(draw(bits), group, symmetric=symmetric, narrow_range=narrow_range)
    w = torch.randn((out, columns), generator=generator) * 10 ** draw(st.floats(-2, 1))
    q = quantize(w, grid)
    return act_ordered(q, generator) if draw(st.booleans()) else q


@st.composite
def inputs(
    draw, columns, dtypes=(torch.float32, torch.bfloat16, torch.float16, torch.float64), least_rows=0, most_rows=40
):
    """x [rows, columns], rows from least_rows on."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows = draw(st.one_of(st.integers(least_rows, 4), st.integers(5, most_rows)))
    return torch.randn((rows, columns), generator=generator).to(draw(st.sampled_from(dtypes)))
