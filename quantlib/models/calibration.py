"""Statistics of what flows into each linear layer of a model. Start from :func:`collect_stats`.

Text flows through a twin of the model, whose tensors are the model's and whose hooks are its own: an interruption at
any moment leaves the caller's model as it was. Inputs are summed up as they pass and not kept. Layers that read the
same tensor (q, k and v; gate and up) share one sum.

quantlib.models.windows cuts the text, quantlib.models.sequence collects block by block behind layers that are quantized
already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantlib.methods.statistics import InputStats
from quantlib.models.attention import ValueLayer, eager, value_layers
from quantlib.models.linears import HEAD, linear_layers, twin_of
from quantlib.models.sums import SharedSums
from quantlib.models.windows import checked_windows, not_padding
from quantlib.models.windows import token_windows as token_windows
from quantlib.numerics.floats import is_float
from quantlib.progress import progress

Hear = Callable[[str, Tensor, "Tensor | None"], None]  # a layer's name, its input [tokens, in], attention [heads, …]


def collect_stats(
    model: nn.Module,
    windows: Tensor | Sequence[Tensor],
    *,
    skip: Sequence[str] = HEAD,
    through_attention: bool = False,
) -> dict[str, InputStats]:
    """The InputStats of every linear layer, by name, in one pass over the windows.

    model    any module that takes int64 [1, tokens], usually of transformers. Not changed, not even when interrupted
    windows  int64 [count, length], as token_windows returns, or rows of any lengths
    skip     layers to leave out, as in quantize_model
    through_attention  v_proj gets the Gram matrix of what attention makes of its inputs, one for each kv head: gram is
             [blocks of rows, in, in] there (quantlib.models.attention). absmean and absmax stay those of the inputs

    Sums are float32 (float64 for a float64 model). Padding, if the windows hold any, is left out of them. Needs memory
    for one window's activations and the matrices it returns, whatever the number of windows; layers that read the same
    tensor share them.

    Raises ValueError for windows that are none, a layer that no token reached (naming it), inputs that are NaN or
    infinite (naming the layer), and through_attention for a model whose values are not found.
    """
    rows = checked_windows(model, windows)
    twin = quiet_twin(model)
    layers = {layer.name: layer.module for layer in linear_layers(twin, tuple(skip))[0]}
    if not layers:
        raise ValueError("model has no linear layer to listen to: nn.Linear and Conv1D are, and skip may name them all")
    values = known_values(twin, layers) if through_attention else {}
    sums = SharedSums(values)
    device = device_of(twin)
    with torch.no_grad(), listening(layers, sums.add, values), eager_if(through_attention, twin):
        for row in progress(rows, "reading", "window"):
            sums.start(not_padding(model, row))
            twin(row.unsqueeze(0).to(device))
    return {name: sums.stats(name) for name in layers}


def known_values(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, ValueLayer]:
    """value_layers among these layers; a ValueError if there are none."""
    values = {name: value for name, value in value_layers(model).items() if name in layers}
    if not values:
        raise ValueError(
            "through_attention=True, but no value projection is known in this model (v_proj, qkv_proj, c_attn beside a "
            "head_dim), or skip names them all: leave it False"
        )
    return values


@contextmanager
def listening(layers: dict[str, nn.Module], hear: Hear, values: dict[str, ValueLayer]) -> Iterator[None]:
    """Inside, hear is called with every input of these layers: at once, for values when their attention is done."""
    handles, waiting = [], {}

    def before(name: str):
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            x = args[0] if args else kwargs["input"]
            x = x.detach().flatten(0, -2)  # [tokens, in]
            if name in values:
                waiting[name] = x
            else:
                hear(name, x, None)

        return hook

    def after(name: str):
        def hook(module: nn.Module, args: tuple, output: object) -> None:
            weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
            if not isinstance(weights, Tensor) or weights.ndim != 4:
                raise ValueError(f"{name}: its attention returned no weights [batch, heads, queries, keys]")
            hear(name, waiting.pop(name), weights[0].detach())

        return hook

    try:
        for name, module in layers.items():
            handles.append(module.register_forward_pre_hook(before(name), with_kwargs=True))
            if name in values:
                handles.append(values[name].attention.register_forward_hook(after(name)))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def eager_if(wanted: bool, model: nn.Module) -> Iterator[None]:
    """`eager`, where attention weights are wanted."""
    if not wanted:
        yield
        return
    with eager(model):
        yield


def quiet_twin(model: nn.Module) -> nn.Module:
    """A twin in eval mode that keeps no cache of keys and values. TypeError for weights that nothing multiplies by."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, p in model.named_parameters():
        if p.is_floating_point() and not is_float(p.dtype):
            raise TypeError(f"{name} is {p.dtype}, in which the model cannot read text: convert it with model.float()")
    twin = twin_of(model).eval()
    if hasattr(twin, "config"):
        twin.config.use_cache = False
    return twin


def device_of(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))
