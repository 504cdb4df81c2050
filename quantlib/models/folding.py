"""Where a scale of the inputs can go: into what makes them. Start from :func:`find_folds`.

Layers that read x/s instead of x, with their columns multiplied by s, answer what they answered. The division costs
nothing if the norm or the linear layer that makes x does it: its gain, or its rows, are divided by s once. That is
possible where nothing but scaling lies in between (no GELU), where everything else that reads x takes part, and where s
is the same for inputs that come from one output (values that several query heads read).

No table of model families decides that. A place is tried: if what it makes is doubled in half of its outputs, and
halved again where the layers read it, not one bit of the model's answer may change.

Source: Lin et al. 2024 (arXiv:2306.00978), section 3.2; which places there are in Llama, OPT and others, the authors'
code (llm-awq, auto_scale.py).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlib.models.attention import value_layers
from quantlib.models.calibration import device_of, quiet_twin
from quantlib.models.linears import is_conv1d, set_weight
from quantlib.models.report import BLOCK
from quantlib.models.sums import same_tensor


@dataclass(frozen=True, eq=False)
class Fold:
    """Linear layers that read the same tensor, and what makes it.

    readers  their names
    source   the name of the norm or linear layer before them; None if there is none that a scale can go into
    channel  int64 [in]: which output of the source each input is; None without a source
    """

    readers: tuple[str, ...]
    source: str | None
    channel: Tensor | None


def find_folds(model: nn.Module, names: Sequence[str], window: Tensor) -> list[Fold]:
    """What these linear layers read, in the order in which text reaches them, each with a source if one holds the trial.

    model   not changed
    names   of linear layers; a source is a norm or one of these
    window  int64 [tokens], a short text for the trials
    """
    twin = quiet_twin(model)
    row = window.unsqueeze(0).to(device_of(twin))
    with torch.no_grad():
        traced = _traced(twin, names, row)
        expected = _answer(twin, row)
        sources: dict[tuple[str, ...], Fold] = {}
        for round_ in _rounds(twin, traced):
            untaken = [fold for fold in round_ if fold.readers not in sources]
            if untaken and _unchanged(twin, row, untaken, expected):
                sources |= {fold.readers: fold for fold in untaken}
                continue
            for fold in untaken:  # blocks of one model may differ
                if len(untaken) > 1 and _unchanged(twin, row, [fold], expected):
                    sources[fold.readers] = fold
    return [sources.get(readers, Fold(readers, None, None)) for readers, _ in traced]


def fold_in(model: nn.Module, fold: Fold, s: Tensor) -> Tensor:
    """Multiply the readers' columns by s [in] and divide the source by it, with new tensors in the modules of model.

    model must be a twin: its modules are changed, the old tensors are not. Returns s as it was applied: a norm's gain
    is kept in the norm's dtype, and what rounding it costs is made up for in the readers.
    """
    source = model.get_submodule(fold.source)
    if isinstance(source, nn.Linear) or is_conv1d(source):
        _divide_rows(source, fold.channel, s)
    else:
        s = _divide_gain(source, s)
    for name in fold.readers:
        layer = model.get_submodule(name)
        set_weight(layer, _weight(layer).float() * s.to(layer.weight.device, torch.float32))
    return s


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight.detach()
    return weight.t() if is_conv1d(layer) else weight  # [out, in]


def _divide_rows(layer: nn.Module, channel: Tensor, s: Tensor) -> None:
    rows = torch.ones(_weight(layer).shape[0], dtype=torch.float32, device=layer.weight.device)
    rows[channel.to(rows.device)] = s.to(rows)
    set_weight(layer, _weight(layer).float() / rows[:, None])
    if layer.bias is not None:
        layer.bias = _parameter(layer.bias.float() / rows, layer.bias)


def _divide_gain(norm: nn.Module, s: Tensor) -> Tensor:
    """The gain of a norm that multiplies by weight, or by 1 + weight (Gemma), divided by s; s as it came out."""
    offset, old = _gain_offset(norm), norm.weight.detach()
    gain = old.float() + offset
    new = (gain / s.to(gain) - offset).to(old.dtype)
    new = torch.where((gain == 0) | (new.float() + offset == 0), old, new)  # a channel that dies stays as it was
    s = torch.where(gain == 0, 1.0, gain / (new.float() + offset))
    norm.weight = _parameter(new, norm.weight)
    if getattr(norm, "bias", None) is not None:
        norm.bias = _parameter(norm.bias.float() / s, norm.bias)
    return s


def _gain_offset(norm: nn.Module) -> float:
    """0.0 if a norm without weight answers 0, 1.0 if it answers as with a gain of 1: Gemma's multiply by 1 + weight."""
    bare = copy.deepcopy(norm)
    for parameter in bare.parameters():
        parameter.data = torch.zeros_like(parameter)
    x = torch.linspace(-1, 1, norm.weight.numel(), dtype=norm.weight.dtype, device=norm.weight.device)
    with torch.no_grad():
        return float(bool(bare(x.unsqueeze(0)).any()))


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(values.to(like.dtype), requires_grad=False)


# --- what reads the same tensor, and what may have made it


def _traced(model: nn.Module, names: Sequence[str], row: Tensor) -> list[tuple[tuple[str, ...], str | None]]:
    """Layers that read one and the same tensor, in the order of their first call, and the norm that made it, if one did."""
    read: list[tuple[Tensor, list[str]]] = []
    made: list[tuple[Tensor, str]] = []

    def reads(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = (args[0] if args else kwargs["input"]).flatten(0, -2)  # [tokens, in]
            if any(name in readers for _, readers in read):
                return
            for other, readers in read:
                if same_tensor(x, other):
                    readers.append(name)
                    return
            read.append((x, [name]))

        return hook

    def makes(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            if isinstance(output, Tensor) and output.shape[-1] == module.weight.numel():
                made.append((output.flatten(0, -2), name))

        return hook

    handles = [model.get_submodule(n).register_forward_pre_hook(reads(n), with_kwargs=True) for n in names]
    handles += [m.register_forward_hook(makes(n)) for n, m in model.named_modules() if _like_norm(m)]
    try:
        model(row)
    finally:
        for handle in handles:
            handle.remove()
    return [
        (tuple(readers), next((n for y, n in reversed(made) if same_tensor(x, y)), None)) for x, readers in read
    ]


def _like_norm(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and not any(module.children())


def _rounds(model: nn.Module, traced: list[tuple[tuple[str, ...], str | None]]) -> Iterator[list[Fold]]:
    """Folds to try, those at once that stand in the same place of different blocks; the most likely ones first."""
    linear = {name for readers, _ in traced for name in readers}
    candidates: dict[tuple, list[Fold]] = {}
    for readers, norm in traced:
        for fold in _candidates(model, readers, norm, linear):
            place = [re.sub(BLOCK, "*", name) for name in (*fold.readers, fold.source)]
            candidates.setdefault((*place, int(fold.channel[0])), []).append(fold)
    yield from candidates.values()


def _candidates(model: nn.Module, readers: tuple[str, ...], norm: str | None, linear: set[str]) -> Iterator[Fold]:
    columns = _weight(model.get_submodule(readers[0])).shape[1]
    each = torch.arange(columns)
    if norm is not None:
        yield Fold(readers, norm, each)
        return
    parent = readers[0].rpartition(".")[0]
    values = {name: value for name, value in value_layers(model).items() if name.rpartition(".")[0] == parent}
    for name, value in values.items():
        made = value.heads * value.head_dim
        if name in linear and columns % made == 0:
            outputs = torch.arange(value.first, value.first + made)
            repeated = outputs.view(value.heads, 1, -1).expand(-1, columns // made, -1)  # [kv heads, queries, head_dim]
            yield Fold(readers, name, repeated.flatten())
    siblings = [name for name in linear if name.rpartition(".")[0] == parent and name not in (*readers, *values)]
    for name in sorted(siblings, reverse=True):  # up_proj before gate_proj
        outputs = _weight(model.get_submodule(name)).shape[0]
        for first in range(outputs - columns, -1, -columns) if outputs % columns == 0 else ():  # gate_up_proj: up is last
            yield Fold(readers, name, each + first)


# --- the trial


def _unchanged(model: nn.Module, row: Tensor, folds: Sequence[Fold], expected: Tensor) -> bool:
    """Whether the answer stays the same, bit for bit, if sources are doubled in places and their readers halve that."""
    with _doubled(model, folds):
        return torch.equal(_answer(model, row), expected)


@contextmanager
def _doubled(model: nn.Module, folds: Sequence[Fold]) -> Iterator[None]:
    handles = []
    generator = torch.Generator().manual_seed(0)

    def after(factor: Tensor):
        return lambda module, args, output: output * factor.to(output)

    def before(factor: Tensor):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            if args:
                return (args[0] / factor.to(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "input": kwargs["input"] / factor.to(kwargs["input"])}

        return hook

    try:
        for fold in folds:
            source = model.get_submodule(fold.source)
            outputs = source.weight.numel() if _like_norm(source) else _weight(source).shape[0]
            chosen = torch.randint(1, 3, (outputs,), generator=generator).float()  # 1 or 2
            factor = torch.ones(outputs)
            factor[fold.channel] = chosen[fold.channel]
            handles.append(source.register_forward_hook(after(factor)))
            for name in fold.readers:
                hook = before(factor[fold.channel])
                handles.append(model.get_submodule(name).register_forward_pre_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _answer(model: nn.Module, row: Tensor) -> Tensor:
    out = model(row)
    out = getattr(out, "logits", out)
    return out if isinstance(out, Tensor) else out[0]
