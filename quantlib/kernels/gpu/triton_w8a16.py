"""W8A16 on a GPU: float activations times int8 weights, in one Triton kernel. Start from :func:`w8a16`.

The weight crosses memory as int8 and becomes floats in registers, a block at a time, so that at few rows of x the time
is that of reading half the bytes of a 16-bit weight. Three decisions carry the kernel:

Operands are swapped: it computes yᵀ = W · xᵀ. Tensor cores take their first operand from registers, which is where the
codes have just become floats, and it is 16 or 64 rows tall, which W has and a single token has not.

A block of columns never crosses a group: the block's sum is multiplied by one scale for each row of W, not by one for
each weight. With one scale a row that happens once, at the end.

With few rows there are fewer blocks of yᵀ than processors, so `split` programs share each sum and write parts of it,
which are added in a fixed order: the result repeats bit for bit.

Sources: Dettmers et al. 2022 (arXiv:2208.07339), equation 5, for the scales outside the sum; Frantar et al. 2024
(MARLIN, arXiv:2408.11743) for converting weights in registers, right before the tensor cores.
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

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

CONFIGS = tuple(
    Config(block_n, block_m, block_k, warps, stages, split)
    for block_m, block_n, block_k, warps, stages, splits in (
        (16, 64, 128, 4, 4, (1, 4, 8)),
        (16, 128, 128, 4, 3, (1, 4)),
        (16, 64, 256, 4, 3, (1, 4)),
        (16, 32, 256, 2, 4, (1, 8)),
        (32, 64, 128, 4, 4, (1, 4)),
        (32, 128, 128, 4, 3, (1, 4)),
        (64, 64, 128, 4, 3, (1, 4)),
        (64, 128, 64, 4, 4, (1, 2)),
        (128, 64, 64, 4, 4, (1,)),
        (128, 128, 64, 8, 4, (1,)),
    )
    for split in splits
)


@triton.jit
def w8a16_kernel(
    x_ptr,  # [M, K] float
    codes_ptr,  # [N, K] int8
    scale_ptr,  # [N or 1, GROUPS] float
    zero_point_ptr,  # int8 like scale, where HAS_ZERO_POINT
    out_ptr,  # [split, M, N] float
    M,
    N,
    K,
    GROUP,  # columns that share a scale
    GROUPS,
    scale_stride,  # from a row's scales to the next row's; 0 if all rows share them
    blocks_per_split,
    ONE_GROUP: tl.constexpr,
    HAS_ZERO_POINT: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks_m = tl.cdiv(M, BLOCK_M)
    n = (tl.program_id(0) // blocks_m) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    m = (tl.program_id(0) % blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    split = tl.program_id(1)
    row = n.to(tl.int64)
    token = m.to(tl.int64)

    blocks_per_group = tl.cdiv(GROUP, BLOCK_K)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, GROUPS * blocks_per_group)
    sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for block in range(first, last):
        group = block // blocks_per_group
        inside = (block % blocks_per_group) * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K] columns of the group
        k = group * GROUP + inside
        codes = tl.load(
            codes_ptr + row[:, None] * K + k[None, :], mask=(n[:, None] < N) & (inside[None, :] < GROUP), other=0
        )  # [BLOCK_N, BLOCK_K]
        x = tl.load(
            x_ptr + token[None, :] * K + k[:, None], mask=(m[None, :] < M) & (inside[:, None] < GROUP), other=0.0
        )  # [BLOCK_K, BLOCK_M]
        # integers up to 255 are exact in every 16-bit float, so the difference is too
        w = codes.to(x.dtype)
        if HAS_ZERO_POINT:
            zero_point = tl.load(zero_point_ptr + row * scale_stride + group, mask=n < N, other=0)  # [BLOCK_N]
            w = w - zero_point.to(x.dtype)[:, None]
        if ONE_GROUP:
            sums = tl.dot(w, x, sums, input_precision="ieee")
        else:
            scale = tl.load(scale_ptr + row * scale_stride + group, mask=n < N, other=0.0)  # [BLOCK_N]
            sums += tl.dot(w, x, input_precision="ieee") * scale.to(tl.float32)[:, None]
    if ONE_GROUP:
        scale = tl.load(scale_ptr + row * scale_stride, mask=n < N, other=0.0)  # [BLOCK_N]
        sums = sums * scale.to(tl.float32)[:, None]
    at = (split * M + token[None, :]) * N + row[:, None]  # [BLOCK_N, BLOCK_M]
    tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < M))


def w8a16(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """x · ((codes − zero_point) · scale)ᵀ, summed in float32.

    x           float16, bfloat16 or float32 [M, K], contiguous, on a CUDA device
    codes       int8 [N, K]
    scale       float [N or 1, groups], groups of K / groups neighbouring columns
    zero_point  int8, the shape of scale, or None
    dtype       of the result [M, N]: by default that of x, or float32 for the sums before they are rounded

    The first product of a kind (N, K, groups, dtype, rows up to the next power of two) times CONFIGS on it.

    Raises TypeError for another dtype, ValueError for shapes or devices that do not fit each other.

    >>> w8a16(x, packed.data, packed.scale, packed.zero_point)  # of Int8Linear(...).packed
    """
    check_x(x, DTYPES)
    if codes.dtype != torch.int8 or codes.ndim != 2:
        raise TypeError(f"codes must be int8 [N, K], got {codes.dtype} {list(codes.shape)}: pack with layout='rows'")
    rows, columns = codes.shape
    if x.shape[1] != columns:
        raise ValueError(f"x {list(x.shape)} must have the {columns} columns of codes {list(codes.shape)}")
    if not scale.is_floating_point():
        raise TypeError(f"scale must be a floating-point tensor, got {scale.dtype}")
    if scale.ndim != 2 or scale.shape[0] not in (1, rows) or not scale.shape[1] or columns % scale.shape[1]:
        raise ValueError(
            f"scale must be [{rows} or 1, groups] with groups that divide {columns} columns, got {list(scale.shape)}"
        )
    if zero_point is not None and (zero_point.dtype != torch.int8 or zero_point.shape != scale.shape):
        raise ValueError(
            f"zero_point must be int8 {list(scale.shape)}, got {zero_point.dtype} {list(zero_point.shape)}"
        )
    check_operands(w8a16_kernel, x=x, codes=codes, scale=scale, zero_point=zero_point)
    if not x.shape[0] or not rows or not columns:
        return x.new_zeros((x.shape[0], rows), dtype=dtype)
    if interpreting(w8a16_kernel):
        return launch(INTERPRETED, x, codes, scale, zero_point, dtype)
    group_size = columns // scale.shape[1]
    key = ("w8a16", device_key(x), x.dtype, rows_bucket(x.shape[0]), rows, columns, group_size, zero_point is not None)
    config = fastest_config(
        key,
        candidates_for(CONFIGS, x.shape[0], group_size),
        lambda config: launch(config, x, codes, scale, zero_point, dtype),
    )
    return launch(config, x, codes, scale, zero_point, dtype)


def launch(
    config: Config,
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """One run of the kernel with these block sizes, and the sum of its parts; arguments as w8a16 has checked them."""
    (m, k), n, groups = x.shape, codes.shape[0], scale.shape[1]
    blocks = groups * triton.cdiv(k // groups, config.block_k)
    blocks_per_split = triton.cdiv(blocks, config.split)
    split = triton.cdiv(blocks, blocks_per_split)
    dtype = dtype or x.dtype
    parts = torch.empty((split, m, n), dtype=dtype if split == 1 else torch.float32, device=x.device)
    w8a16_kernel[triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m), split](
        x,
        codes,
        scale,
        scale if zero_point is None else zero_point,
        parts,
        m,
        n,
        k,
        k // groups,
        groups,
        0 if scale.shape[0] == 1 else groups,
        blocks_per_split,
        ONE_GROUP=groups == 1,
        HAS_ZERO_POINT=zero_point is not None,
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return parts[0] if split == 1 else parts.sum(0).to(dtype)
