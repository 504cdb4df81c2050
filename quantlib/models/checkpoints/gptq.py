"""GPTQ's files, versions 1 and 2. Start from :class:`GPTQFile`.

Everything is transposed: qweight int32 [in · bits / 32, out] packs along the inputs, qzeros int32 [groups, out · bits /
32] along the outputs, scales float16 [groups, out], g_idx int32 [in] is each input's group.

Version 1 ("gptq") stores zero − 1, version 2 ("gptq_v2") the zero. A symmetric grid has its zero in the middle: of four
bits, a word is 0x77777777 in version 1 and 0x88888888 in version 2. A file that is labelled as the other one loads
without a message and answers "!!!!". And a zero of 0 has no form in version 1: loaders add 1 to the whole word, and the
overflow spoils its neighbour. So version 1 is written for symmetric grids only.

Sources: Frantar et al. 2023 (arXiv:2210.17323); the layout is AutoGPTQ's, kept by GPTQModel, whose utils/model.py
converts between the versions.
"""

from __future__ import annotations

import re
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
    group_index,
    groups_of,
    in_order,
    offset_codes,
    signed_codes,
    to_minus_one,
    weight_only,
    weight_only_grid,
)
from quantlib.numerics.grid import Grid
from quantlib.numerics.packing import pack_words, per_word, unpack_words
from quantlib.numerics.quantize import QuantizedTensor

BITS = (2, 4, 8)  # 3 bits cross words, and differently in different tools
HEADS = ("lm_head", "embed_out", "output")


@dataclass(frozen=True)
class GPTQFile:
    """version: 1 or 2. act_order: g_idx may name any group (desc_act)."""

    grid: Grid
    version: int
    act_order: bool

    marker = "qweight"
    layer = staticmethod(weight_only)

    @classmethod
    def of(cls, layers: Mapping[str, QuantizedLinear], version: int) -> GPTQFile:
        """Raises ValueError for what the version cannot hold."""
        name = VERSIONS[version]
        grid = weight_only_grid(layers, name)
        check_bits(grid, BITS, name)
        if version == 1 and not grid.symmetric:
            raise ValueError(
                "format='gptq' is version 1, which has no form for a zero point of 0 (other tools would load it with "
                "a neighbour spoilt and no message): save an asymmetric grid with "
                "format='gptq_v2', or quantize symmetrically"
            )
        ordered = any(layer.packed.order is not None for layer in layers.values())
        return cls(grid, version, ordered)

    @classmethod
    def read(cls, config: Fields, note: Note | None) -> GPTQFile:
        """Of a quantization_config. Raises ValueError for what is not read here."""
        said = config.text("checkpoint_format", config.text("format", "gptq"))
        if said not in VERSIONS.values():
            raise ValueError(f"checkpoint_format must be 'gptq' or 'gptq_v2', got {said!r}")
        bits = config.whole("bits")
        if bits not in BITS:
            raise ValueError(f"bits must be 2, 4 or 8 in a GPTQ file that is read here, got {bits}")
        for pattern, settings in (config.values.get("dynamic") or {}).items():
            if settings:
                raise ValueError(f"dynamic gives {pattern!r} settings of its own: one grid for all layers is read here")
        symmetric = config.truth("sym", True)
        narrow = note is not None and symmetric and note.narrow_range
        group_size = from_minus_one(config.whole("group_size"))
        grid = Grid(bits, group_size, symmetric=symmetric, narrow_range=narrow)
        return cls(grid, 2 if said == "gptq_v2" else 1, config.truth("desc_act", False))

    def config(self, left: Sequence[str]) -> dict:
        patterns = [f"-:^{re.escape(name)}$" for name in left if name.rpartition(".")[2] not in HEADS]
        return {
            "quant_method": "gptq",
            "bits": self.grid.bits,
            "group_size": to_minus_one(self.grid.group_size),
            "sym": self.grid.symmetric,
            "desc_act": self.act_order,
            "checkpoint_format": VERSIONS[self.version],
            "format": VERSIONS[self.version],
            "pack_dtype": "int32",
            "lm_head": not any(name.rpartition(".")[2] in HEADS for name in left),
            **({"dynamic": dict.fromkeys(patterns, {})} if patterns else {}),
        }

    def parts(self, out: int, columns: int) -> dict[str, Part]:
        count, groups = per_word(self.grid.bits), groups_of(self.grid, columns)
        check_multiple("inputs", columns, count, VERSIONS[self.version])
        check_multiple("outputs", out, count, VERSIONS[self.version])
        return {
            "qweight": Part((columns // count, out), (torch.int32,)),
            "qzeros": Part((groups, out // count), (torch.int32,)),
            "scales": Part((groups, out), (torch.float16,)),
            "g_idx": Part((columns,), (torch.int32,), optional=True),
        }

    def encode(self, q: QuantizedTensor) -> dict[str, Tensor]:
        bits, scale = q.grid.bits, fp16_scale(q, VERSIONS[self.version]).t().contiguous()  # [groups, out]
        zero = torch.full(scale.shape, self._middle, dtype=torch.uint8, device=scale.device)
        if q.zero_point is not None:
            zero = (q.zero_point.t().to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
        g_idx = q.g_idx if q.g_idx is not None else in_order(self.grid, q.shape[1])
        return {
            "qweight": pack_words(offset_codes(q), bits).t().contiguous(),
            "qzeros": pack_words(zero, bits),
            "scales": scale,
            "g_idx": g_idx.contiguous(),
        }

    def decode(self, parts: Mapping[str, Tensor], out: int, columns: int) -> QuantizedTensor:
        bits = self.grid.bits
        zero = unpack_words(parts["qzeros"], bits, out)  # [groups, out]
        zero_point = None
        if self.grid.symmetric:
            self._check_middle(zero)
        else:
            if self.version == 1 and bool((zero == 2**bits - 1).any()):
                raise ValueError(
                    f"qzeros hold {2**bits - 1}, in version 1 a zero point of 0 or of {2**bits}: nobody can tell; "
                    "have the tool that wrote it write checkpoint_format='gptq_v2'"
                )
            zero_point = signed_codes((zero + (1 if self.version == 1 else 0)).t().contiguous(), bits)
        codes = signed_codes(unpack_words(parts["qweight"].t().contiguous(), bits, columns), bits)
        g_idx = self._group_index(parts.get("g_idx"), columns)
        return check_codes(QuantizedTensor(codes, parts["scales"].t().contiguous(), zero_point, g_idx, self.grid))

    @property
    def _middle(self) -> int:
        """What a symmetric grid's zero is stored as."""
        return 2 ** (self.grid.bits - 1) - (1 if self.version == 1 else 0)

    def _check_middle(self, zero: Tensor) -> None:
        if not zero.numel() or bool((zero == self._middle).all()):
            return
        other = {1: 2, 2: 1}[self.version]
        found = sorted(set(zero.flatten().tolist()))
        mine, others = (
            _word(self._middle, self.grid.bits),
            _word(GPTQFile(self.grid, other, False)._middle, self.grid.bits),
        )
        if len(found) == 1 and _word(found[0], self.grid.bits) == others:
            raise ValueError(
                f"qzeros are {others}, as checkpoint_format={VERSIONS[other]!r} stores a symmetric grid, and the "
                f"config says checkpoint_format={VERSIONS[self.version]!r}, which would be {mine}: one of the two is wrong"
            )
        raise ValueError(
            f"the config says sym=true and qzeros are not all {mine}: the file is damaged, or not symmetric"
        )

    def _group_index(self, g_idx: Tensor | None, columns: int) -> Tensor | None:
        if g_idx is None:
            if self.act_order:
                raise ValueError("the config says desc_act=true and the layer has no g_idx")
            return None
        g_idx = group_index(g_idx, self.grid, columns)
        if g_idx is not None and not self.act_order:
            raise ValueError("g_idx is out of order and the config says desc_act=false: kernels would not look at it")
        return g_idx


VERSIONS = {1: "gptq", 2: "gptq_v2"}


def _word(value: int, bits: int) -> str:
    return f"0x{sum(value << (bits * place) for place in range(32 // bits)):08x}"
