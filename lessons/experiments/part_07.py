"""What part 7 measures: every method of the lessons on the same text, with its bytes, its seconds and its memory."""

import time

import torch
from torch import nn

from quantlib import AWQ, GPTQ, RTN, Grid, LLMInt8, load_text, quantize_model, token_windows
from quantlib.measure.accuracy import score
from quantlib.measure.answers import answers, beside
from quantlib.measure.memory import peak_memory
from quantlib.methods.awq import ALPHAS
from quantlib.models.linears import dequantized, linear_layers, twin_of
from quantlib.records import experiment, load_record
from quantlib.zoo.tasks import Item, load_task

MODEL = "SmolLM2-135M-Instruct"
FEW = (0.25, 0.5)  # ratios, for a miniature
REFINED = {"through_attention": True, "search_scales": True, "residual": 0.25}


def gptq(bits, group, **how):
    return lambda alphas: GPTQ(Grid(bits, group), **how)


def awq(bits, group, symmetric=True, then=None):
    on = Grid(bits, group, symmetric=symmetric)
    return lambda alphas: AWQ(on, alphas=alphas, then=then and GPTQ(on, **then))


def rounded(bits, group, symmetric=True):
    return lambda alphas: RTN(Grid(bits, group, symmetric=symmetric))


def methods(group, other):
    """Row of the table -> how the model is made; group: weights that share a scale; other: a row to compare with."""
    return {
        "float": None,
        "int8 row": rounded(8, "row"),
        "W8A8": lambda alphas: LLMInt8(None),
        "LLM.int8()": lambda alphas: LLMInt8(6.0),
        "int4 row, rounded": rounded(4, "row"),
        f"int4 {other}, rounded": rounded(4, other),
        f"int4 {group}, rounded": rounded(4, group),
        f"int4 {group} asymmetric, rounded": rounded(4, group, False),
        f"int4 {group}, GPTQ": gptq(4, group),
        f"int4 {group}, GPTQ through attention": gptq(4, group, through_attention=True),
        f"int4 {group}, GPTQ refined": gptq(4, group, **REFINED),
        f"int4 {group}, AWQ": awq(4, group),
        f"int4 {group} asymmetric, AWQ": awq(4, group, False),
        f"int3 {group}, rounded": rounded(3, group),
        f"int3 {group}, GPTQ through attention": gptq(3, group, through_attention=True),
        f"int3 {group}, AWQ": awq(3, group),
    }


LARGE, SMALL = methods(64, 32), methods(32, 96)
SMALL["int4 32, AWQ then GPTQ refined"] = awq(4, 32, then=REFINED)


def made(model, how, read):
    """The model by one method, for evaluation: (model, bits of each weight, bytes that its layers hold)."""
    if how is None:
        return model, 32.0, None
    new, report = quantize_model(model, how, read if isinstance(how, GPTQ | AWQ) else None)
    return new, report.bits_per_weight, report.bytes_after


def weighed(model, bits, held):
    """Bytes: of the linear layers in so many bits a weight, of all else in 16; and what the layers of today hold."""
    layers, _ = linear_layers(model)
    weights = sum(layer.weight.numel() for layer in layers)
    everything = sum({id(p): p.numel() for p in model.parameters()}.values())
    bits = min(bits, 16)  # floats are counted as they are kept on disk
    return {
        "linear": round(weights * bits / 8), "kept": 2 * (everything - weights), "bits a weight": bits, "held": held,
    }  # fmt: skip


def measured(reference, model, ids, window, windows):
    """How a model answers, beside the float one."""
    found = beside(reference, answers(model, ids, window, windows))
    kl = found.kl.double().flatten()
    return {
        "perplexity": found.nll.double().mean().exp().item(),
        "nll": found.nll,  # [windows, window - 1]
        "KL": {"mean": kl.mean().item(), "median": kl.median().item(), "99 %": kl.quantile(0.99).item()},
        "KL of windows": found.kl.double().mean(1),  # [windows]
        "same first": found.same.double().mean(1),
        "flips": found.flips.double().mean(1),
        "right": found.right.double().mean(1),
    }


def table(loaded, rows, ways, read, ids, window, windows, alphas, timed):
    """The rows, one after the other."""
    reference = answers(loaded.model, ids, window, windows)
    for row in rows:
        how, start = ways[row] and ways[row](alphas), time.perf_counter()
        (model, bits, held), peak = peak_memory(lambda how=how: made(loaded.model, how, read))
        seconds = time.perf_counter() - start
        exact = model if isinstance(how, LLMInt8) else dequantized(model)  # of weight-only no kernel matters
        found = measured(reference, exact, ids, window, windows) | {"bytes": weighed(loaded.model, bits, held)}
        if timed:
            found |= {"seconds": seconds, "peak": peak, "threads": torch.get_num_threads()}
        yield row, found


def texts(loaded, count, seed, window, windows):
    """WikiText-2: windows to read, [count, window], from the first nine tenths of the validation set as in parts 4 and
    5; and the beginning of the test set.
    """
    validation, test = load_text("wikitext-2", "validation"), load_text("wikitext-2", "test")
    read = token_windows(
        validation[: len(validation) * 9 // 10], loaded.tokenizer, window, count, seed, evaluation=test)
    return read, torch.tensor(loaded.tokenizer(test).input_ids[: windows * window])


@experiment(
    rows=LARGE, model=MODEL,
    miniature={"count": 2, "windows": 2, "window": 64, "alphas": FEW, "timed": False})
def quality(loaded, rows, *, count=8, seed=0, windows=8, window=1024, alphas=ALPHAS, timed=True):
    """Every method on the lesson model: all that read text have read the same eight windows."""
    read, ids = texts(loaded, count, seed, window, windows)
    yield from table(loaded, rows, LARGE, read, ids, window, windows, alphas, timed)


@experiment(
    rows=SMALL, model="stories15M",
    miniature={"count": 2, "windows": 2, "window": 32, "alphas": FEW, "timed": False})
def on_stories(loaded, rows, *, count=16, seed=0, windows=16, window=256, alphas=ALPHAS, timed=True):
    """The same on the small model: calibrated on stories that it told, measured on others, as in part 5."""
    size = loaded.model.config.vocab_size  # a miniature knows fewer words
    told = load_record("part_06.more_stories").values["tokens"] % size
    chosen = torch.randperm(len(told), generator=torch.Generator().manual_seed(seed))[:count]
    read = told[chosen, :window].long()
    ids = (load_record("part_01.stories").values["tokens"] % size)[16 : 16 + windows, :window].flatten().long()
    yield from table(loaded, rows, SMALL, read, ids, window, windows, alphas, timed)


def nf4(w, group):
    """bitsandbytes' NF4 [out, in]: 16 levels, those of a normal distribution, times the largest weight of a group."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(w.float().contiguous(), blocksize=group, quant_type="nf4")).to(w.dtype)


@experiment(rows=("NF4 64",), model=MODEL)
def references(loaded, rows, *, windows=8, window=1024):
    """What other libraries make of the model: needs bitsandbytes, and so is a fact of its day."""
    ids = torch.tensor(loaded.tokenizer(load_text("wikitext-2", "test")).input_ids[: windows * window])
    reference = answers(loaded.model, ids, window, windows)
    for row in rows:
        start, group = time.perf_counter(), int(row.split()[1])
        layers = linear_layers(loaded.model)[0]
        new, peak = peak_memory(lambda group=group, layers=layers: {
            id(layer.module): with_weight(nf4(layer.weight, group)) for layer in layers
        })  # fmt: skip
        seconds = time.perf_counter() - start
        found = measured(reference, twin_of(loaded.model, new), ids, window, windows)
        bits = 4 + 32 / group  # a float32 scale for every group
        yield row, found | {
            "bytes": weighed(loaded.model, bits, None),
            "seconds": seconds, "peak": peak, "threads": torch.get_num_threads(),
        }  # fmt: skip


def with_weight(w):
    """A linear layer of this weight [out, in]."""
    linear = nn.Linear(*reversed(w.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(w, False)
    return linear


TASKS = ("LAMBADA",)
WRITTEN = {  # of our own: for a miniature, which fetches nothing
    "LAMBADA": [Item("The dog and the cat sat by the door. The cat looked at the", (" dog",), 0)],
}
ASKED = "float", "int8 row", "int4 64, rounded", "int4 64, GPTQ through attention"


def items(task, count, seed):
    """So many questions of a task, drawn with a seed, in the order of the file."""
    every = load_task(task)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:count]
    return [every[i] for i in chosen.sort().values]


@experiment(
    rows=[f"{row}; {task}" for row in ASKED for task in TASKS], model=MODEL,
    miniature={"count": 2, "window": 64, "questions": "written"})
def tasks(loaded, rows, *, questions=300, count=8, seed=0, window=1024):
    """Which answers the float model and three quantized ones give to the same questions."""
    read, _ = texts(loaded, count, seed, window, 1)
    model = made_by = None
    for row in rows:
        way, task = row.split("; ")
        if way != made_by:
            made_by, how = way, LARGE[way] and LARGE[way](ALPHAS)
            model = dequantized(made(loaded.model, how, read)[0])
        asked = WRITTEN[task] if questions == "written" else items(task, questions, seed)
        found = score(model, loaded.tokenizer, asked)
        yield row, {"right": found.right, "log-likelihoods": found.log_likelihoods}
