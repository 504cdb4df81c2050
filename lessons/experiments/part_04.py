"""What part 4 measures on whole models: GPTQ with the statistics it is given, and what each choice is worth."""

import time

import torch
from torch import nn

from quantlib import GPTQ, RTN, Grid, collect_stats, gptq_quantize, load_lesson_model, load_text, output_error
from quantlib import perplexity, quantize, quantize_model, token_windows
from quantlib.models.linears import dequantized, twin_of
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
    *(f"4 64 symmetric {how}" for how in ("rounded", "plain", "attention", "attention refined")),
    *(f"4 64 asymmetric {how}" for how in ("rounded", "plain", "attention refined")),
    "3 64 symmetric rounded",
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


CHOICES = {  # on text that is not the test set
    "attention": {},
    "searched": {"search_scales": True},
    "residual 0.25": {"residual": 0.25},
    "residual 1": {"residual": 1.0},
    "residual 0.25, λ 0.1": {"residual": 0.25, "residual_damp": 0.1},
    "searched, residual 0.25": {"residual": 0.25, "search_scales": True},
}


@experiment(rows=CHOICES, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def choices(loaded, rows, *, count=4, seed=0, windows=8, window=1024):
    """What the refinements gain on validation text that was not calibrated on: α and λ are chosen here."""
    ours, chosen_by, test = texts()
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    for row in rows:
        how = GPTQ(Grid(4, 64), through_attention=True, **CHOICES[row])
        model, _ = quantize_model(loaded.model, how, read)
        yield row, losses(loaded, model, chosen_by, windows, window)


SEEDS = [f"{seed} {how}" for seed in (1, 2) for how in ("attention", "attention refined")]


@experiment(rows=SEEDS, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def seeds(loaded, rows, *, count=4, windows=8, window=1024):
    """Whether the refinements gain on the test set, whichever windows are read."""
    ours, _, test = texts()
    for row in rows:
        seed, how = row.split(maxsplit=1)
        read = token_windows(ours, loaded.tokenizer, window, count, int(seed), evaluation=test)
        model, _ = quantized(loaded.model, f"4 64 symmetric {how}", read)
        yield row, losses(loaded, model, test, windows, window)


ABLATIONS = {
    "act-order": GPTQ(Grid(4, 64)),
    "natural order": GPTQ(Grid(4, 64), act_order=False),
    "one shot": GPTQ(Grid(4, 64), sequential=False),
    "one shot, natural order": GPTQ(Grid(4, 64), sequential=False, act_order=False),
    "damping 0.1": GPTQ(Grid(4, 64), damp=0.1),
    "groups of 32": GPTQ(Grid(4, 32)),
    "groups of 32, rounded": RTN(Grid(4, 32)),
    "a row": GPTQ(Grid(4, "row")),
    "a row, rounded": RTN(Grid(4, "row")),
    "3 bits": GPTQ(Grid(3, 64)),
    "3 bits, attention": GPTQ(Grid(3, 64), through_attention=True),
}


@experiment(rows=ABLATIONS, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def ablations(loaded, rows, *, count=4, seed=0, windows=8, window=1024):
    """Plain GPTQ on few windows, one choice changed at a time."""
    ours, _, test = texts()
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    for row in rows:
        how = ABLATIONS[row]
        model, _ = quantize_model(loaded.model, how, read if isinstance(how, GPTQ) else None)
        yield row, losses(loaded, model, test, windows, window)


KINDS = {
    "query": ("q_proj",), "key": ("k_proj",), "value": ("v_proj",), "output": ("o_proj",),
    "gate and up": ("gate_proj", "up_proj"), "down": ("down_proj",),
}  # fmt: skip
ALONE = [f"{kind}, {how}" for kind in KINDS for how in ("rounded", "plain")] + ["value, attention"]


class OneShot:
    """Every linear layer but the head rounded, and by GPTQ on what the float model makes of the text; with the errors.

    weights  how -> layer name -> the dequantized weight [out, in]
    errors   the same: the share of the squared output that is lost
    read     of value layers: the share that is lost of what attention makes of the output
    """

    def __init__(self, model, read):
        on, statistics = Grid(4, 64), {
            "plain": collect_stats(model, read),
            "attention": collect_stats(model, read, through_attention=True),
        }  # fmt: skip
        ways = "rounded", "plain", "attention"
        self.weights, self.errors, self.read = ({how: {} for how in ways} for _ in range(3))
        for how in self.weights:
            for name, stats in statistics["attention" if how == "attention" else "plain"].items():
                if how == "attention" and stats.gram.ndim == 2:
                    continue  # as plain
                w = model.get_submodule(name).weight.detach()
                q = quantize(w, on) if how == "rounded" else gptq_quantize(w, stats.gram, on, act_order=True)
                self.weights[how][name] = q.dequantize(w.dtype)
                self.errors[how][name] = output_error(w, q, statistics["plain"][name].gram)
                if (made := statistics["attention"][name].gram).ndim == 3:
                    self.read[how][name] = output_error(w, q, made)


def with_weights(model, weights):
    """A copy of the model that shares all but these weights: layer name -> [out, in]."""
    replaced = {}
    for name, weight in weights.items():
        linear = nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight = nn.Parameter(weight, False)
        replaced[id(model.get_submodule(name))] = linear
    return twin_of(model, replaced)


@experiment(rows=["float", "all, rounded", *ALONE], model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def one_kind(loaded, rows, *, count=8, seed=0, windows=8, window=1024):
    """Only one kind of layer quantized, in all blocks, everything else float; and the errors of these layers."""
    ours, _, test = texts()
    ways = OneShot(loaded.model, token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test))
    for row in rows:
        kind, _, how = row.partition(", ")
        names = [
            name for name in ways.weights[how or "rounded"]
            if how and (kind == "all" or name.rpartition(".")[2] in KINDS[kind])
        ]  # fmt: skip
        model = with_weights(loaded.model, {name: ways.weights[how][name] for name in names})
        errors = torch.tensor([ways.errors[how][name] for name in names])
        yield row, losses(loaded, model, test, windows, window) | {"output_error": errors}


@experiment(rows=[str(block) for block in range(30)], model=MODEL, miniature={"count": 2, "window": 64})
def one_layer(loaded, rows, *, count=8, seed=0, window=512):
    """Only one layer quantized: what the loss of one window of test text gains by it, the error of the layer's output,
    and of values that of what attention makes of it.
    """
    ours, _, test = texts()
    model = loaded.model
    ways = OneShot(model, token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test))
    ids = torch.tensor(loaded.tokenizer(test).input_ids[:window])
    before = nll_from(model, ids, entering := hidden_states(model, ids), 0)
    for row in rows:
        block = int(row) % len(model.model.layers)
        found = {}
        for how, weights in ways.weights.items():
            for name, weight in weights.items():
                if f".{block}." in name:
                    changed = with_weights(model, {name: weight})
                    gained = nll_from(changed, ids, entering, block) - before
                    read = ways.read[how].get(name)
                    found[f"{name.rpartition('.')[2]}, {how}"] = [gained, ways.errors[how][name], read]
        yield row, found


def hidden_states(model, ids):
    """What enters each block, [1, tokens, hidden]."""
    with torch.inference_mode():
        return model(ids[None], output_hidden_states=True).hidden_states


def nll_from(model, ids, entering, block):
    """The mean loss, from a block on: what enters it is known."""
    hidden, inner = entering[block], model.model
    with torch.inference_mode():
        positions = torch.arange(len(ids))[None]
        rotation = inner.rotary_emb(hidden, positions)
        for layer in inner.layers[block:]:
            hidden = layer(hidden, position_embeddings=rotation, position_ids=positions)
        logits = model.lm_head(inner.norm(hidden))[0, :-1].double()  # [tokens - 1, vocabulary]
    return torch.nn.functional.cross_entropy(logits, ids[1:]).item()


@experiment()
def cost(*, counts=(8,), blocks=6):
    """Seconds to quantize the first blocks of the lesson model, one thread, by what is asked for."""
    loaded = load_lesson_model("cpu")
    loaded.model.model.layers = loaded.model.model.layers[:blocks]
    found, threads = {}, torch.get_num_threads()
    torch.set_num_threads(1)
    for count in counts:
        read = token_windows(texts()[0], loaded.tokenizer, 1024, count, 0)
        for how in METHODS:
            start = time.perf_counter()
            quantized(loaded.model, f"4 64 symmetric {how}", read)
            found[f"{count} {how}"] = time.perf_counter() - start
    torch.set_num_threads(threads)
    return found


def heads_read(model, read):
    """What the rows of queries and keys are multiplied by: layer name -> [heads, head_dim, head_dim].

    Of a query head Σ kᵀk over the keys that it meets, of a key head Σ qᵀq over the queries of all heads that read it,
    both rotated to their positions (BoA, arXiv:2406.13474).
    """
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    sums, said = {}, {}

    def keep(name):
        return lambda layer, args, out: said.__setitem__(name, out)

    def add(name, attention):
        def hook(module, args, out):
            size = attention.head_dim
            q, k = (said[f"{name}.{each}_proj"].unflatten(-1, (-1, size)).transpose(1, 2) for each in "qk")
            q, k = (each[0] for each in apply_rotary_pos_emb(q, k, *said["rotation"]))
            shared = len(q) // len(k)  # both [heads, tokens, head_dim]
            for_keys = (q.mT @ q).unflatten(0, (-1, shared)).sum(1)
            for each, found in ("q", (k.mT @ k).repeat_interleave(shared, 0)), ("k", for_keys):
                sums[f"{name}.{each}_proj"] = sums.get(f"{name}.{each}_proj", 0) + found

        return hook

    handles = [model.model.rotary_emb.register_forward_hook(keep("rotation"))]
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj")):
            handles.append(module.register_forward_hook(keep(name)))
        elif name.endswith("self_attn"):
            handles.append(module.register_forward_hook(add(name, module)))
    with torch.inference_mode():
        for window in read:
            model(window[None])
    for handle in handles:
        handle.remove()
    return sums


def rows_too(w, gram, rows, on):
    """GPTQ row by row: what a row loses, the later rows of its head make up for, weighted by rows [heads, d, d].

    The error of a head is tr(M (W - Q) H (W - Q)ᵀ): the factor of M's inverse does for rows what H's does for columns.
    """
    heads, size, _ = rows.shape
    M = rows.double() / rows.diagonal(dim1=1, dim2=2).double().mean(1)[:, None, None]
    M += 0.01 * torch.eye(size, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(M)).mT.to(w.dtype)  # [heads, d, d], U'U = M^-1
    left, out = w.detach().unflatten(0, (heads, size)).clone(), []  # [heads, d, in]
    for i in range(size):
        out.append(gptq_quantize(left[:, i], gram, on, act_order=True).dequantize(w.dtype))  # [heads, in]
        error = (left[:, i] - out[-1]) / U[:, i, i, None]
        left[:, i + 1 :] -= U[:, i, i + 1 :, None] * error[:, None]
    return torch.stack(out, 1).flatten(0, 1)


@experiment(
    rows=[f"{kind}, {how}" for kind in ("query", "key") for how in ("plain", "rows too")],
    model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def row_hessians(loaded, rows, *, count=8, seed=0, windows=8, window=1024):
    """Only queries or keys by GPTQ, everything else float: row by row alone, or with what the rows are read by."""
    ours, _, test = texts()
    model, on = loaded.model, Grid(4, 64)
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    statistics, read_by = collect_stats(model, read), heads_read(model, read)
    for row in rows:
        kind, _, how = row.partition(", ")
        weights = {}
        for name in read_by:
            if name.endswith(KINDS[kind]):
                w, gram = model.get_submodule(name).weight.detach(), statistics[name].gram
                if how == "plain":
                    weights[name] = gptq_quantize(w, gram, on, act_order=True).dequantize(w.dtype)
                else:
                    weights[name] = rows_too(w, gram, read_by[name], on)
        yield row, losses(loaded, with_weights(model, weights), test, windows, window)
