"""LLM.int8() as bitsandbytes keeps it. Start from :class:`BitsandbytesFile`.

weight int8 [out, in]; SCB float32 [out], the largest magnitude of each row, so that w ≈ code · SCB / 127; weight_format
uint8 0 ("row"). llm_int8_threshold says from where on a column is an outlier; 0.0 there is our None: no column ever is.

Source: Dettmers et al. 2022 (arXiv:2208.07339); the layout as the bitsandbytes package writes it through transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.methods.llm_int8 import ROW_INT8
from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.layout import Note, Part, check_codes
from quantlib.numerics.quantize import QuantizedTensor

LARGEST = 127  # the code of a row's largest magnitude


@dataclass(frozen=True)
class BitsandbytesFile:
    """threshold: as MixedInt8Linear has it."""

    threshold: float | None

    grid = ROW_INT8
    marker = "SCB"

    @classmethod
    def of(cls, layers: Mapping[str, QuantizedLinear]) -> BitsandbytesFile:
        """Raises ValueError for what the format cannot hold."""
        thresholds = {}
        for name, layer in layers.items():
            if not isinstance(layer, MixedInt8Linear):
                raise ValueError(
                    f"{name} multiplies floats by its codes, and format='bitsandbytes' holds LLM.int8() layers: "
                    "quantize "
                    "with LLMInt8(threshold), or save with format='compressed-tensors'"
                )
            if layer.float_weight is not None:
                raise ValueError(f"{name} keeps a float weight (keep_float), and format='bitsandbytes' holds none")
            if layer.transposed:
                raise ValueError(f"{name} was a Conv1D, which format='bitsandbytes' does not hold: skip it")
            thresholds.setdefault(layer.threshold, name)
        if len(thresholds) > 1:
            raise ValueError(f"layers differ in their threshold ({thresholds}): format='bitsandbytes' holds one")
        (threshold,) = thresholds
        if threshold == 0.0:
            raise ValueError(
                "threshold=0.0 makes every column an outlier, and format='bitsandbytes' writes 0.0 for none: use "
                "None for none, or a small positive number"
            )
        return cls(threshold)

    @classmethod
    def read(cls, config: Fields, note: Note | None) -> BitsandbytesFile:
        """Of a quantization_config. Raises ValueError for what is not read here."""
        if config.truth("load_in_4bit", False) or not config.truth("load_in_8bit", False):
            raise ValueError("load_in_8bit must be true: of bitsandbytes' formats INT8 is read here, 4 bits are not")
        threshold = config.number("llm_int8_threshold", 6.0)
        return cls(threshold or None)

    def config(self, left: Sequence[str]) -> dict:
        return {
            "quant_method": "bitsandbytes",
            "load_in_8bit": True,
            "load_in_4bit": False,
            "llm_int8_threshold": 0.0 if self.threshold is None else self.threshold,
            "llm_int8_skip_modules": list(left) or None,
            "llm_int8_has_fp16_weight": False,
            "llm_int8_enable_fp32_cpu_offload": False,
        }

    def parts(self, out: int, columns: int) -> dict[str, Part]:
        return {
            "weight": Part((out, columns), (torch.int8,)),
            "SCB": Part((out,), (torch.float32,)),
            "weight_format": Part((), (torch.uint8,), optional=True),
        }

    def encode(self, q: QuantizedTensor) -> dict[str, Tensor]:
        return {
            "weight": q.codes.contiguous(),
            "SCB": absmax_of(q.scale[:, 0]),
            "weight_format": torch.tensor(0, dtype=torch.uint8),
        }

    def decode(self, parts: Mapping[str, Tensor], out: int, columns: int) -> QuantizedTensor:
        if int(parts.get("weight_format", torch.tensor(0))) != 0:
            raise ValueError(f"weight_format is {int(parts['weight_format'])}: only rows as they stand (0) are read")
        codes, absmax = parts["weight"], parts["SCB"]
        empty = (absmax == 0) & (codes == 0).all(1)  # a row of zeros has no scale of its own
        scale = torch.where(empty, 1.0, absmax / LARGEST)
        return check_codes(QuantizedTensor(codes, scale.unsqueeze(1), None, None, self.grid))

    def layer(self, q: QuantizedTensor, bias: Tensor | None) -> QuantizedLinear:
        return MixedInt8Linear(q, bias, self.threshold, None)


def absmax_of(scale: Tensor) -> Tensor:
    """The float32 number that divided by 127 is this scale, float32 [out], bit for bit.

    Scales were made by such a division, so there is one; it may be a neighbour of scale · 127. Raises ValueError for a
    scale without one.
    """
    if scale.dtype != torch.float32:
        raise ValueError(f"format='bitsandbytes' keeps scales in float32, got {scale.dtype}")
    near = scale * LARGEST
    found = near.clone()
    missing = near / LARGEST != scale
    for direction in (torch.inf, -torch.inf):
        candidate = torch.nextafter(near, torch.full_like(near, direction))
        found = torch.where(missing & (candidate / LARGEST == scale), candidate, found)
    if not bool((found / LARGEST == scale).all()):
        raise ValueError(
            "format='bitsandbytes' cannot hold a scale that is no float32 divided by 127: quantize with LLMInt8"
        )
    return found
