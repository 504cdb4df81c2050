"""W8A8 on a GPU: int8 activations times int8 weights, in one Triton kernel. Start from :func:`w8a8`.

Tensor cores multiply int8 twice as fast as 16-bit floats and add in int32, exactly. The scales of both sides are
constant along the sum, so they multiply its result, once for each element of y, before it leaves the registers:
y = S_x · (X_i8 · W_i8ᵀ) · S_w. Without scales the same kernel returns the bare products, as LLM.int8() needs them.

Source: Dettmers et al. 2022 (arXiv:2208.07339), equation 6. Sums are exact below 2^31 / 128² = 131,072 columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from quantlib.kernels.candidates import rows_bucket
from quantlib.kernels.gpu.tuning import (
    INTERPRETED,
    Config,
    candidates_for,
    check_operands,
    check_x,
    device_key,
    fastest_config,
    interpreting,
)

OUT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.int32)
MOST_COLUMNS = 2**31 // 128**2 - 1

CONFIGS = (
    Config(32, 16, 256, warps=4, stages=4),
    Config(64, 16, 256, warps=4, stages=4),
    Config(128, 16, 128, warps=4, stages=4),
    Config(64, 32, 128, warps=4, stages=4),
    Config(128, 32, 128, warps=4, stages=4),
    Config(64, 64, 128, warps=4, stages=4),
    Config(128, 64, 128, warps=4, stages=4),
    Config(128, 128, 64, warps=4, stages=4),
    Config(128, 128, 128, warps=8, stages=3),
)


@triton.jit
def w8a8_kernel(
    x_ptr,  # [M, K] int8
    codes_ptr,  # [N, K] int8
    row_scale_ptr,  # [M] float, where SCALED
    column_scale_ptr,  # [N] float, where SCALED
    out_ptr,  # [M, N]
    M,
    N,
    K,
    SCALED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks_m = tl.cdiv(M, BLOCK_M)
    n = (tl.program_id(0) // blocks_m) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    m = (tl.program_id(0) % blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    row = n.to(tl.int64)
    token = m.to(tl.int64)
    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.int32)
    for block in range(tl.cdiv(K, BLOCK_K)):
        k = block * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K]
        x = tl.load(
            x_ptr + token[:, None] * K + k[None, :], mask=(m[:, None] < M) & (k[None, :] < K), other=0
        )  # [BLOCK_M, BLOCK_K]
        w = tl.load(
            codes_ptr + row[None, :] * K + k[:, None], mask=(n[None, :] < N) & (k[:, None] < K), other=0
        )  # [BLOCK_K, BLOCK_N]
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
    mask = (m[:, None] < M) & (n[None, :] < N)
    at = token[:, None] * N + row[None, :]  # [BLOCK_M, BLOCK_N]
    if SCALED:
        row_scale = tl.load(row_scale_ptr + m, mask=m < M, other=0.0).to(tl.float32)
        column_scale = tl.load(column_scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        scaled = sums.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
        tl.store(out_ptr + at, scaled.to(out_ptr.dtype.element_ty), mask=mask)
    else:
        tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=mask)


def w8a8(
    x: Tensor,
    codes: Tensor,
    row_scale: Tensor | None = None,
    column_scale: Tensor | None = None,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """row_scale · (x · codesᵀ) · column_scale, summed exactly in int32 and scaled in float32.

    x             int8 [M, K], contiguous, on a CUDA device
    codes         int8 [N, K]
    row_scale     float [M], of the tokens;  column_scale  float [N], of the rows of the weight; both, or neither
    dtype         of the result [M, N]: float16, bfloat16 or float32; int32 for bare products

    The first product of a kind (N, K, dtype, rows up to the next power of two) times CONFIGS on it.

    Raises TypeError for another dtype, ValueError for shapes or devices that do not fit each other, one scale without
    the other, and more columns than int32 sums exactly.
    """
    check_x(x, (torch.int8,))
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise TypeError(f"codes must be int8 [N, K], got {codes.dtype} {list(codes.shape)}: pack with layout='rows'")
    rows, columns = codes.shape
    if x.shape[1] != columns:
        raise ValueError(f"x {list(x.shape)} must have the {columns} columns of codes {list(codes.shape)}")
    if columns > MOST_COLUMNS:
        raise ValueError(f"x has {columns} columns, int32 sums up to {MOST_COLUMNS} exactly: multiply it in parts")
    if dtype not in OUT_DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or int32, got {dtype}")
    if (row_scale is None) != (column_scale is None):
        raise ValueError("row_scale and column_scale belong together: give both, or neither for the bare products")
    scaled = row_scale is not None
    if scaled and dtype == torch.int32:
        raise TypeError("dtype must be floating-point for a scaled product, got torch.int32: say dtype=torch.float16")
    if scaled:
        for name, scale, length in (("row_scale", row_scale, x.shape[0]), ("column_scale", column_scale, rows)):
            if not scale.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor, got {scale.dtype}")
            if tuple(scale.shape) != (length,):
                raise ValueError(f"{name} must be [{length}], got {list(scale.shape)}: use {name}.reshape(-1)")
    check_operands(w8a8_kernel, x=x, codes=codes, row_scale=row_scale, column_scale=column_scale)
    if interpreting(w8a8_kernel) and dtype == torch.bfloat16:
        raise TypeError("dtype is bfloat16, which Triton's interpreter computes wrongly: use float16 or float32")
    if not x.shape[0] or not rows or not columns:
        return x.new_zeros((x.shape[0], rows), dtype=dtype)
    if interpreting(w8a8_kernel):
        return launch(INTERPRETED, x, codes, row_scale, column_scale, dtype)
    key = ("w8a8", device_key(x), dtype, rows_bucket(x.shape[0]), rows, columns, scaled)
    config = fastest_config(
        key,
        candidates_for(CONFIGS, x.shape[0], columns),
        lambda config: launch(config, x, codes, row_scale, column_scale, dtype),
    )
    return launch(config, x, codes, row_scale, column_scale, dtype)


def launch(
    config: Config,
    x: Tensor,
    codes: Tensor,
    row_scale: Tensor | None,
    column_scale: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """One run of the kernel with these block sizes; arguments as w8a8 has checked them."""
    (m, k), n = x.shape, codes.shape[0]
    out = torch.empty((m, n), dtype=dtype, device=x.device)
    w8a8_kernel[(triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m),)](
        x,
        codes,
        x if row_scale is None else row_scale,
        x if column_scale is None else column_scale,
        out,
        m,
        n,
        k,
        SCALED=row_scale is not None,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out
