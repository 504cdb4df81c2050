"""What converting a model did, layer by layer. Returned by :func:`quantlib.models.convert.quantize_model`."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from dataclasses import dataclass

from quantlib.models.linears import Uncovered

BLOCK = r"(?<=\.)\d+(?=\.)"  # the number of a block in a name


@dataclass(frozen=True)
class LayerReport:
    """name, shape (out, in), bits_per_weight, error = ‖W − Ŵ‖/‖W‖, seconds, and the weight's bytes before and after.

    scale_loss      where scales are too small for their dtype: rounding's error as a multiple of that with float32
                    scales (quantlib.models.errors)
    Of a method that reads text also:
    tokens          how many reached the layer
    damping         what was used, as a share of the mean of H's diagonal; None of a method that uses none
    output_error    the share of the layer's squared output on that text that is lost (quantlib.methods.gptq)
    rounding_error  the same, if the weight were rounded to nearest, without scaling it before
    """

    name: str
    shape: tuple[int, int]
    bits_per_weight: float
    error: float
    seconds: float
    bytes_before: int
    bytes_after: int
    tokens: int | None = None
    damping: float | None = None
    output_error: float | None = None
    rounding_error: float | None = None
    scale_loss: float | None = None


@dataclass(frozen=True)
class Report:
    """What was converted, in the model's order, and what was left alone: (name, why).

    parameters  floating-point ones of the whole model, each counted once
    uncovered   large ones among them that no rule covers (quantlib.models.linears.uncovered)
    folded      where scales went (quantlib.models.folding): (layers, where)
    """

    layers: tuple[LayerReport, ...]
    left: tuple[tuple[str, str], ...]
    parameters: int
    uncovered: tuple[Uncovered, ...]
    folded: tuple[tuple[str, str], ...] = ()

    @property
    def bytes_before(self) -> int:
        return sum(layer.bytes_before for layer in self.layers)

    @property
    def bytes_after(self) -> int:
        return sum(layer.bytes_after for layer in self.layers)

    @property
    def share(self) -> float:
        """Of the model's parameters, how many were converted."""
        return min(1.0, sum(layer.shape[0] * layer.shape[1] for layer in self.layers) / max(1, self.parameters))

    @property
    def bits_per_weight(self) -> float:
        weights = [layer.shape[0] * layer.shape[1] for layer in self.layers]
        return sum(l.bits_per_weight * n for l, n in zip(self.layers, weights, strict=True)) / max(1, sum(weights))

    def __str__(self):
        head = (
            f"{len(self.layers)} linear layers: {self.bytes_before / 1e6:,.1f} MB to {self.bytes_after / 1e6:,.1f} MB, "
            f"{self.bits_per_weight:.2f} bits a weight, {sum(l.seconds for l in self.layers):.1f} s; "
            f"{100 * self.share:.1f} % of the model's parameters"
        )
        ranked = sorted(self.layers, key=lambda layer: -layer.error)
        worst = [f"  {layer.error:8.4f}  {layer.name} {list(layer.shape)}" for layer in ranked[:5]]
        words = [f"  left as it was: {name}, {why}" for name, why in self.left]
        words += [f"  left as it was: {each}, which no rule covers" for each in self.uncovered]
        said = [*self._scales(), *self._calibration(), *self._folding()]
        return "\n".join([head, *said, "largest relative errors of a weight:", *worst, *words])

    def _scales(self) -> list[str]:
        """Layers whose scales are too small for their dtype, as loud as a line can be."""
        small = [layer for layer in self.layers if layer.scale_loss]
        if not small:
            return []
        names = ", ".join(layer.name or "model" for layer in small[:4]) + (", …" if len(small) > 4 else "")
        worst = max(layer.scale_loss for layer in small)
        return [
            f"SCALES TOO SMALL for float16 in {len(small)} layers, error up to {worst:.3g} times that with float32 "
            f"scales (pass scale_dtype=torch.float32): {names}"
        ]

    def _calibration(self) -> list[str]:
        read = [layer for layer in self.layers if layer.tokens]
        if not read:
            return []
        tokens = sorted({layer.tokens for layer in read})
        gain = statistics.median(l.output_error / l.rounding_error for l in read if l.rounding_error) if read else 0.0
        dampings = [layer.damping for layer in read if layer.damping is not None]
        return [
            f"read {' to '.join(f'{n:,}' for n in dict.fromkeys((tokens[0], tokens[-1])))} tokens a layer; "
            + (f"damping up to {max(dampings):g}; " if dampings else "")
            + f"error of the outputs, median over layers: {gain:.2f} of rounding's"
        ]

    def _folding(self) -> list[str]:
        """Where scales went, layers in the same place of different blocks in one line."""
        places = Counter(tuple(re.sub(BLOCK, "*", words) for words in pair) for pair in self.folded)
        return [f"  scale of {readers} ({count}×): {where}" for (readers, where), count in places.items()]
