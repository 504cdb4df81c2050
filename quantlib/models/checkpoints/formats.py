"""The formats by name, both ways. Start from :func:`format_for` (writing) and :func:`format_of` (reading)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.checkpoints.awq import AWQFile
from quantlib.models.checkpoints.bitsandbytes import BitsandbytesFile
from quantlib.models.checkpoints.compressed_tensors import CompressedTensorsFile
from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.gptq import GPTQFile
from quantlib.models.checkpoints.layout import Format, Note

WRITERS: dict[str, Callable[[Mapping[str, QuantizedLinear]], Format]] = {
    "gptq": lambda layers: GPTQFile.of(layers, 1),
    "gptq_v2": lambda layers: GPTQFile.of(layers, 2),
    "awq": AWQFile.of,
    "compressed-tensors": CompressedTensorsFile.of,
    "bitsandbytes": BitsandbytesFile.of,
}
READERS: dict[str, Callable[[Fields, Note | None], Format]] = {
    "gptq": GPTQFile.read,
    "awq": AWQFile.read,
    "compressed-tensors": CompressedTensorsFile.read,
    "bitsandbytes": BitsandbytesFile.read,
}


def format_for(name: str, layers: Mapping[str, QuantizedLinear]) -> Format:
    """The format of this name for these layers, if it can hold every one. Raises ValueError, with the layer, if not."""
    if name not in WRITERS:
        raise ValueError(f"format must be one of {', '.join(map(repr, (*WRITERS, 'gguf')))}, got {name!r}")
    chosen = WRITERS[name](layers)
    for each, layer in layers.items():
        try:
            chosen.parts(layer.out_features, layer.in_features)
        except ValueError as error:
            raise ValueError(f"{each}: {error}") from error
    return chosen


def format_of(config: Mapping, note: Note | None) -> Format:
    """The format that a model's config.json names. Raises ValueError for one that is not read here."""
    if "quantization_config" not in config:
        raise ValueError("config.json names no quantization_config: it is a float model, which load_model opens")
    fields = Fields(config["quantization_config"], "quantization_config")
    method = fields.text("quant_method")
    if method not in READERS:
        raise ValueError(f"quant_method={method!r} is not read here; these are: {', '.join(READERS)}")
    try:
        return READERS[method](fields, note)
    except ValueError as error:
        raise ValueError(f"quantization_config: {error}") from error
