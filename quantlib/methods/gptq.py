"""GPTQ: round a column, and let those not rounded yet make up for its error. Start from :func:`gptq_quantize`.

With H = XᵀX the squared error of a layer's output is tr((W − Q) H (W − Q)ᵀ). Rounding to nearest minimises W − Q and
knows nothing of H. GPTQ visits the columns in a fixed order; after each it moves the others to where they are best,
given that this one can move no more. All it needs for that is the upper Cholesky factor U of H⁻¹ = UᵀU.

Source: Frantar et al. 2023 (arXiv:2210.17323), section 3.3 and Algorithm 1, whose symbols are used here: B columns a
block, E their errors. act_order visits the columns with the largest diagonal of H first (the authors' code). Scales are
those of the original weights whatever the order ("static groups" there), so codes need no record of it.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from quantlib.methods.cholesky import inverse_factor
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize
from quantlib.numerics.rounding import row_chunks, working_dtype

PANEL = 32  # columns that are updated one by one; a panel of Wᵀ stays in cache


def gptq_quantize(
    w: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    act_order: bool = False,
    damp: float = 0.01,
    block_size: int = 128,
    clip: float | Tensor = 1.0,
    scale_dtype: torch.dtype = torch.float16,
) -> QuantizedTensor:
    """The codes of w that lose least of x · wᵀ, one column after the other, on the scales of quantize(w, grid).

    w           floating-point [out, in]. Never modified.
    gram        H, any positive multiple of xᵀx: [in, in], or [blocks, in, in] for blocks of out/blocks rows each
    act_order   columns with the largest diagonal of H first, while most others can still make up for them
    damp        added to the diagonal of H, as a share of its mean. Where H is not positive definite even then, it grows
                tenfold until it is, with a warning that says how far
    block_size  B: so many columns are finished before the rest of the matrix is updated. Changes the speed only
    clip        as in quantize: a number in (0, 1], or a tensor that broadcasts to the scales
    scale_dtype as in quantize: scales are rounded to it before the first code is computed. What a column passes on is
                its error on the unrounded scales, as in the field's implementations, whose codes these are

    Computed in float32 (float64 for float64 w). An input that was never seen has a 0 on H's diagonal: its column is
    rounded to nearest. With H = I every column is.

    Raises what quantize raises; ValueError for a gram of another shape, with NaN, infinite or negative diagonal values,
    without any input, for one that no damping makes positive definite, and for a negative damp; TypeError for a gram
    that is not floating point.

    >>> x = torch.randn(256, 64, generator=torch.Generator().manual_seed(0)) @ torch.rand(64, 64)
    >>> q = gptq_quantize(torch.randn(8, 64), x.t() @ x, Grid(bits=4, group_size=32))
    >>> q.codes.shape, q.scale.shape
    (torch.Size([8, 64]), torch.Size([8, 2]))
    """
    return gptq_with_damping(
        w, gram, grid, act_order=act_order, damp=damp, block_size=block_size, clip=clip, scale_dtype=scale_dtype
    )[0]


def gptq_with_damping(
    w: Tensor,
    gram: Tensor,
    grid: Grid,
    *,
    act_order: bool = False,
    damp: float = 0.01,
    block_size: int = 128,
    clip: float | Tensor = 1.0,
    scale_dtype: torch.dtype = torch.float16,
) -> tuple[QuantizedTensor, float]:
    """What gptq_quantize returns, and the damping that was needed, the largest of all blocks of rows."""
    w = floats(w, "w")
    nearest = quantize(w, grid, clip=clip, scale_dtype=scale_dtype)
    steps = quantize(w, grid, clip=clip, scale_dtype=working_dtype(w.dtype)).scale
    blocks = row_blocks(w, gram)
    if not damp >= 0:
        raise ValueError(f"damp must be at least 0, a share of the mean of H's diagonal, got {damp!r}")
    if isinstance(block_size, bool) or not isinstance(block_size, int) or block_size < 1:
        raise ValueError(f"block_size must be a whole number from 1 on, got {block_size!r}")
    if not w.numel():
        return nearest, damp
    codes, used = torch.empty_like(nearest.codes), []
    for rows, H in blocks:
        marks = (t if t is None or len(t) == 1 else t[rows] for t in (nearest.scale, steps, nearest.zero_point))
        codes[rows], needed = _columns(w.detach()[rows], H, grid, *marks, act_order, damp, block_size)
        used.append(needed)
    if max(used) > damp:
        warnings.warn(
            f"H is not positive definite with damping {damp:g} of its mean diagonal: {max(used):g} was needed; "
            "calibrate on more tokens",
            stacklevel=3,
        )
    return QuantizedTensor(codes, nearest.scale, nearest.zero_point, None, grid), max(used)


def _columns(
    w: Tensor,
    H: Tensor,
    grid: Grid,
    scale: Tensor,
    step: Tensor,
    zero: Tensor | None,
    act_order: bool,
    damp: float,
    block_size: int,
) -> tuple[Tensor, float]:
    """Algorithm 1 for rows that share H: codes int8 [out, in], and the damping used.

    scale, step, zero  [out|1, groups]: a code is the nearest mark of scale, its error is measured on step
    """
    work, columns = working_dtype(w.dtype), w.shape[1]
    order = H.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(columns, device=w.device)
    U, used = inverse_factor(H[order][:, order].to(work), damp)
    pivots = U.diagonal().tolist()
    group = order // (columns // scale.shape[1])  # [in]
    scale, step, zero = (
        [None] * columns if t is None else t.to(work).t().contiguous()[group].unbind()  # [out|1] each
        for t in (scale, step, zero)
    )
    W = w.to(work).t()[order]  # [in, out]: the paper's W transposed, so that a column lies in one piece
    column = W.unbind()  # views, each [out]
    Q = torch.empty(W.shape, dtype=torch.int8, device=w.device)
    E = torch.empty((min(block_size, columns), w.shape[0]), dtype=work, device=w.device)  # [B, out]
    for i in range(0, columns, block_size):
        end = min(i + block_size, columns)
        for start in range(i, end, PANEL):
            stop = min(start + PANEL, end)
            for j in range(start, stop):
                q = torch.div(column[j], scale[j]).round_()
                if zero[j] is not None:
                    q.add_(zero[j])
                Q[j] = q.clamp_(grid.qmin, grid.qmax)
                if zero[j] is not None:
                    q.sub_(zero[j])
                torch.sub(column[j], q.mul_(step[j]), out=E[j - i]).div_(pivots[j])
                W[j + 1 : stop].addr_(U[j, j + 1 : stop], E[j - i], alpha=-1)
            W[stop:end].addmm_(U[start:stop, stop:end].t(), E[start - i : stop - i], alpha=-1)
        W[end:].addmm_(U[i:end, end:].t(), E[: end - i], alpha=-1)
    codes = torch.empty(w.shape, dtype=torch.int8, device=w.device)
    codes[:, order] = Q.t()  # [out, in], columns where they were
    return codes, used


def output_error(w: Tensor, q: QuantizedTensor, gram: Tensor) -> float:
    """How much of the layer's output is lost: tr((W − Q) G (W − Q)ᵀ) / tr(W G Wᵀ), in float64.

    w [out, in], gram [in, in] or [blocks, in, in] as in gptq_quantize. 0.0 where there is no output to lose. Raises
    ValueError for shapes that do not fit.
    """
    w = floats(w, "w")
    if tuple(q.shape) != tuple(w.shape):
        raise ValueError(f"q must have the shape of w, {list(w.shape)}, got {list(q.shape)}")
    total = squared_output(w, gram)
    return squared_output(w.detach() - q.dequantize(working_dtype(w.dtype)), gram) / total if total else 0.0


def squared_output(w: Tensor, gram: Tensor) -> float:
    """tr(W G Wᵀ), the sum of (x · wᵀ)² over the inputs that G sums up; computed in float64."""
    total = 0.0
    for rows, G in row_blocks(w, gram):
        G = G.double()
        for some in row_chunks(w[rows]):
            W = w.detach()[rows][some].double()  # [some, in]
            total += ((W @ G) * W).sum().item()
    return max(0.0, total)


def row_blocks(w: Tensor, gram: Tensor) -> list[tuple[slice, Tensor]]:
    """Blocks of rows of w [out, in], each with its matrix [in, in]; one block for all rows if gram is [in, in].

    Raises TypeError or ValueError for a gram that is no Gram matrix of w's inputs.
    """
    gram = floats(gram, "gram")
    rows, columns = w.shape
    if gram.ndim not in (2, 3) or tuple(gram.shape[-2:]) != (columns, columns):
        raise ValueError(
            f"gram must be [{columns}, {columns}], x.t() @ x for x [tokens, {columns}], or a stack of those; "
            f"got {list(gram.shape)}"
        )
    blocks = gram.detach().to(w.device).reshape(-1, columns, columns)
    if not len(blocks) or rows % len(blocks):
        raise ValueError(f"gram has {len(blocks)} blocks, which do not divide the {rows} rows of w")
    each = rows // len(blocks)
    return [(slice(b * each, (b + 1) * each), H) for b, H in enumerate(blocks)]
