"""What part 2 measures: the speed of a product, and of a whole model."""

import copy

import torch
import torch.nn.functional as F

from quantlib import Grid, RTN, quantize, quantize_model
from quantlib.benchmark import measure
from quantlib.ceilings import READ, ceilings, reader
from quantlib.decoding import decode_step, profile_decode
from quantlib.decoding import tokens_per_second
from quantlib.kernels import int8_matmul, pack_weight
from quantlib.kernels import kernels_of
from quantlib.records import experiment

TEXTBOOK = Grid(8, "row", narrow_range=True)


def per_token(x, packed, scale):
    """W8A8: round each row of x, multiply integers, scale twice."""
    step = x.abs().amax(1, keepdim=True) / 127  # [rows, 1]
    codes = (x / step).round().to(torch.int8)  # [rows, in]
    products = int8_matmul(codes, packed)  # [rows, out]
    return (products * (step * scale)).to(x.dtype)


def products(w, rows, device):
    """The ways to multiply `rows` rows of x by w, and their bytes."""
    x = torch.randn(rows, w.shape[1], device=device)
    x16, w16 = x.bfloat16(), w.bfloat16()
    ways = {
        "fp32": (lambda: F.linear(x, w), w.nbytes),
        "bf16": (lambda: F.linear(x16, w16), w16.nbytes),
    }
    for name, grid in (("int8", TEXTBOOK), ("int4", Grid(4, 128))):
        packed = pack_weight(quantize(w, grid))
        for kernel in kernels_of(w.device):
            if kernel.refuses(packed, x16.dtype, rows) is None:
                ways[f"{name} {kernel.name}"] = (
                    lambda k=kernel, p=packed: k.run(x16, p),
                    packed.nbytes,
                )
    q = quantize(w, TEXTBOOK)
    layout = "onednn" if device == "cpu" else "rows"
    both = pack_weight(q, layout=layout)
    scale = q.scale.t().float()  # [1, out]
    ways["w8a8"] = (lambda: per_token(x16, both, scale), both.nbytes)
    return ways


def speed_on(device, shapes, rows, rounds):
    """Ceilings, and a benchmark for each shape and number of rows."""
    limits, results = ceilings(device), {}
    read = reader(limits.read_by, device)  # in turns with the products
    for out, columns in shapes:
        w = torch.randn(out, columns, device=device)
        for count in rows:
            ways = {**products(w, count, device), READ: read}
            results[f"{out}x{columns} {count}"] = measure(
                {name: call for name, (call, _) in ways.items()},
                bytes_moved={name: n for name, (_, n) in ways.items()},
                rounds=rounds,
                device=device,
            )
    return {"ceilings": limits, "products": results}


KERNELS = (
    "kernels.cpu", "kernels.compiled", "kernels.compiled_digits", "kernels.gpu")


@experiment(sources=(*KERNELS, "benchmark", "ceilings"))
def speed(
    *,
    shapes=((4096, 4096), (11008, 4096)),
    rows=(1, 4, 16, 64, 256),
    rounds=11,
):
    """Seconds of every kernel, on the CPU, and on the GPU if one is there."""
    devices = ["cpu", *["cuda"][: torch.cuda.is_available()]]
    return {d: speed_on(d, shapes, rows, rounds) for d in devices}


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


@experiment(
    model="SmolLM2-135M-Instruct",
    sources=(*KERNELS, "layers", "convert", "decoding"),
)
def decoding(loaded, *, tokens=48, rounds=5):
    """Greedy text of float and quantized models: how fast, and which."""
    models = {"fp32": loaded.model, **kinds(loaded.model)}
    prompt = loaded.tokenizer(PROMPT, return_tensors="pt").input_ids

    texts = {
        name: loaded.tokenizer.decode(generated(model, prompt, tokens))
        for name, model in models.items()
    }
    rates = tokens_per_second(
        {
            name: lambda m=m: generated(m, prompt, tokens)
            for name, m in models.items()
        },
        tokens,
        rounds=rounds,
    )
    profiles = {
        name: profile_decode(model, decode_step(model, prompt))
        for name, model in models.items()
    }
    return {"rates": rates, "texts": texts, "profiles": profiles}


@experiment(
    model="SmolLM2-135M-Instruct",
    sources=(*KERNELS, "layers", "convert", "decoding"),
)
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
