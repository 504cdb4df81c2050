"""Block by block, each on what the quantized blocks before it make of the text. Start from :func:`in_sequence`.

GPTQ's procedure (Frantar et al. 2023, arXiv:2210.17323, section 4): the inputs of one block are held for all windows;
its layers are quantized; the windows pass the quantized block and become the inputs of the next. Inside a block, layers
are visited in stages, those that read the same tensor together (q, k, v; o; gate, up; down), each stage behind the
quantized ones before it ("true sequential" in the authors' code).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from quantlib.methods.statistics import InputStats
from quantlib.models.calibration import device_of, eager_if, known_values, listening, quiet_twin
from quantlib.models.linears import set_weight
from quantlib.models.sums import Sums, same_tensor
from quantlib.models.windows import checked_windows, not_padding


class _Reached(Exception):
    """The last layer that was listened for has been reached: the rest of the forward pass is not needed."""


class _Heard(NamedTuple):
    name: str
    x: Tensor  # [tokens, in]
    attention: Tensor | None  # [heads, queries, tokens]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """What is known when a layer is to be quantized.

    name   of the layer
    stats  of its inputs, behind the layers that are quantized already
    cross  Σ x_floatᵀ x, [in, in] or [blocks, in, in] like stats.gram: x_float is what the layer would read if nothing
           were quantized. None unless asked for
    """

    name: str
    stats: InputStats
    cross: Tensor | None


def in_sequence(
    model: nn.Module,
    names: Sequence[str],
    windows: Tensor | Sequence[Tensor],
    replace: Callable[[Calibrated], Tensor | None],
    *,
    through_attention: bool = False,
    cross: bool = False,
) -> None:
    """Call replace for each of these linear layers, in the order in which text reaches them.

    replace            is given a Calibrated and returns the weight [out, in] that later layers shall be calibrated
                       behind; None leaves the layer as it was
    through_attention  as in collect_stats
    cross              collect Calibrated.cross as well: the text also passes the model as it was

    Works on twins; the caller's model is never changed. Memory: the windows' hidden states, as they enter a block and
    as they leave its finished parts (all twice with cross); one block's matrices and weights; one window's activations.
    A model whose blocks do not follow each other on nothing but hidden states is run as a whole for each stage: slower,
    and the same result.

    Raises what collect_stats raises.
    """
    rows = checked_windows(model, windows)
    with torch.no_grad():
        walks = [_Walk(model, rows, names, through_attention) for _ in range(2 if cross else 1)]
        for (scope, layers), *_ in zip(*(walk.scopes() for walk in walks), strict=True):
            open_layers = list(layers)  # may change yet
            stages = walks[0].stages(scope, layers)
            for walk in walks:
                walk.enter(scope, layers)
            for stage in stages:
                for known in _read(walks, scope, stage, open_layers):
                    new = replace(known)
                    if new is not None:
                        set_weight(walks[0].layers[known.name], new)
                open_layers = [name for name in open_layers if name not in stage]
            for walk in walks:
                walk.pass_on(scope)


def _read(walks: list[_Walk], scope: str | None, stage: list[str], open_layers: list[str]) -> list[Calibrated]:
    """What is known of the layers of a stage, after all windows; walks[1], if there, is the model as it was."""
    walk, original = walks[0], walks[1] if len(walks) > 1 else None
    values = {name: walk.values[name] for name in stage if name in walk.values}
    plain = [name for name in stage if name not in values]
    heads = [*plain[:1], *values]  # the plain layers of a stage read the same tensor: one sum serves them all
    sums = {name: Sums(values.get(name)) for name in heads}
    calls = sum(walk.times[name] for name in heads)
    walk.keep_but(open_layers)
    if original:
        original.keep_but(heads)
    for window, text in enumerate(walk.text):
        heard = walk.hear(scope, heads, window, calls)
        pairs = zip(heard, original.hear(scope, heads, window, calls) if original else [None] * len(heard), strict=True)
        for (name, x, attention), other in pairs:
            sums[name].add(x, attention, text, None if other is None else (other.x, other.attention))
    known = []
    for name in stage:
        of = sums[name if name in values else plain[0]]
        known.append(Calibrated(name, of.stats(name), of.cross.matrix() if original else None))
    return known


class _Part:
    """A part of a block that answers a window it has seen from memory, while nothing in it changes or is listened to."""

    def __init__(self, module: nn.Module, layers: list[str]):
        self.module, self.layers, self.forward = module, layers, module.forward
        self.kept: dict[int, object] = {}
        self.window, self.keeps = 0, False
        module.forward = self

    def __call__(self, *args: object, **kwargs: object) -> object:
        if not self.keeps:
            return self.forward(*args, **kwargs)
        if self.window not in self.kept:
            self.kept[self.window] = self.forward(*args, **kwargs)
        return _copied(self.kept[self.window])  # a block may add to it in place

    def close(self) -> None:
        del self.module.forward


class _Walk:
    """A twin of the model, and where the windows have come to in it."""

    def __init__(self, model: nn.Module, rows: list[Tensor], names: Sequence[str], through_attention: bool):
        self.twin, self.rows = quiet_twin(model), rows
        self.text = [not_padding(model, row) for row in rows]
        self.device = device_of(self.twin)
        self.layers = {name: self.twin.get_submodule(name) for name in names}
        self.values = known_values(self.twin, self.layers) if through_attention else {}
        self.weights = {name: layer.weight for name, layer in self.layers.items()}  # as they were
        self.blocks = blocks_of(self.twin)
        self.calls = {how: self._calls(how) for how in (("", "eager") if self.values else ("",)) if self.blocks}
        if None in self.calls.values():
            self.blocks = []
        self.hidden: list[Tensor] = []  # [1, tokens, hidden] of each window, in front of the next block
        self.times: dict[str, int] = {}  # how often each layer of the scope is called
        self.behind: list[str] = []  # layers behind the blocks
        self.parts: list[_Part] = []  # of the block that is being calibrated

    def scopes(self) -> Iterator[tuple[str | None, list[str]]]:
        """What is run for which layers: a block, or None, the whole model, for layers that are in no block."""
        inside = [(block, [name for name in self.layers if name.startswith(f"{block}.")]) for block in self.blocks]
        outside = [name for name in self.layers if not any(name in layers for _, layers in inside)]
        in_front = self._reached_before(outside, self.blocks[0]) if self.blocks else outside
        self.behind = [name for name in outside if name not in in_front]
        if in_front:
            yield None, in_front
        if inside:
            self.hidden = [self._entering(window) for window in range(len(self.rows))]
        yield from inside
        if self.behind:
            yield None, self.behind

    def run(self, scope: str | None, window: int, how: str = "") -> Tensor | None:
        """One window through a scope; how: "eager" where attention weights are wanted."""
        with eager_if(how == "eager", self.twin):
            if scope is None:
                self.twin(self.rows[window].unsqueeze(0).to(self.device))
                return None
            for part in self.parts:
                part.window = window
            args, kwargs = self.calls[how][len(self.rows[window])][scope]
            out = self.twin.get_submodule(scope)(self.hidden[window], *args, **kwargs)
        return out[0] if isinstance(out, tuple) else out

    def enter(self, scope: str | None, layers: list[str]) -> None:
        """A block is to be calibrated: its parts are the modules in it that hold layers."""
        if scope is None:
            return
        for name, module in self.twin.get_submodule(scope).named_children():
            inside = [layer for layer in layers if layer.startswith(f"{scope}.{name}.")]
            if inside:
                self.parts.append(_Part(module, inside))

    def keep_but(self, names: list[str]) -> None:
        """From here on, parts without these layers are run once a window."""
        for part in self.parts:
            part.keeps = not set(part.layers) & set(names)

    def stages(self, scope: str | None, layers: list[str]) -> list[list[str]]:
        """The layers in the order of their calls, those that read the same tensor together; never called ones last."""
        heard: list[tuple[str, Tensor]] = []
        with listening({n: self.layers[n] for n in layers}, lambda name, x, _: heard.append((name, x)), {}):
            self.run(scope, 0)
        self.times = {name: sum(name == other for other, _ in heard) for name in layers}
        stages: list[list[str]] = []
        for i, (name, x) in enumerate(heard):
            if any(name in stage for stage in stages):
                continue
            if stages and same_tensor(x, heard[i - 1][1]):
                stages[-1].append(name)
            else:
                stages.append([name])
        return stages + [[name] for name in layers if not self.times[name]]

    def hear(self, scope: str | None, names: list[str], window: int, calls: int) -> list[_Heard]:
        """What these layers read of a window, in so many calls; what comes after the last of them is not computed."""
        heard: list[_Heard] = []

        def hear(name: str, x: Tensor, attention: Tensor | None) -> None:
            heard.append(_Heard(name, x, attention))
            if len(heard) == calls:
                raise _Reached

        values = {name: value for name, value in self.values.items() if name in names}
        with listening({name: self.layers[name] for name in names}, hear, values):
            try:
                self.run(scope, window, "eager" if values else "")
            except _Reached:
                pass
        return heard

    def pass_on(self, scope: str | None) -> None:
        """The windows pass a block. Its new weights go then, unless layers behind the blocks need them."""
        if scope is None:
            return
        self.keep_but([])
        for window in range(len(self.rows)):
            self.hidden[window] = self.run(scope, window)
            for part in self.parts:
                part.kept.pop(window, None)
        for part in self.parts:
            part.close()
        self.parts = []
        if not self.behind:
            for name, weight in self.weights.items():
                if name.startswith(f"{scope}."):
                    self.layers[name].weight = weight

    def _until(self, window: int, stop: str) -> tuple[tuple, dict] | None:
        """The arguments of a module's first call, where the forward pass ends."""
        met: list[tuple[tuple, dict]] = []

        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            met.append((args, kwargs))
            raise _Reached

        handle = self.twin.get_submodule(stop).register_forward_pre_hook(hook, with_kwargs=True)
        try:
            self.run(None, window)
        except _Reached:
            pass
        finally:
            handle.remove()
        return met[0] if met else None

    def _entering(self, window: int) -> Tensor:
        return _split(*self._until(window, self.blocks[0]))[0]

    def _reached_before(self, names: list[str], stop: str) -> list[str]:
        heard: list[str] = []
        if names:
            with listening({n: self.layers[n] for n in names}, lambda name, *_: heard.append(name), {}):
                self._until(0, stop)
        return [name for name in names if name in heard]

    def _calls(self, how: str) -> dict[int, dict[str, tuple[tuple, dict]]] | None:
        """What each block is called with beside hidden states, masks and positions, by the length of a window. None if
        blocks cannot be run on that.
        """
        calls = {}
        for length in dict.fromkeys(map(len, self.rows)):
            alike = [window for window, row in enumerate(self.rows) if len(row) == length]
            first, *others = (self._trace(window, how) for window in alike[:2])
            if first is None or any(not _same(first, other) for other in others):
                return None
            calls[length] = first
        return calls

    def _trace(self, window: int, how: str) -> dict[str, tuple[tuple, dict]] | None:
        """The blocks' calls in one pass. None if a block is not called once, on what the one before it returned."""
        calls: dict[str, tuple[tuple, dict]] = {}
        flow: list[Tensor | None] = []

        def before(name: str):
            def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
                hidden, args, kwargs = _split(args, kwargs)
                flow.append(hidden if name not in calls else None)
                calls[name] = args, kwargs

            return hook

        def after(module: nn.Module, args: tuple, out: object) -> None:
            flow.append(out[0] if isinstance(out, tuple) else out)
            if len(flow) == 2 * len(self.blocks):
                raise _Reached

        handles = []
        try:
            for name in self.blocks:
                block = self.twin.get_submodule(name)
                handles.append(block.register_forward_pre_hook(before(name), with_kwargs=True))
                handles.append(block.register_forward_hook(after))
            self.run(None, window, how)
        except _Reached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        chained = all(isinstance(x, Tensor) for x in flow) and all(
            out is entered for out, entered in zip(flow[1:-1:2], flow[2::2], strict=True)
        )
        return calls if chained and list(calls) == self.blocks else None


def blocks_of(model: nn.Module) -> list[str]:
    """The names of a model's blocks: the elements of its largest nn.ModuleList of modules of one kind, if any."""
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len({type(element) for element in module}) == 1
    }
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in lists.items()}
    largest = max(sizes, key=sizes.get, default=None)
    return [] if largest is None else [f"{largest}.{i}" for i in range(len(lists[largest]))]


def _split(args: tuple, kwargs: dict) -> tuple[Tensor, tuple, dict]:
    """Hidden states, and the other arguments of a block's call."""
    if args:
        return args[0], args[1:], kwargs
    return kwargs.get("hidden_states"), (), {name: value for name, value in kwargs.items() if name != "hidden_states"}


def _copied(out: object) -> object:
    if isinstance(out, tuple):
        return tuple(_copied(each) for each in out)
    return out.clone() if isinstance(out, Tensor) else out


def _same(a: object, b: object) -> bool:
    """Whether two windows gave a block the same arguments; what is no tensor counts as the same."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return True
