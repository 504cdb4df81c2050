"""Sums over a layer's inputs, a window at a time: what quantlib.models.calibration fills. Start from :class:`Sums`."""

from __future__ import annotations

import torch
from torch import Tensor

from quantlib.methods.statistics import InputStats
from quantlib.models.attention import ValueLayer, read_by_rows


class Products:
    """Σ leftᵀ right over samples [samples, in] each, one matrix for each part that read_by_rows yields."""

    def __init__(self, value: ValueLayer | None = None):
        self.value = value
        self.parts: list[Tensor] = []  # [in, in] each

    def add(self, part: int, left: Tensor, right: Tensor) -> None:
        if part == len(self.parts):
            self.parts.append(left.new_zeros((left.shape[1], right.shape[1])))
        self.parts[part].addmm_(left.t(), right)

    def matrix(self) -> Tensor:
        """[in, in]; of a layer that makes values [blocks of head_dim rows, in, in]."""
        if self.value is None:
            return self.parts[0]
        before = self.value.first // self.value.head_dim  # blocks that make no values share the first matrix
        return torch.stack(self.parts[:1] * before + self.parts[-self.value.heads :])


class Sums:
    """The InputStats of one layer in the making. value: of a layer that makes values.

    gram   Σ yᵀy over what its rows are multiplied by
    cross  Σ y_floatᵀy, where add is told what the layer of the float model reads; empty elsewhere
    """

    def __init__(self, value: ValueLayer | None = None):
        self.value, self.tokens = value, 0
        self.gram, self.cross = Products(value), Products(value)
        self.total = self.largest = None

    def add(
        self,
        x: Tensor,
        attention: Tensor | None = None,
        text: Tensor | None = None,
        original: tuple[Tensor, Tensor | None] | None = None,
    ) -> None:
        """x [tokens, in]; attention [heads, tokens, tokens] for a value layer; text: bool [tokens], or None for all.

        original: x and attention of the float model, for cross.
        """
        x = working(x)
        read = read_by_rows(x, attention, self.value, text)
        if original is None:
            for part, y in enumerate(read):
                self.gram.add(part, y, y)
        else:
            read_float = read_by_rows(working(original[0]), original[1], self.value, text)
            for part, (y_float, y) in enumerate(zip(read_float, read, strict=True)):
                self.gram.add(part, y, y)
                self.cross.add(part, y_float, y)
        magnitude = (x if text is None else x[text.to(x.device)]).abs()
        if self.total is None:
            self.total, self.largest = x.new_zeros(x.shape[1], dtype=torch.float64), x.new_zeros(x.shape[1])
        self.total += magnitude.sum(0)
        if len(magnitude):
            self.largest = torch.maximum(self.largest, magnitude.amax(0))
        self.tokens += len(magnitude)

    def stats(self, name: str) -> InputStats:
        """Raises ValueError, naming the layer, if no token was added or the inputs were not finite."""
        if not self.tokens:
            raise ValueError(
                f"{name}: no token reached this layer, so nothing is known of its inputs: "
                "calibrate on more text, or skip it"
            )
        gram = self.gram.matrix()
        if not bool(torch.isfinite(gram).all()):
            raise ValueError(
                f"{name}: its inputs hold NaN or infinite values: look for the layer before it that makes them"
            )
        return InputStats(gram, (self.total / self.tokens).to(gram.dtype), self.largest, self.tokens)


class SharedSums:
    """Sums of many layers; those that read the very same tensor share them."""

    def __init__(self, values: dict[str, ValueLayer]):
        self.values = values
        self.of: dict[str, Sums] = {}
        self.leader: dict[str, str] = {}
        self.ready: dict[str, InputStats] = {}
        self.start(None)

    def start(self, text: Tensor | None) -> None:
        """A new window begins, of which these tokens are text."""
        self.text, self.last, self.last_name = text, None, ""

    def add(self, name: str, x: Tensor, attention: Tensor | None) -> None:
        """What `listening` tells."""
        if name in self.values:
            self.of.setdefault(name, Sums(self.values[name])).add(x, attention, self.text)
            return
        same = self.last is not None and same_tensor(x, self.last)
        leader = self.leader.setdefault(name, self.last_name if same else name)
        if leader == name:
            self.of.setdefault(name, Sums()).add(x, None, self.text)
            self.last, self.last_name = x, name
        elif not same or leader != self.last_name:
            raise RuntimeError(f"{name} read the inputs of {leader} in one window and others in the next")

    def stats(self, name: str) -> InputStats:
        leader = self.leader.get(name, name)
        if leader not in self.ready:
            self.ready[leader] = self.of.get(leader, Sums()).stats(name)
        return self.ready[leader]


def working(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is: what sums are kept in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether these are one and the same values in memory, both still there."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype
