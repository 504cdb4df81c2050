"""What part 7 measures: every method of the lessons on the same text, with its bytes, its seconds and its memory."""

import tempfile
import time
from contextlib import ExitStack

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from quantlib import (
    AWQ,
    GPTQ,
    REAL_MODELS,
    RTN,
    Grid,
    LLMInt8,
    footprint,
    load_text,
    model_shape,
    quantize_model,
    save_quantized,
    token_windows,
)
from quantlib.measure.accuracy import score
from quantlib.measure.answers import answers, beside
from quantlib.measure.benchmark import measure
from quantlib.measure.ceilings import ceilings
from quantlib.measure.decoding import profile_decode, tokens_per_second
from quantlib.measure.llama_cpp import LlamaCpp, available
from quantlib.measure.memory import extra_memory, peak_memory
from quantlib.methods.awq import ALPHAS
from quantlib.models.graphed_decoder import FixedDecoder, GraphedDecoder
from quantlib.models.linears import dequantized, linear_layers, twin_of
from quantlib.records import experiment, load_record
from quantlib.zoo.tasks import TASKS, Item, load_task
from quantlib.zoo.zoo import SMOLLM2

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
        f"int4 {group}, AWQ then GPTQ refined": awq(4, group, then=REFINED),
        f"int3 {group}, rounded": rounded(3, group),
        f"int3 {group}, GPTQ through attention": gptq(3, group, through_attention=True),
        f"int3 {group}, AWQ": awq(3, group),
    }


LARGE, SMALL = methods(64, 32), methods(32, 96)


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


TIMED = (
    "int8 row", "int4 64, rounded", "int4 64, GPTQ", "int4 64, AWQ", "int4 64 asymmetric, AWQ",
    "int4 64, GPTQ through attention", "int4 64, GPTQ refined",
)  # fmt: skip


@experiment(rows=TIMED, model=MODEL)
def making(loaded, rows, *, count=8, seed=0, window=1024):
    """Seconds to make each model, and how much more memory than the float one's it takes: facts of a machine."""
    read, _ = texts(loaded, count, seed, window, 1)
    for row in rows:
        start = time.perf_counter()
        _, extra = extra_memory(lambda row=row: made(loaded.model, LARGE[row](ALPHAS), read))
        yield row, {"seconds": time.perf_counter() - start, "extra": extra, "threads": torch.get_num_threads()}


def nf4(w, group):
    """bitsandbytes' NF4 [out, in]: 16 levels, those of a normal distribution, times the largest weight of a group."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    return dequantize_4bit(*quantize_4bit(w.float().contiguous(), blocksize=group, quant_type="nf4")).to(w.dtype)


def hqq(w, group):
    """HQQ's weight [out, in]: four bits with a zero point, which it shifts until the few large errors weigh less."""
    from hqq.core.quantize import Quantizer

    codes, meta = Quantizer.quantize(
        w.float().clone(), nbits=4, group_size=group, axis=1, device="cpu", compute_dtype=torch.float32, bitpack=False)
    for name in ("scale", "zero"):
        meta[name] = meta[name].half().float()  # as it keeps them
    return Quantizer.dequantize(codes, meta).to(w.dtype)


REFERENCES = {  # row -> how a weight is rounded, in groups of, bits of what a group keeps beside its codes
    "NF4 64": (nf4, 64, 32),
    "HQQ 64": (hqq, 64, 32),
}


@experiment(rows=REFERENCES, model=MODEL)
def references(loaded, rows, *, windows=8, window=1024):
    """What other libraries make of the model: needs bitsandbytes and hqq, and so is a fact of its day."""
    ids = torch.tensor(loaded.tokenizer(load_text("wikitext-2", "test")).input_ids[: windows * window])
    reference = answers(loaded.model, ids, window, windows)
    for row in rows:
        start, (way, group, beside_codes) = time.perf_counter(), REFERENCES[row]
        layers = linear_layers(loaded.model)[0]
        new, peak = peak_memory(lambda way=way, group=group, layers=layers: {
            id(layer.module): with_weight(way(layer.weight, group)) for layer in layers
        })  # fmt: skip
        seconds = time.perf_counter() - start
        found = measured(reference, twin_of(loaded.model, new), ids, window, windows)
        yield row, found | {
            "bytes": weighed(loaded.model, 4 + beside_codes / group, None),
            "seconds": seconds, "peak": peak, "threads": torch.get_num_threads(),
        }  # fmt: skip


def with_weight(w):
    """A linear layer of this weight [out, in]."""
    linear = nn.Linear(*reversed(w.shape), bias=False, device="meta")
    linear.weight = nn.Parameter(w, False)
    return linear


WRITTEN = {  # of our own: for a miniature, which fetches nothing
    "PIQA": [Item("Question: How do you open a door?\nAnswer:", (" Turn its handle.", " Eat its handle."), 0)],
    "ARC-Easy": [Item("Question: What do cows eat?\nAnswer:", (" grass", " the moon", " iron", " a sound"), 0)],
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
def tasks(loaded, rows, *, questions=500, count=8, seed=0, window=1024):
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


IN_LLAMA_CPP = {  # row -> the row of the table whose weights are in the file, and the kind of its blocks
    "float": "its own Q4_1", "int8 row": "Q8_0", "int4 32, rounded": "Q4_0", "int4 64, GPTQ through attention": "Q4_0",
}  # fmt: skip


@experiment(rows=IN_LLAMA_CPP, model=MODEL)
def llama_cpp(loaded, rows, *, count=8, seed=0, windows=8, window=1024):
    """The same weights on the same windows, answered by llama.cpp: a fact of its release, and of this CPU's kernels."""
    read, ids = texts(loaded, count, seed, window, windows)
    ids = ids.view(windows, window)
    with torch.inference_mode():
        first = torch.stack([loaded.model(each[None]).logits[0, :-1].argmax(-1) for each in ids])  # [windows, window - 1]
    for row in rows:
        with tempfile.TemporaryDirectory() as folder:
            file = SMOLLM2.paths[0]  # the model came in four bits, and its floats are what those codes mean
            if row != "float":
                file, model = f"{folder}/model.gguf", made(loaded.model, LARGE[row](ALPHAS), read)[0]
                save_quantized(model, file, "gguf", tokenizer=loaded.tokenizer)
            with LlamaCpp(file, context=window) as peer:
                scores = [peer.score(each.tolist()) for each in ids]
        nll = -torch.tensor([each.log_probabilities for each in scores], dtype=torch.float32)
        yield row, {
            "perplexity": nll.double().mean().exp().item(),
            "nll": nll,  # [windows, window - 1]
            "same first": (torch.tensor([each.top for each in scores]) == first).double().mean(1),
            "blocks": IN_LLAMA_CPP[row],
            "build": peer.build,
        }


READERS = {  # row of the table -> how the model is made; all in float32 but for the codes
    "float": None, "int8 row": RTN(Grid(8)), "int4 64, rounded": RTN(Grid(4, 64)), "W8A8": LLMInt8(None),
    "LLM.int8()": LLMInt8(6.0),
}  # fmt: skip


def reading_ways(models, peers, ids):
    """Ways to read a prompt [tokens] up to the first new token."""
    ways = {name: lambda m=m: m(ids[None], logits_to_keep=1) for name, m in models.items()}
    return ways | {name: lambda p=p: p.generate(ids.tolist(), 1) for name, p in peers.items()}


@experiment(model=MODEL)
def reading(loaded, *, lengths=(16, 64, 512), rounds=5, threads=(1, 2)):
    """Seconds to read a prompt, by turns, llama.cpp where it is there; and of one way the part in linear layers."""
    models = {name: loaded.model if how is None else quantize_model(loaded.model, how)[0] for name, how in READERS.items()}
    text = loaded.tokenizer(load_text("wikitext-2", "test")).input_ids
    weights = model_shape(loaded.model).quantizable
    found, builds = {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_peers, torch.inference_mode():
        files = {}
        if available() is None:
            files = {"llama.cpp Q4_1": SMOLLM2.paths[0], "llama.cpp Q8_0": f"{folder}/q8.gguf"}
            save_quantized(models["int8 row"], files["llama.cpp Q8_0"], "gguf", tokenizer=loaded.tokenizer)
        for count in threads:
            peers = {name: open_peers.enter_context(LlamaCpp(file, threads=count)) for name, file in files.items()}
            builds |= {name: peer.build for name, peer in peers.items()}
            found[str(count)] = {"ceilings": ceilings("cpu", count)}
            for length in lengths:
                ways = reading_ways(models, peers, torch.tensor(text[:length]))
                flops = dict.fromkeys(ways, 2 * weights * length)
                found[str(count)][str(length)] = {
                    "seconds": measure(ways, flops=flops, rounds=rounds, warmup=1, cold=False, threads=count),
                    "int8 row": profile_decode(models["int8 row"], ways["int8 row"], rounds=rounds, threads=count),
                }
    return {"by threads": found, "llama.cpp": builds}


ON_GPU = {"int8": Grid(8, narrow_range=True), "int4": Grid(4, 128, narrow_range=True)}


def invented(shape, device):
    """A model of this shape in bfloat16 with random weights: its bytes and its speed are right, its words mean nothing."""
    config = AutoConfig.for_model(**REAL_MODELS[shape])
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()


def read_by_a_token(shape, grid):
    """Bytes that one token reads: all weights but the table of embeddings, of which it reads one row."""
    config, weights = REAL_MODELS[shape], footprint(model_shape(REAL_MODELS[shape]), grid or Grid(8))
    table = 0 if config["tie_word_embeddings"] else 2 * config["vocab_size"] * config["hidden_size"]
    return (weights.full if grid is None else weights.total) - table


@experiment(gpu=True)
def on_gpu(*, shapes=("Llama-2-7B",), tokens=64, prompt=32, length=512, rounds=5, device="cuda"):
    """A whole model on a GPU: tokens a second, each step one graph, and seconds to read a prompt."""
    found = {"ceilings": ceilings(device)}
    for shape in shapes:
        floats = invented(shape, device)
        models = {"bf16": floats} | {n: quantize_model(floats, RTN(grid))[0] for n, grid in ON_GPU.items()}
        ids = torch.randint(1000, (length,), generator=torch.Generator().manual_seed(0))
        kind = GraphedDecoder if device == "cuda" else FixedDecoder
        decoders = {name: kind(model, prompt + tokens) for name, model in models.items()}
        with torch.inference_mode():
            found[shape] = {
                "rates": tokens_per_second(
                    {n: lambda d=d: d.generate(ids[:prompt].tolist(), tokens) for n, d in decoders.items()},
                    tokens, rounds=rounds, device=device),
                "reading": measure(
                    reading_ways(models, {}, ids.to(device)), rounds=rounds, warmup=2, cold=False, device=device),
                "bytes a token": {name: read_by_a_token(shape, ON_GPU.get(name)) for name in models},
                "length": length,
            }  # fmt: skip
    return found
