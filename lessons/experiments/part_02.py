"""What part 2 measures: the speed of a product, and of a whole model."""

import copy
import tempfile
from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import nn

from quantlib import RTN, CompiledDecoder, Decoder, Grid, quantize, quantize_model, save_quantized
from quantlib.kernels import int8_matmul, kernels_of, pack_weight, usable
from quantlib.kernels.cpu.compiled import available as step_available
from quantlib.layers.mixed import MixedInt8Linear
from quantlib.measure.benchmark import measure
from quantlib.measure.ceilings import READ, ceilings, reader
from quantlib.measure.decoding import decode_step, profile_decode, tokens_per_second
from quantlib.measure.graphs import graphed
from quantlib.measure.llama_cpp import LlamaCpp, available
from quantlib.measure.steps import steps
from quantlib.records import experiment
from quantlib.zoo.zoo import SMOLLM2

TEXTBOOK = Grid(8, "row", narrow_range=True)


def per_token(x, packed, scale):
    """W8A8: round each row of x, multiply integers, scale twice."""
    step = x.abs().amax(1, keepdim=True) / 127  # [rows, 1]
    codes = (x / step).round().to(torch.int8)  # [rows, in]
    products = int8_matmul(codes, packed)  # [rows, out]
    return (products * (step * scale)).to(x.dtype)


def packings(w):
    """A matrix as the kernels read it."""
    linear = nn.Linear(*reversed(w.shape), bias=False, device=w.device)
    linear.weight = nn.Parameter(w, False)
    return {
        "int8": pack_weight(quantize(w, TEXTBOOK)),
        "int4": pack_weight(quantize(w, Grid(4, 128))),
        "w8a8": MixedInt8Linear.from_float(linear, None).packed,
    }


def products(w, packed, rows):
    """The ways to multiply `rows` rows of x by w that are right here, and their bytes."""
    x = torch.randn(rows, w.shape[1], device=w.device)
    x16, w16 = x.bfloat16(), w.bfloat16()
    ways = {
        "fp32": (lambda: F.linear(x, w), w.nbytes),
        "bf16": (lambda: F.linear(x16, w16), w16.nbytes),
    }
    for name in ("int8", "int4"):
        for kernel in kernels_of(w.device):
            if usable(kernel, packed[name], x16) is None:
                ways[f"{name} {kernel.name}"] = (
                    lambda k=kernel, p=packed[name]: k.run(x16, p),
                    packed[name].nbytes,
                )
    both, scale = packed["w8a8"], packed["w8a8"].scale.view(1, -1)  # [1, out]
    per_token(x16, both, scale)  # a kernel is chosen once, not in the race
    ways["w8a8"] = (lambda: per_token(x16, both, scale), both.nbytes)
    return ways


def speed_on(device, shapes, counts, rounds, patience):
    """Ceilings, and a benchmark for each shape and number of rows."""
    limits, results = ceilings(device), {}
    read = reader(limits.read_by, device)  # in turns with the products
    cases = {f"{out}x{columns} {count}": (out, columns, count)
             for out, columns in shapes for count in counts}
    work = {name: out * columns * (64 + count)
            for name, (out, columns, count) in cases.items()}
    w = torch.empty(0, 0)
    for name in steps(f"products on {device}", work):
        out, columns, count = cases[name]
        if w.shape != (out, columns):
            w = torch.randn(out, columns, device=device)
            packed = packings(w)
        ways = {**products(w, packed, count), READ: read}
        if device == "cuda":  # launched as a whole: kernels, not Python
            ways = {n: (graphed(call), size)
                    for n, (call, size) in ways.items()}
        results[name] = measure(
            {name: call for name, (call, _) in ways.items()},
            bytes_moved={name: n for name, (_, n) in ways.items()},
            race=[name for name in ways if name != READ],
            warmup=1,
            rounds=rounds,
            patience=patience,
            device=device,
        )
    return {"ceilings": limits, "products": results}


@experiment()
def speed(
    *,
    shapes=((4096, 4096), (11008, 4096)),
    counts=(1, 4, 16, 64, 256),
    rounds=11,
    patience=8,
):
    """Seconds of every kernel on the CPU.

    No round begins after so many seconds, once there are five.
    """
    return {"cpu": speed_on("cpu", shapes, counts, rounds, patience)}


@experiment(gpu=True)
def speed_on_gpu(
    *,
    shapes=((4096, 4096), (11008, 4096)),
    counts=(1, 16, 64, 256),
    rounds=11,
    patience=8,
):
    """Seconds of every kernel on a GPU, each call replayed as a graph."""
    return {"cuda": speed_on("cuda", shapes, counts, rounds, patience)}


PROMPT = "The history of the printing press begins"


def kinds(model):
    """A model in bfloat16, and with eight and four bits."""
    half = copy.deepcopy(model).bfloat16()
    return {
        "bf16": half,
        "int8": quantize_model(half, RTN(TEXTBOOK))[0],
        "int4": quantize_model(half, RTN(Grid(4, 64, narrow_range=True)))[0],
    }


def generated(model, prompt, tokens):
    """So many token ids, the most likely one every time."""
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return out[0, prompt.shape[1] :]


@experiment(model="SmolLM2-135M-Instruct")
def decoding(loaded, *, tokens=48, rounds=5):
    """Greedy text of float and quantized models: how fast, and which."""
    models = {"fp32": loaded.model, **kinds(loaded.model)}
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids

    texts, profiles = {}, {}
    for name in steps("writing", dict.fromkeys(models, 1)):
        model = models[name]
        texts[name] = loaded.tokenizer.decode(generated(model, prompt, tokens))
        profiles[name] = profile_decode(model, decode_step(model, prompt))
    rates = tokens_per_second(
        {
            name: lambda m=m: generated(m, prompt, tokens)
            for name, m in models.items()
        },
        tokens,
        race=models,
        rounds=rounds,
    )
    return {"rates": rates, "texts": texts, "profiles": profiles}


@experiment(model="SmolLM2-135M-Instruct")
def compiled_decoding(loaded, *, tokens=48, rounds=5):
    """Greedy decoding, also with a cache of fixed size and torch.compile.

    Needs a C++ compiler.
    """
    models = {"fp32": loaded.model, **kinds(loaded.model)}
    for name, model in tuple(models.items()):
        models[f"{name} compiled"] = fused = copy.deepcopy(model)
        fused.generation_config.cache_implementation = "static"
        fused.generation_config.disable_compile = True  # not twice
        fused.forward = torch.compile(fused.forward)
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids

    # all eight share one forward, and each counts as a recompilation of it
    options = {"recompile_limit": 64, "fail_on_recompile_limit_hit": True}
    with torch._dynamo.config.patch(options):
        return tokens_per_second(
            {
                name: lambda m=m: generated(m, prompt, tokens)
                for name, m in models.items()
            },
            tokens,
            rounds=rounds,
        )


def writers(loaded, codes, peers, tokens):
    """Ways for the model to write so many tokens after PROMPT; codes: the float32 model with its layers quantized."""
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids
    ids = prompt[0].tolist()
    context, halves, ways = len(ids) + tokens, kinds(loaded.model), {}
    for name, small in codes.items():
        loops = {"loop": Decoder(halves[name], context, head=TEXTBOOK)}
        if step_available():
            loops["C++"] = CompiledDecoder(small, context, head=TEXTBOOK)
        ways[f"{name} generate"] = (
            lambda m=halves[name]: generated(m, prompt, tokens)
        )
        for way, decoder in loops.items():
            ways[f"{name} {way}"] = lambda d=decoder: d.generate(ids, tokens)
        if name in peers:
            ways[f"{name} llama.cpp"] = lambda p=peers[name]: torch.tensor(
                p.generate(ids, tokens).tokens
            )
    return ways


@experiment(model="SmolLM2-135M-Instruct")
def writing(loaded, *, tokens=48, rounds=7, threads=(1, 2)):
    """Greedy text by generate(), by our own loop, by a step in C++, and by llama.cpp on files of as many bits.

    C++ and llama.cpp where they are there; head in 8 bits, but for generate(), whose head is bfloat16.
    """
    grids = {"int8": TEXTBOOK, "int4": Grid(4, 64, narrow_range=True)}
    codes = {name: quantize_model(loaded.model, RTN(grid))[0] for name, grid in grids.items()}
    rates, builds = {}, {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as open_peers:
        files = {}
        if available() is None:
            files = {"int4": SMOLLM2.paths[0], "int8": f"{folder}/q8.gguf"}
            save_quantized(codes["int8"], files["int8"], "gguf", tokenizer=loaded.tokenizer)
        for count in threads:
            peers = {
                name: open_peers.enter_context(
                    LlamaCpp(file, threads=count, context=256)
                )
                for name, file in files.items()
            }
            builds |= {name: peer.build for name, peer in peers.items()}
            ways = writers(loaded, codes, peers, tokens)
            rates[str(count)] = tokens_per_second(
                ways, tokens, rounds=rounds, threads=count
            )
    return {"rates": rates, "llama.cpp": builds}
