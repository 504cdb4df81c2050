"""AWQ's files, as its GEMM kernels read them. Start from :class:`AWQFile`.

qweight int32 [in, out / 8] packs eight outputs in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 (which lets a GPU unpack
two halves at once), qzeros int32 [groups, out / 8] the same way, scales float16 [groups, out]. Every group has a zero
point; a symmetric grid's is 8. GPTQModel writes scales in bfloat16 unless it is told otherwise: they are read, and not
written, because AWQ's kernels take float16.

Source: Lin et al. 2024 (arXiv:2306.00978), and its code; the layout as AutoAWQ writes it (version "gemm").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.layout import (
    Note,
    Part,
    check_bits,
    check_codes,
    check_multiple,
    fp16_scale,
    from_minus_one,
    groups_of,
    offset_codes,
    signed_codes,
    to_minus_one,
    weight_only,
    weight_only_grid,
)
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import AWQ_ORDER, pack_words, unpack_words
from quantlib.numerics.quantize import QuantizedTensor

MIDDLE = 8


@dataclass(frozen=True)
class AWQFile:
    """Four bits, always with zero points."""

    grid: Grid

    marker = "qweight"
    layer = staticmethod(weight_only)

    @classmethod
    def of(cls, layers: Mapping[str, QuantizedLinear]) -> AWQFile:
        """Raises ValueError for what the format cannot hold."""
        grid = weight_only_grid(layers, "awq")
        check_bits(grid, (4,), "awq")
        for name, layer in layers.items():
            if layer.packed.order is not None:
                raise ValueError(
                    f"{name} has a g_idx (act-order), and format='awq' has none: save it with format='gptq'"
                )
            if layer.transposed:
                raise ValueError(
                    f"{name} was a Conv1D, which readers of format='awq' do not convert: use format='gptq'"
                )
        return cls(grid)

    @classmethod
    def read(cls, config: Fields, note: Note | None) -> AWQFile:
        """Of a quantization_config. Raises ValueError for what is not read here."""
        config.must_be("version", "gemm", "GEMM", why="only the layout of AWQ's GEMM kernels is")
        if config.whole("bits") != 4:
            raise ValueError(f"bits must be 4 in an AWQ file, got {config.whole('bits')}")
        if not config.truth("zero_point", True):
            raise ValueError(
                "zero_point=false: readers differ in what that means; only files with zero points are read"
            )
        symmetric = note is not None and note.symmetric
        group_size = from_minus_one(config.whole("group_size"))
        return cls(Grid(4, group_size, symmetric=symmetric, narrow_range=symmetric and note.narrow_range))

    def config(self, left: Sequence[str]) -> dict:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": to_minus_one(self.grid.group_size),
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(left) or None,
        }

    def parts(self, out: int, columns: int) -> dict[str, Part]:
        groups = groups_of(self.grid, columns)
        check_multiple("outputs", out, 8, "awq")
        return {
            "qweight": Part((columns, out // 8), (torch.int32,)),
            "qzeros": Part((groups, out // 8), (torch.int32,)),
            "scales": Part((groups, out), (torch.float16, torch.bfloat16)),
        }

    def encode(self, q: QuantizedTensor) -> dict[str, Tensor]:
        scale = fp16_scale(q, "awq").t().contiguous()  # [groups, out]
        zero = torch.full(scale.shape, MIDDLE, dtype=torch.uint8, device=scale.device)
        if q.zero_point is not None:
            zero = (q.zero_point.t() + MIDDLE).to(torch.uint8)
        return {
            "qweight": pack_words(offset_codes(q).t(), 4, AWQ_ORDER),
            "qzeros": pack_words(zero, 4, AWQ_ORDER),
            "scales": scale,
        }

    def decode(self, parts: Mapping[str, Tensor], out: int, columns: int) -> QuantizedTensor:
        codes = signed_codes(unpack_words(parts["qweight"], 4, out, AWQ_ORDER).t().contiguous(), 4)
        zero = unpack_words(parts["qzeros"], 4, out, AWQ_ORDER).t().contiguous()  # [out, groups]
        if self.grid.symmetric and not bool((zero == MIDDLE).all()):
            raise ValueError("the file was written from a symmetric grid and its qzeros are not all 0x88888888")
        zero_point = None if self.grid.symmetric else signed_codes(zero, 4)
        return check_codes(QuantizedTensor(codes, parts["scales"].t().contiguous(), zero_point, None, self.grid))
