"""W4A16 on a GPU: float activations times 4-bit weights, in one Triton kernel. Start from :func:`w4a16`.

The frame is that of quantlib.kernels.gpu.triton_w8a16: yᵀ = W · xᵀ, blocks that never cross a group, sums shared by `split`
programs. What is new is that a byte holds two codes, of columns 2j and 2j + 1. Putting them side by side again would
cost as much as the product. The sum does not care about their order, so the block is multiplied in two halves,
low nibbles by the even columns of x and high nibbles by the odd ones; it is x, the small operand, that is taken apart.

To make a float of a nibble, it is written into the last bits of a float that is large enough: the bits of 1024 in
float16 (128 in bfloat16), with the nibble in place of the last four, are 1024 + nibble, and subtracting 1024 + 8 leaves
the code, exactly. On a GPU that is 11 instructions for 8 codes (:data:`UNPACK`); the portable path does it by shifts
and conversions.

Sources: Frantar et al. 2024 (MARLIN, arXiv:2408.11743) for weight-only 4-bit products near the memory's speed;
Kim et al. 2022 (arXiv:2211.10017), section 3, for the bits of 1024.
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
        (16, 64, 128, 2, 4, (1, 4, 16)),
        (16, 64, 128, 4, 4, (1, 4, 8)),
        (16, 64, 256, 4, 3, (1, 4)),
        (16, 128, 128, 4, 4, (1, 4)),
        (32, 64, 128, 4, 4, (1, 4)),
        (32, 128, 128, 4, 3, (1, 4)),
        (64, 64, 128, 4, 3, (1, 4)),
        (64, 128, 128, 8, 3, (1, 2)),
        (128, 64, 64, 4, 4, (1,)),
        (128, 128, 64, 8, 4, (1,)),
    )
    for split in splits
)

# Four bytes to four floats of low nibbles ($0, $1) and four of high ones ($2, $3). The selector 0x4140 of prmt makes
# byte 0, MAGIC, byte 1, MAGIC: two 16-bit floats of value BASE + nibble; the fma subtracts BASE + 8.
UNPACK = """
    {
    .reg .b32 low, high, magic, one, minus;
    mov.b32 magic, MAGIC;
    mov.b32 one, ONE;
    mov.b32 minus, MINUS;
    and.b32 low, $4, 0x0f0f0f0f;
    shr.b32 high, $4, 4;
    and.b32 high, high, 0x0f0f0f0f;
    prmt.b32 $0, low, magic, 0x4140;
    prmt.b32 $1, low, magic, 0x4342;
    prmt.b32 $2, high, magic, 0x4140;
    prmt.b32 $3, high, magic, 0x4342;
    fma.rn.FLOATS $0, $0, one, minus;
    fma.rn.FLOATS $1, $1, one, minus;
    fma.rn.FLOATS $2, $2, one, minus;
    fma.rn.FLOATS $3, $3, one, minus;
    }
"""


def unpack_asm(floats: str, magic: int, one: int) -> str:
    """UNPACK for one 16-bit format: magic is the upper byte of its BASE (1024 or 128), one its 1.0."""
    minus = 0x8000 | magic << 8 | 8  # −(BASE + 8)
    words = {"FLOATS": floats, "MAGIC": hex(magic * 0x01010101), "ONE": hex(one * 0x00010001)}
    text = UNPACK.replace("MINUS", hex(minus * 0x00010001))
    for word, value in words.items():
        text = text.replace(word, value)
    return text


UNPACK_FLOAT16 = tl.constexpr(unpack_asm("f16x2", 0x64, 0x3C00))
UNPACK_BFLOAT16 = tl.constexpr(unpack_asm("bf16x2", 0x43, 0x3F80))


@triton.jit
def unpack_pairs(data, dtype: tl.constexpr, FAST: tl.constexpr):
    """Bytes to codes as floats: those of the low nibbles and those of the high ones, each shaped like data."""
    if FAST and dtype == tl.float16:
        return tl.inline_asm_elementwise(
            UNPACK_FLOAT16, "=r,=r,=r,=r,r", [data], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    elif FAST and dtype == tl.bfloat16:
        return tl.inline_asm_elementwise(
            UNPACK_BFLOAT16, "=r,=r,=r,=r,r", [data], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    else:
        low = (data & 15).to(tl.int8) - 8
        high = (data >> 4).to(tl.int8) - 8
        return low.to(dtype), high.to(dtype)


@triton.jit
def w4a16_kernel(
    x_ptr,  # [M, K] float
    codes_ptr,  # [N, ceil(K/2)] uint8: column 2j in the low nibble of byte j, 2j + 1 in the high one, code + 8 each
    scale_ptr,  # [GROUPS, N or 1] float
    zero_point_ptr,  # [GROUPS, ceil(N/2) or 1] uint8, where HAS_ZERO_POINT: row j low, row j + ceil(N/2) high
    out_ptr,  # [split, M, N] float
    M,
    N,
    K,
    GROUP,  # columns that share a scale
    GROUPS,
    row_bytes,  # ceil(K/2)
    group_bytes,  # ceil(GROUP/2)
    scale_columns,  # N, or 1 if all rows share a scale
    blocks_per_split,
    ONE_GROUP: tl.constexpr,
    HAS_ZERO_POINT: tl.constexpr,
    FAST: tl.constexpr,  # whether UNPACK may be used: 16-bit x, and not in the interpreter
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    blocks_m = tl.cdiv(M, BLOCK_M)
    n = (tl.program_id(0) // blocks_m) * BLOCK_N + tl.arange(0, BLOCK_N)  # [BLOCK_N]
    m = (tl.program_id(0) % blocks_m) * BLOCK_M + tl.arange(0, BLOCK_M)  # [BLOCK_M]
    split = tl.program_id(1)
    row = n.to(tl.int64) * row_bytes
    token = m.to(tl.int64)
    scale_at = tl.minimum(n, scale_columns - 1)
    dtype: tl.constexpr = x_ptr.dtype.element_ty

    blocks_per_group = tl.cdiv(GROUP, BLOCK_K)
    first = split * blocks_per_split
    last = tl.minimum(first + blocks_per_split, GROUPS * blocks_per_group)
    sums = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    for block in range(first, last):
        group = block // blocks_per_group
        index = block % blocks_per_group
        inside = index * BLOCK_K + tl.arange(0, BLOCK_K)  # [BLOCK_K] columns of the group
        k = group * GROUP + inside
        x = tl.load(
            x_ptr + token[:, None] * K + k[None, :], mask=(m[:, None] < M) & (inside[None, :] < GROUP), other=0.0
        )  # [BLOCK_M, BLOCK_K]
        if HAS_ZERO_POINT:
            half = tl.cdiv(scale_columns, 2)
            byte = tl.load(zero_point_ptr + group * half + scale_at % half, mask=n < N, other=0)  # [BLOCK_N]
            zero_point = ((byte >> (scale_at // half * 4).to(tl.uint8)) & 15).to(tl.int8) - 8
        pair = index * (BLOCK_K // 2) + tl.arange(0, BLOCK_K // 2)  # [BLOCK_K/2] bytes of the group
        data = tl.load(
            codes_ptr + row[:, None] + (group * group_bytes + pair)[None, :],
            mask=(n[:, None] < N) & (pair[None, :] < group_bytes),
            other=0,
        )  # [BLOCK_N, BLOCK_K/2]
        low, high = unpack_pairs(data, dtype, FAST)
        if HAS_ZERO_POINT:
            low = low - zero_point.to(dtype)[:, None]
            high = high - zero_point.to(dtype)[:, None]
        even, odd = tl.split(tl.reshape(x, (BLOCK_M, BLOCK_K // 2, 2)))  # [BLOCK_M, BLOCK_K/2] each
        if ONE_GROUP:
            sums = tl.dot(low, tl.trans(even), sums, input_precision="ieee")
            sums = tl.dot(high, tl.trans(odd), sums, input_precision="ieee")
        else:
            part = tl.dot(low, tl.trans(even), input_precision="ieee")
            part = tl.dot(high, tl.trans(odd), part, input_precision="ieee")
        if not ONE_GROUP:
            scale = tl.load(scale_ptr + group * scale_columns + scale_at, mask=n < N, other=0.0)  # [BLOCK_N]
            sums += part * scale.to(tl.float32)[:, None]
    if ONE_GROUP:
        scale = tl.load(scale_ptr + scale_at, mask=n < N, other=0.0)  # [BLOCK_N]
        sums = sums * scale.to(tl.float32)[:, None]
    at = (split * M + token[None, :]) * N + n[:, None]  # [BLOCK_N, BLOCK_M]
    tl.store(out_ptr + at, sums.to(out_ptr.dtype.element_ty), mask=(n[:, None] < N) & (m[None, :] < M))


def w4a16(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """x · ((codes − zero_point) · scale)ᵀ, summed in float32.

    x           float16, bfloat16 or float32 [M, K], contiguous, on a CUDA device
    codes       uint8 [N, ceil(K/2)], two codes of 2 to 4 bits in a byte, as quantlib.numerics.packing.pack puts them there
    scale       float [groups, N or 1], groups of K / groups neighbouring columns
    zero_point  uint8 [groups, ceil(N/2) or 1] nibbles as PackedWeight keeps them, or None
    dtype       of the result [M, N]: by default that of x, or float32 for the sums before they are rounded

    The first product of a kind (N, K, groups, dtype, rows up to the next power of two) times CONFIGS on it.

    Raises TypeError for another dtype, ValueError for shapes or devices that do not fit each other and for several
    groups of an odd size, which would begin inside a byte.

    >>> w4a16(x, packed.data, packed.scale, packed.zero_point)  # of Int4Linear(...).packed in layout "rows"
    """
    check_x(x, DTYPES)
    if codes.dtype != torch.uint8 or codes.ndim != 2:
        raise TypeError(f"codes must be uint8 [N, K/2], got {codes.dtype} {list(codes.shape)}: pack with layout='rows'")
    rows, columns = codes.shape[0], x.shape[1]
    if codes.shape[1] != (columns + 1) // 2:
        raise ValueError(f"x {list(x.shape)} must have two columns for each byte of a row of codes {list(codes.shape)}")
    if not scale.is_floating_point():
        raise TypeError(f"scale must be a floating-point tensor, got {scale.dtype}")
    if scale.ndim != 2 or scale.shape[1] not in (1, rows) or not scale.shape[0] or columns % scale.shape[0]:
        raise ValueError(
            f"scale must be [groups, {rows} or 1] with groups that divide {columns} columns, got {list(scale.shape)}"
        )
    if scale.shape[0] > 1 and columns // scale.shape[0] % 2:
        raise ValueError(
            f"groups of {columns // scale.shape[0]} columns begin inside a byte: use groups of an even size"
        )
    if zero_point is not None:
        expected = (scale.shape[0], (scale.shape[1] + 1) // 2)
        if zero_point.dtype != torch.uint8 or zero_point.shape != expected:
            raise ValueError(
                f"zero_point must be uint8 {list(expected)} nibbles, as PackedWeight keeps them, "
                f"got {zero_point.dtype} {list(zero_point.shape)}"
            )
    check_operands(w4a16_kernel, x=x, codes=codes, scale=scale, zero_point=zero_point)
    if not x.shape[0] or not rows or not columns:
        return x.new_zeros((x.shape[0], rows), dtype=dtype)
    if interpreting(w4a16_kernel):
        return launch(INTERPRETED, x, codes, scale, zero_point, dtype)
    group_size = columns // scale.shape[0]
    key = ("w4a16", device_key(x), x.dtype, rows_bucket(x.shape[0]), rows, columns, group_size, zero_point is not None)
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
    """One run of the kernel with these block sizes, and the sum of its parts; arguments as w4a16 has checked them."""
    (m, k), n, groups = x.shape, codes.shape[0], scale.shape[0]
    blocks = groups * triton.cdiv(k // groups, config.block_k)
    blocks_per_split = triton.cdiv(blocks, config.split)
    split = triton.cdiv(blocks, blocks_per_split)
    dtype = dtype or x.dtype
    parts = torch.empty((split, m, n), dtype=dtype if split == 1 else torch.float32, device=x.device)
    w4a16_kernel[triton.cdiv(n, config.block_n) * triton.cdiv(m, config.block_m), split](
        x,
        codes,
        scale,
        codes if zero_point is None else zero_point,
        parts,
        m,
        n,
        k,
        k // groups,
        groups,
        codes.shape[1],
        (k // groups + 1) // 2,
        scale.shape[1],
        blocks_per_split,
        ONE_GROUP=groups == 1,
        HAS_ZERO_POINT=zero_point is not None,
        FAST=x.dtype != torch.float32 and not interpreting(w4a16_kernel),
        BLOCK_N=config.block_n,
        BLOCK_M=config.block_m,
        BLOCK_K=config.block_k,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return parts[0] if split == 1 else parts.sum(0).to(dtype)
