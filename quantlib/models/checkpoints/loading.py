"""A quantized model from a folder. Start from :func:`load_quantized`.

Everything is checked before anything is built: the names, shapes and dtypes of all tensors against the config, then
their values, then, of files that this package wrote, that they are what was written.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.formats import format_of
from quantlib.models.checkpoints.headers import Entry, Headers, check_sum, opened, read_headers, read_json
from quantlib.models.checkpoints.layout import Format
from quantlib.models.checkpoints.skeleton import floats_of, linear_shapes, skeleton
from quantlib.models.linears import is_conv1d
from quantlib.progress import progress

SKIPPED = ("ignore", "modules_to_not_convert", "llm_int8_skip_modules")


@dataclass(frozen=True, eq=False)
class Checked:
    """A folder whose headers fit its config.

    model    without weights
    layers   [out, in] of the quantized ones
    floats   name of a parameter or buffer -> its name in the file
    """

    model: nn.Module
    format: Format
    headers: Headers
    layers: dict[str, tuple[int, int]]
    floats: dict[str, str]


def load_quantized(folder: str | os.PathLike[str], device: str | torch.device = "cpu") -> nn.Module:
    """The causal language model in a folder that save_quantized or another tool wrote.

    Formats: GPTQ, AWQ (GEMM), compressed-tensors (packed integers), bitsandbytes INT8.

    Its layers are those that quantize_model makes, packed for this machine; it is in eval mode, and no parameter
    requires a gradient. Parameters that were not quantized keep the dtype they are stored in. The tokenizer is beside:
    AutoTokenizer.from_pretrained(folder).

    Nothing is unpickled, no code of the folder is run, no path out of it is followed. Raises ValueError, in a sentence,
    for a folder whose tensors are not what its config says, before anything is built.
    """
    checked = check_folder(Path(folder).expanduser())
    model = checked.model
    with progress([*checked.layers.items()], "reading", "layer") as layers:
        for name, shape in layers:
            linear = model.get_submodule(name)
            biases = [checked.floats[key] for key in [f"{name}.bias"] if key in checked.floats]
            bias = _read(checked.headers.entries, biases)
            q = _decoded(checked, name, shape)
            new = checked.format.layer(q, bias[biases[0]] if biases else None)
            new.float_dtype, new.transposed = linear.weight.dtype, is_conv1d(linear)
            model.set_submodule(name, new.eval())
    remaining = {k: v for k, v in checked.floats.items() if k.rpartition(".")[0] not in checked.layers}
    values = _read(checked.headers.entries, remaining.values())
    model.load_state_dict({key: values[name] for key, name in remaining.items()}, strict=False, assign=True)
    model.tie_weights()
    return model.requires_grad_(False).to(device)


def check_folder(folder: Path) -> Checked:
    """Everything that load_quantized checks. Raises ValueError for the first thing that is not as it must be."""
    if not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is not a folder")
    config = Fields(read_json(folder / "config.json"), "config.json").values
    headers = read_headers(folder)
    chosen = format_of(config, headers.note)
    model = skeleton(config, len(headers.entries))
    checked = _matched(model, chosen, headers)
    _check_skipped(Fields(config["quantization_config"], "quantization_config"), checked)
    for file, digest in headers.sums.items():
        check_sum(file, digest)
    for name, shape in checked.layers.items():
        _decoded(checked, name, shape)
    return checked


def _check_skipped(config: Fields, checked: Checked) -> None:
    for key in SKIPPED:
        for name in config.names(key):
            if name in checked.layers:
                raise ValueError(f"quantization_config: {key} names {name}, and the file holds it quantized")


def _matched(model: nn.Module, chosen: Format, headers: Headers) -> Checked:
    """Names, shapes and dtypes of the file against the model's."""
    entries, linear = headers.entries, linear_shapes(model)
    layers = {name: shape for name, shape in linear.items() if f"{name}.{chosen.marker}" in entries}
    if not layers:
        raise ValueError(f"the file holds no quantized layer: no tensor is called …{chosen.marker}")
    used: set[str] = set()
    for name, (out, columns) in layers.items():
        try:
            parts = chosen.parts(out, columns)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        for part, wanted in parts.items():
            key = f"{name}.{part}"
            if key in entries:
                _check(key, entries[key], wanted.shape, wanted.dtypes)
                used.add(key)
            elif not wanted.optional:
                raise ValueError(f"the file lacks {key}, which a quantized {name} has")
    floats: dict[str, str] = {}
    for wanted, names in _aliases(model, layers):
        there = [name for name in names if name in entries]
        if not there:
            raise ValueError(f"the file lacks {names[0]}, which the model has")
        for name in there:
            kinds = (torch.float16, torch.bfloat16, torch.float32) if wanted.is_floating_point() else (wanted.dtype,)
            _check(name, entries[name], tuple(wanted.shape), kinds)
            used.add(name)
        _check_equal(there, entries)
        floats[names[0]] = there[0]
    if unexpected := sorted(entries.keys() - used):
        raise ValueError(f"the file holds {unexpected[0]}, which the model has no place for ({len(unexpected)} such)")
    return Checked(model, chosen, headers, layers, floats)


def _aliases(model: nn.Module, layers: Mapping[str, object]) -> Iterator[tuple[Tensor, list[str]]]:
    """Each parameter and persistent buffer that is no quantized layer's weight, with its names: tied ones together."""
    found: dict[int, tuple[Tensor, list[str]]] = {}
    for name, tensor in floats_of(model, layers):
        found.setdefault(id(tensor), (tensor, []))[1].append(name)
    yield from found.values()


def _check(name: str, entry: Entry, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    if entry.shape != shape:
        raise ValueError(f"{name} is {list(entry.shape)} in the file and must be {list(shape)}")
    if entry.dtype not in dtypes:
        said = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name} is {str(entry.dtype).removeprefix('torch.')} in the file and must be {said}")


def _check_equal(names: list[str], entries: Mapping[str, Entry]) -> None:
    """Tied parameters that a file holds twice must be the same."""
    values = list(_read(entries, names).values()) if len(names) > 1 else []
    for value, name in zip(values[1:], names[1:], strict=False):
        if not value.equal(values[0]):
            raise ValueError(f"{names[0]} and {name} are one parameter of the model, and differ in the file")


def _decoded(checked: Checked, name: str, shape: tuple[int, int]):
    entries = checked.headers.entries
    keys = {part: f"{name}.{part}" for part in checked.format.parts(*shape) if f"{name}.{part}" in entries}
    values = _read(entries, keys.values())
    try:
        return checked.format.decode({part: values[key] for part, key in keys.items()}, *shape)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _read(entries: Mapping[str, Entry], names) -> dict[str, Tensor]:
    """Tensors of these names, with memory of their own."""
    by_file: dict[Path, list[str]] = defaultdict(list)
    for name in names:
        by_file[entries[name].file].append(name)
    values = {}
    for file, inside in by_file.items():
        with opened(file) as tensors:
            values |= {name: tensors.get_tensor(name).clone() for name in inside}
    return values
