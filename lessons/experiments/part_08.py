"""What part 8 asks of other libraries. All of it is a fact of their versions, which every row names.

They are in the second environment that `make peers` makes. From there, in this folder's parent's parent:
OMP_NUM_THREADS=1 .venv-peers/bin/python -m quantlib record part_08
"""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import chdir, contextmanager
from importlib.metadata import version
from pathlib import Path

import torch

from quantlib import RTN, Grid, LLMInt8, load_lesson_model, load_quantized, load_text, perplexity, quantize_model
from quantlib import save_quantized
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.records import experiment, load_record

SMALL, LARGE = "stories15M", "SmolLM2-135M-Instruct"
BEGINNING = "Once upon a time there was a little"


@contextmanager
def a_folder_with(loaded, *, dtype=torch.float32):
    """Work in a new folder that holds the model as transformers keeps one, under the model's name."""
    with tempfile.TemporaryDirectory() as top, chdir(top):
        loaded.model.to(dtype).save_pretrained(loaded.name)
        loaded.model.float()
        loaded.tokenizer.save_pretrained(loaded.name)
        yield Path(top)


def the_last_words(code, path=""):
    """A fresh Python runs the code: ("TypeError", "what it says"), or ("", what it prints)."""
    environment = os.environ | {"PYTHONPATH": path, "PYTHONWARNINGS": "ignore", "COLUMNS": "200"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    if not done.returncode:
        return "", done.stdout.strip()
    found = re.findall(r"^(?:\w+\.)*(\w*(?:Error|Exception|Interrupt))(?:: (.*))?$", done.stderr, re.MULTILINE)
    kind, words = found[-1] if found else (f"exit status {done.returncode}", done.stderr.strip()[-300:])
    return kind, re.sub(r"\(/\S+site-packages/", "(…/", words)


# ---- calls that circulate, each run as it stands; the packages that today's environments lack are fetched for it
OLD = {
    "load_in_8bit": ("", """\
from transformers import AutoModelForCausalLM
AutoModelForCausalLM.from_pretrained("stories15M", load_in_8bit=True)"""),
    "auto_gptq": ("", """\
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig"""),
    "auto_gptq, installed": ("auto-gptq==0.7.1", """\
from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig"""),
    "use_exllama": ("", """\
from transformers import GPTQConfig
config = GPTQConfig(bits=4, use_exllama=False)
print("exllama" in config.to_json_string())"""),
    "AwqConfig": ("", """\
from transformers import AutoModelForCausalLM, AwqConfig
AutoModelForCausalLM.from_pretrained(
    "stories15M", quantization_config=AwqConfig(bits=4, group_size=32))"""),
    "AutoAWQ": ("", """\
from awq import AutoAWQForCausalLM"""),
    "AutoAWQ, installed": ("autoawq==0.2.9", """\
from awq import AutoAWQForCausalLM
from transformers import AutoTokenizer
model = AutoAWQForCausalLM.from_pretrained("stories15M", device_map="cpu")
model.quantize(AutoTokenizer.from_pretrained("stories15M"), quant_config={
    "w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
    calib_data=["Once upon a time there was a little girl named Lily. " * 30] * 8)"""),
    "SparseAutoModel": ("", """\
from llmcompressor.transformers import SparseAutoModelForCausalLM, oneshot"""),
    "int8_weight_only": ("", """\
from torchao.quantization import quantize_, int8_weight_only"""),
}  # fmt: skip


@experiment(rows=OLD, model=SMALL)
def old_calls(loaded, rows):
    """What today's libraries answer to yesterday's calls."""
    with a_folder_with(loaded) as top:
        for row in rows:
            package, code = OLD[row]
            path = str(top / row) if package else ""
            if package:
                fetch = ["install", "--quiet", "--no-deps", "--target", path, package]
                subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
            kind, words = the_last_words(code, path)
            yield row, {"call": code, "package": package, "error": kind, "says": words, "versions": versions()}


def versions():
    """Of the libraries that this page speaks of."""
    names = ("transformers", "bitsandbytes", "torchao", "gptqmodel", "llmcompressor", "compressed-tensors", "accelerate")
    return {name: version(name) for name in names}


# ---- calls of today. Each begins with the folder "stories15M" and `texts`, lists of ids, and ends with a `model`
NOW = {
    "float": """\
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", dtype=torch.float32)""",
    "bitsandbytes INT8": """\
from transformers import BitsAndBytesConfig
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", device_map="cpu", dtype=torch.float32,
    quantization_config=BitsAndBytesConfig(load_in_8bit=True))""",
    "bitsandbytes NF4": """\
from transformers import BitsAndBytesConfig
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", device_map="cpu", dtype=torch.float32,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4"))""",
    "torchao INT8": """\
from torchao.quantization import Int8WeightOnlyConfig, quantize_
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", dtype=torch.float32)
quantize_(model, Int8WeightOnlyConfig())""",
    "torchao INT4": """\
from torchao.quantization import (IntxWeightOnlyConfig, PerGroup,
                                  quantize_)
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", dtype=torch.float32)
quantize_(model, IntxWeightOnlyConfig(
    weight_dtype=torch.int4, granularity=PerGroup(32)))""",
    "GPTQModel": """\
from gptqmodel import GPTQModel, QuantizeConfig
from transformers import GPTQConfig
work = GPTQModel.load(
    "stories15M", QuantizeConfig(bits=4, group_size=32),
    device="cpu", dtype=torch.float16)
work.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)}
               for ids in texts], batch_size=1)
work.save("out")
model = AutoModelForCausalLM.from_pretrained(
    "out", device_map="cpu", dtype=torch.float32,
    quantization_config=GPTQConfig(bits=4, backend="gptq_torch"))""",
    "llm-compressor": """\
from compressed_tensors.quantization import (QuantizationArgs,
                                             QuantizationScheme)
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
model = AutoModelForCausalLM.from_pretrained(
    "stories15M", dtype=torch.float32)
four_bits = QuantizationArgs(num_bits=4, strategy="group",
                             group_size=32, symmetric=True)
oneshot(model=model, processor=tokenizer,
        dataset=Dataset.from_dict({"input_ids": texts}),
        max_seq_length=256, num_calibration_samples=len(texts),
        recipe=[GPTQModifier(ignore=["lm_head"], config_groups={
            "all": QuantizationScheme(targets=["Linear"],
                                      weights=four_bits)})])
model.save_pretrained("out", save_compressed=True)
model = AutoModelForCausalLM.from_pretrained("out")""",
}


@experiment(rows=NOW, model=SMALL)
def libraries(loaded, rows, *, read=16, measured=8, window=256):
    """The small model by each library: the call, what stands in a layer's place, loss, text."""
    from transformers import AutoModelForCausalLM

    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    told = load_record("part_01.stories").values["tokens"].long()
    with a_folder_with(loaded):
        for row in rows:
            names = {"AutoModelForCausalLM": AutoModelForCausalLM, "torch": torch, "texts": told[:read].tolist()}
            names |= {"tokenizer": loaded.tokenizer}
            start = time.perf_counter()
            exec(NOW[row], names)
            seconds, out = time.perf_counter() - start, Path("out")
            files = measure(loaded, names["model"].eval(), told[16 : 16 + measured], window)
            here = {}
            if out.exists():
                config = json.loads((out / "config.json").read_text())["quantization_config"]
                ours = load_quantized(out)
                same = perplexity(ours, told[16 : 16 + measured].flatten(), window, measured)
                here = {"config": json.dumps(config), "perplexity here": same.value}
                out.rename(f"out of {row}")
            yield row, {"call": NOW[row], "seconds": seconds, **files, **here, "versions": versions()}


def measure(loaded, model, windows, window):
    """Loss, text and what a layer is, before and after its first product."""
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    before = held(layer)
    logging.disable()
    p = perplexity(model, windows.flatten(), window, len(windows))
    ids = loaded.tokenizer(BEGINNING, return_tensors="pt").input_ids
    start = time.perf_counter()
    text = greedy(model, ids, 40)
    pace = 40 / (time.perf_counter() - start)
    logging.disable(logging.NOTSET)
    return {"perplexity": p.value, "nll": p.nll, "text": loaded.tokenizer.decode(text), "tokens a second": pace,
            "layer": type(layer).__name__, "weight": weight_of(layer), "before": before, "after": held(layer)}  # fmt: skip


def greedy(model, ids, count):
    """So many ids, the likeliest every time."""
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, ids.shape[1] :].tolist()


def weight_of(layer):
    weight = getattr(layer, "weight", None)
    return "" if weight is None else f"{type(weight).__name__}, {str(weight.dtype).removeprefix('torch.')}"


def held(layer):
    """Bytes of a layer's tensors, those inside of tensors that only look like one included."""
    tensors = {}
    for each in (*layer.parameters(), *layer.buffers()):
        inner = getattr(each, "tensor_data_names", None) or getattr(type(each), "tensor_data_names", None)
        for tensor in [getattr(each, name) for name in inner] if inner else [each]:
            tensors[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        extra = getattr(each, "SCB", None), getattr(getattr(each, "quant_state", None), "absmax", None)
        extra += (getattr(getattr(layer, "state", None), "SCB", None),)  # where bitsandbytes keeps it after a product
        tensors |= {tensor.data_ptr(): tensor.numel() * tensor.element_size() for tensor in extra if tensor is not None}
    return sum(tensors.values())


# ---- our files in their hands
FILES = {  # row: format, method, and the call that loads it elsewhere
    "compressed-tensors": ("compressed-tensors", RTN(Grid(4, 64)), ""),
    "gptq": ("gptq", RTN(Grid(4, 64)), "gptq_torch"),
    "gptq_v2": ("gptq_v2", RTN(Grid(4, 64, symmetric=False)), "gptq_torch"),
    "awq": ("awq", RTN(Grid(4, 64, symmetric=False)), "torch_awq"),
    "bitsandbytes": ("bitsandbytes", LLMInt8(6.0), ""),
    "Q8_0": ("gguf", RTN(Grid(8, "row", narrow_range=True)), ""),
    "Q4_0": ("gguf", RTN(Grid(4, 32)), ""),
    "Q4_1": ("gguf", RTN(Grid(4, 64, symmetric=False)), ""),
    "its own Q4_1": ("", None, ""),
}


@experiment(rows=FILES)
def our_files(rows, *, tokens=200, words=40):
    """The lesson model, written by quantlib in each format and loaded by another tool: the same answers?"""
    from quantlib.zoo.zoo import SMOLLM2

    loaded = load_lesson_model()
    text = loaded.tokenizer.encode(load_text("wikitext-2", "test")[:4000])[:tokens]
    ids = torch.tensor([text])
    prompt = loaded.tokenizer("The history of the printing press begins", return_tensors="pt").input_ids
    for row in rows:
        format, method, backend = FILES[row]
        ours = quantize_model(loaded.model, method)[0] if method else loaded.model
        with tempfile.TemporaryDirectory() as top:
            target = Path(top) / f"out{'.gguf' * (format == 'gguf')}"
            if format:
                save_quantized(ours, target, format, tokenizer=loaded.tokenizer)
            with torch.inference_mode():
                expected = ours(ids).logits[0].float()
            if format in ("gguf", ""):
                got = by_llama_cpp(target if format else SMOLLM2.paths[0], text, prompt[0].tolist(), words)
            else:
                got = by_transformers(target, backend, ids, prompt, words)
        log_p = expected[:-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        theirs = got.pop("log_probabilities")
        apart = got.pop("logits", None)
        yield row, {
            **got,
            "same likeliest": (got.pop("top") == expected[:-1].argmax(-1)).double().mean().item(),
            "apart": (log_p - theirs).abs().mean().item(),
            "perplexity": log_p.mean().neg().exp().item(),
            "perplexity there": theirs.mean().neg().exp().item(),
            "logits apart": None if apart is None else ((apart - expected).norm() / expected.norm()).item(),
            "text": loaded.tokenizer.decode(got["ids"]),
            "text of ours": loaded.tokenizer.decode(greedy(ours, prompt, words)),
            "versions": versions(),
        }


def by_llama_cpp(file, text, prompt, words):
    from quantlib.measure.llama_cpp import LlamaCpp

    with LlamaCpp(file, context=512) as peer:
        scores, run = peer.score(text), peer.generate(prompt, words)
    return {"log_probabilities": torch.tensor(scores.log_probabilities), "top": torch.tensor(scores.top),
            "ids": list(run.tokens), "layer": peer.build}  # fmt: skip


def by_transformers(folder, backend, ids, prompt, words):
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    kind = AwqConfig if backend == "torch_awq" else GPTQConfig
    options = {"quantization_config": kind(bits=4, backend=backend)} if backend else {}
    model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32, **options).eval()
    logging.disable()
    with torch.inference_mode():
        logits = model(ids).logits[0].float()
    written = greedy(model, prompt, words)
    logging.disable(logging.NOTSET)
    log_p = logits[:-1].log_softmax(-1)
    return {"log_probabilities": log_p.gather(1, ids[0, 1:, None])[:, 0], "top": log_p.argmax(-1), "logits": logits,
            "ids": written, "layer": type(model.get_submodule("model.layers.0.mlp.up_proj")).__name__}  # fmt: skip


# ---- the same few weights, as other tools read them out of our files
BYTES = {
    "gptq": (RTN(Grid(4, 32)), "gptq_torch"),
    "gptq_v2": (RTN(Grid(4, 32, symmetric=False)), "gptq_torch"),
    "awq": (RTN(Grid(4, 32, symmetric=False)), "torch_awq"),
    "compressed-tensors": (RTN(Grid(4, 32)), ""),
    "bitsandbytes": (LLMInt8(6.0), ""),
}
LAYER = "model.layers.1.mlp.up_proj"


@experiment(rows=BYTES, model=SMALL)
def weights_read(loaded, rows, *, count=64):
    """The first weights of a layer of the small model as the layer of another tool multiplies by them."""
    from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

    for row in rows:
        method, backend = BYTES[row]
        with tempfile.TemporaryDirectory() as top:
            save_quantized(quantize_model(loaded.model, method)[0], Path(top) / "out", row)
            kind = AwqConfig if backend == "torch_awq" else GPTQConfig
            options = {"quantization_config": kind(bits=4, backend=backend)} if backend else {}
            model = AutoModelForCausalLM.from_pretrained(
                Path(top) / "out", device_map="cpu", dtype=torch.float32, **options
            ).eval()
        layer = model.get_submodule(LAYER)
        if row == "compressed-tensors":  # unpacked before the model's first product
            model(torch.tensor([[1]]))
            w = layer.weight.detach()
        elif row == "bitsandbytes":
            w = layer.weight.float() * layer.weight.SCB[:, None] / 127
        else:
            dtype = torch.float16 if backend else torch.float32
            with torch.inference_mode():
                w = layer(torch.eye(layer.in_features, dtype=dtype)).t()  # [out, in]
        yield row, {"weights": w[0, :count].contiguous(), "layer": type(layer).__name__, "versions": versions()}


# ---- what goes wrong
@experiment(rows=("v1", "v1 read as v2", "v2 read as v1"), model=SMALL)
def labels(loaded, rows, *, measured=8, window=256):
    """A symmetric GPTQ file whose checkpoint_format says the other version, in GPTQModel: loss and text."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    told = load_record("part_01.stories").values["tokens"].long()
    model = quantize_model(loaded.model, RTN(Grid(4, 32)))[0]
    for row in rows:
        written, says = {"v1": ("gptq", "gptq"), "v1 read as v2": ("gptq", "gptq_v2"),
                         "v2 read as v1": ("gptq_v2", "gptq")}[row]  # fmt: skip
        with tempfile.TemporaryDirectory() as top:
            out = Path(top) / "out"
            save_quantized(model, out, written)
            for file in out.glob("*.json"):
                content = json.loads(file.read_text())
                found = content.get("quantization_config", content)
                if "checkpoint_format" in found:
                    found["checkpoint_format"] = found["format"] = says
                    file.write_text(json.dumps(content))
            try:
                load_quantized(out)
                refused = ""
            except ValueError as error:
                refused = str(error)
            theirs = AutoModelForCausalLM.from_pretrained(
                out, device_map="cpu", dtype=torch.float32, quantization_config=GPTQConfig(bits=4, backend="gptq_torch")
            ).eval()
        found = measure(loaded, theirs, told[16 : 16 + measured], window)
        yield row, {"perplexity": found["perplexity"], "text": found["text"], "refused": refused, "versions": versions()}


@experiment(model=SMALL)
def train_mode(loaded, *, tokens=64):
    """bitsandbytes' layer on inputs with outliers, in eval mode and in train mode, with a threshold and without."""
    import bitsandbytes

    logging.disable()
    g = torch.Generator().manual_seed(0)
    w = loaded.model.get_submodule(LAYER).weight.detach()
    x = torch.randn(tokens, w.shape[1], generator=g)
    x[:, [5, 77]] *= 40  # two features far beyond the threshold
    expected, errors, outputs = x @ w.t(), {}, {}
    for name, threshold, train in (("eval, 6", 6.0, False), ("train, 6", 6.0, True),
                                   ("eval, none", 0.0, False), ("train, none", 0.0, True)):  # fmt: skip
        layer = bitsandbytes.nn.Linear8bitLt(*reversed(w.shape), bias=False, has_fp16_weights=False, threshold=threshold)
        layer.weight = bitsandbytes.nn.Int8Params(w.clone(), requires_grad=False, has_fp16_weights=False)
        layer = layer.to("cpu").train(train)
        with torch.no_grad():
            got = layer(x.half()).float()
        errors[name], outputs[name] = ((got - expected).norm() / expected.norm()).item(), got
    logging.disable(logging.NOTSET)
    codes, step = layer.state.CB.float(), layer.state.SCB[:, None] / 127
    alone = x.half().float() @ (codes * step).t()  # the weights rounded, the inputs not
    return {"errors": errors, "train is the same without a threshold": outputs["train, 6"].equal(outputs["train, none"]),
            "train from weights alone": ((outputs["train, 6"] - alone).norm() / alone.norm()).item(),
            "versions": versions()}  # fmt: skip


@experiment(rows=("rounded", "256 tokens, damping 0.01", "256 tokens, damping 0"), model=SMALL)
def cholesky(loaded, rows, *, window=256):
    """llm-compressor's GPTQ with a Hessian that has no inverse: what it says, and whose codes it writes."""
    from llmcompressor import oneshot
    from loguru import logger
    from transformers import AutoModelForCausalLM

    told = load_record("part_01.stories").values["tokens"].long()
    with a_folder_with(loaded):
        for row in rows:
            model = AutoModelForCausalLM.from_pretrained("stories15M", dtype=torch.float32)
            said = []
            logger.remove()
            sink = logger.add(lambda message: said.append(str(message).strip()), level="WARNING", format="{message}")
            oneshot(model=model, processor=loaded.tokenizer, dataset=ids_as_dataset(told[:1, :window]),
                    max_seq_length=window, num_calibration_samples=1, recipe=[recipe_for(row)])  # fmt: skip
            logger.remove(sink)
            model.save_pretrained(row, save_compressed=True)
            same = [share_nearest(layer.quantized(), loaded.model.get_submodule(name).weight)
                    for name, layer in quantized_layers(load_quantized(row)).items()]  # fmt: skip
            warned = [words for words in said if "hessian" in words.lower()]
            yield row, {"layers": len(same), "as rounded": sum(share > 0.999 for share in same), "nearest": same,
                        "warnings": len(warned), "says": warned[:1] + warned[-1:], "versions": versions()}  # fmt: skip


def quantized_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)}


def share_nearest(q, w):
    """The share of the codes that are the nearest on their own scales."""
    step = q.scale.float().repeat_interleave(q.grid.group_size, dim=1)
    return (w / step).round().clamp(q.grid.qmin, q.grid.qmax).eq(q.codes).double().mean().item()


def ids_as_dataset(ids):
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": ids.tolist()})


def recipe_for(row):
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    weights = QuantizationArgs(num_bits=4, strategy="group", group_size=32, symmetric=True)
    options = {"ignore": ["lm_head"],
               "config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=weights)}}  # fmt: skip
    if row == "rounded":
        return QuantizationModifier(**options)
    return GPTQModifier(dampening_frac=float(row.rpartition(" ")[2]), **options)


SIZES = {
    "GPTQModel": """\
import torch
from gptqmodel import GPTQModel, QuantizeConfig
work = GPTQModel.load("stories15M", QuantizeConfig(bits=4, group_size=128), device="cpu", dtype=torch.float16)
ids = list(range(3, 259))
work.quantize([{"input_ids": ids, "attention_mask": [1] * 256}] * 4, batch_size=1)
work.save("by GPTQModel")
import json
print(json.load(open("by GPTQModel/config.json"))["quantization_config"]["group_size"])""",
    "llm-compressor": """\
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained("stories15M")
oneshot(model=model, recipe=[QuantizationModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"])])
model.save_pretrained("by llm-compressor", save_compressed=True)
print(list(model.model.layers[0].mlp.up_proj.weight_scale.shape))""",
}


@experiment(rows=SIZES, model=SMALL)
def groups_of_128(loaded, rows):
    """Groups of 128 asked for where the rows have 288 weights."""
    with a_folder_with(loaded, dtype=torch.float16):
        for row in rows:
            kind, words = the_last_words(SIZES[row])
            yield row, {"call": SIZES[row], "error": kind, "says": words[-400:], "versions": versions()}
