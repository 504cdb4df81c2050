"""What part 1 measures on whole models: too slow for a page, so it is recorded."""

import copy

import torch
from torch import nn

from quantlib import Grid, load_text, mse_clip, perplexity, quantize
from quantlib.records import experiment, load_record


def rounded(model, grid, clip=None):
    """A copy of the model, every linear layer but the head rounded."""
    model = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name != "lm_head":
            end = 1.0 if clip is None else clip(layer.weight, grid)
            q = quantize(layer.weight, grid, clip=end)
            w_hat = q.dequantize(layer.weight.dtype)
            layer.weight = nn.Parameter(w_hat, False)
    return model


def textbook(bits, per):
    """absmax / (2^(b-1) - 1), as in the page."""
    return Grid(bits, per, narrow_range=True)


ROWS = {"float": None}  # name of a row -> grid, and how it is clipped
ROWS |= {
    f"{bits} {per}": (textbook(bits, per), None)
    for bits in (8, 6, 4, 3)
    for per in ("tensor", "row", 64)
}
ROWS |= {
    "4 32": (textbook(4, 32), None),
    "4 32 full range": (Grid(4, 32), None),
    "4 32 asymmetric": (Grid(4, 32, symmetric=False), None),
    "4 64 asymmetric": (Grid(4, 64, symmetric=False), None),
    "4 row clipped": (textbook(4, "row"), mse_clip),
    "4 64 clipped": (textbook(4, 64), mse_clip),
}


@experiment(
    rows=ROWS,
    model="SmolLM2-135M-Instruct",
    miniature={"windows": 2, "window": 16},
)
def perplexity_of_grids(loaded, rows, *, windows=8, window=1024):
    """The losses on WikiText-2's test set, one row of the table each."""
    text = load_text("wikitext-2", "test")
    tokens = torch.tensor(loaded.tokenizer(text).input_ids)
    for row in rows:
        model = loaded.model
        if ROWS[row] is not None:
            model = rounded(loaded.model, *ROWS[row])
        p = perplexity(model, tokens, window, windows)
        yield row, {"perplexity": p.value, "nll": p.nll}


@experiment(
    rows=tuple(ROWS)[1:],
    model="SmolLM2-135M-Instruct",
    miniature={},
    tolerance=1e-9,
)
def signal_to_error_of_grids(loaded, rows):
    """Decibels of the rounded weights, the mean over linear layers."""
    trained = dict(loaded.model.named_parameters())
    for row in rows:
        ratios = []
        for name, w_hat in rounded(loaded.model, *ROWS[row]).named_parameters():
            error = w_hat - trained[name]
            if error.any():  # norms, embeddings and head stay as they are
                ratios.append(20 * torch.log10(trained[name].norm() / error.norm()))
        yield row, {"decibels": torch.stack(ratios).mean().item(), "layers": len(ratios)}


@experiment(model="stories15M")
def stories(loaded, *, count=32, length=256):
    """Stories that the model tells, drawn token by token: [count, length]."""
    ids = torch.full((count, 1), loaded.tokenizer.bos_token_id)
    cache = None
    while ids.shape[1] < length:
        with torch.inference_mode():
            out = loaded.model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        likely = out.logits[:, -1].softmax(-1)  # [count, vocabulary]
        drawn = torch.multinomial(likely, 1)  # [count, 1]
        ids = torch.cat([ids, drawn], dim=1)  # [count, so far + 1]
    return {"tokens": ids.int()}


STORY_ROWS = {
    "float": None,
    "8 row": (textbook(8, "row"), None),
    "4 tensor": (textbook(4, "tensor"), None),
    "4 row": (textbook(4, "row"), None),
    "4 96": (textbook(4, 96), None),
    "4 32": (textbook(4, 32), None),
    "4 row clipped": (textbook(4, "row"), mse_clip),
    "4 96 clipped": (textbook(4, 96), mse_clip),
}


@experiment(
    rows=STORY_ROWS,
    model="stories15M",
    miniature={"windows": 2, "window": 16},
)
def perplexity_on_stories(loaded, rows, *, windows=32, window=256):
    """The losses of the small model on its own stories, rounded or not."""
    told = load_record("part_01.stories").values["tokens"].flatten()
    told = told % loaded.model.config.vocab_size  # a miniature knows fewer
    for row in rows:
        model = loaded.model
        if STORY_ROWS[row] is not None:
            model = rounded(loaded.model, *STORY_ROWS[row])
        p = perplexity(model, told, window, windows)
        yield row, {"perplexity": p.value, "nll": p.nll}
