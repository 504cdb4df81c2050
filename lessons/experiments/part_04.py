"""What part 4 measures on whole models: GPTQ with the statistics it is given, and what each choice is worth."""

import torch
from torch import nn

from quantlib import GPTQ, RTN, Grid, load_text, perplexity, quantize_model, token_windows
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.linears import twin_of
from quantlib.records import experiment, load_record

MODEL = "SmolLM2-135M-Instruct"
METHODS = {  # the last words of a row -> what GPTQ is told
    "plain": {},
    "attention": {"through_attention": True},
    "attention search": {"through_attention": True, "search_scales": True},
    "attention residual": {"through_attention": True, "residual": 0.25},
    "attention refined": {"through_attention": True, "search_scales": True, "residual": 0.25},
}


ROWS = (
    "float",
    *(
        f"4 64 {kind} {how}"
        for kind in ("symmetric", "asymmetric")
        for how in ("rounded", "plain", "attention", "attention refined")
    ),
    *(f"4 64 symmetric attention {how}" for how in ("search", "residual")),
    *(f"3 64 symmetric {how}" for how in ("rounded", "plain", "attention", "attention refined")),
)


def grid(words):
    """The Grid of "4 64 symmetric"."""
    bits, group, kind = words.split()
    return Grid(int(bits), int(group) if group.isdigit() else group, symmetric=kind == "symmetric")


def method(row):
    """What "4 64 symmetric attention" names; None for "float"."""
    if row == "float":
        return None
    bits, group, kind, how = row.split(maxsplit=3)
    on = grid(f"{bits} {group} {kind}")
    return RTN(on) if how == "rounded" else GPTQ(on, **METHODS[how])


def texts():
    """WikiText-2: what is calibrated on, what choices are made on, and what is only measured."""
    validation = load_text("wikitext-2", "validation")
    end = len(validation) * 9 // 10
    return validation[:end], validation[end:], load_text("wikitext-2", "test")


def dequantized(model):
    """The model with float layers in place of its quantized ones, so that what it answers depends on no kernel."""
    layers = {}
    for layer in model.modules():
        if isinstance(layer, QuantizedLinear):
            linear = nn.Linear(layer.in_features, layer.out_features, False)
            linear.weight = nn.Parameter(layer.quantized().dequantize(next(model.parameters()).dtype), False)
            linear.bias = layer.bias
            layers[id(layer)] = linear
    return twin_of(model, layers)


def quantized(model, row, windows):
    """The model as a row names it, and the report on its layers; calibrated on windows."""
    how = method(row)
    if how is None:
        return model, ()
    new, report = quantize_model(model, how, windows if isinstance(how, GPTQ) else None)
    return new, report.layers


def losses(loaded, model, text, windows, window):
    """Perplexity and the loss of every token on the beginning of a text."""
    ids = torch.tensor(loaded.tokenizer(text).input_ids[: windows * window])
    p = perplexity(dequantized(model), ids, window, windows)
    return {"perplexity": p.value, "nll": p.nll}


@experiment(rows=ROWS, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def perplexity_of_gptq(loaded, rows, *, count=32, seed=0, windows=8, window=1024):
    """What each row of the table loses, on text to measure and on text to choose by; and the errors of its layers."""
    ours, chosen_by, test = texts()
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    for row in rows:
        model, layers = quantized(loaded.model, row, read)
        found = losses(loaded, model, test, windows, window)
        found["held out"] = losses(loaded, model, chosen_by, windows, window)
        for error in ("output_error", "rounding_error"):
            found[error] = torch.tensor([getattr(layer, error) or 0.0 for layer in layers])
        yield row, found


STORIES = ("float", *(
    f"{bits} {group} symmetric {how}"
    for bits, group in ((4, 32), (4, 96), (3, 32))
    for how in ("rounded", *METHODS)
))  # fmt: skip


@experiment(rows=STORIES, model="stories15M", miniature={"windows": 2, "window": 32, "count": 2})
def gptq_on_stories(loaded, rows, *, count=16, windows=16, window=256):
    """The same on the small model: calibrated on half of the stories that it told, measured on the others."""
    told = load_record("part_01.stories").values["tokens"] % loaded.model.config.vocab_size  # if it is small
    read, test = told[:count, :window].long(), told[16 : 16 + windows, :window].flatten().long()
    for row in rows:
        p = perplexity(dequantized(quantized(loaded.model, row, read)[0]), test, window, windows)
        yield row, {"perplexity": p.value, "nll": p.nll}
