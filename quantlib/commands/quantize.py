"""`python -m quantlib quantize MODEL OUT`: a model's linear layers in few bits, in a format that other tools load."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from quantlib.commands.opening import (
    MODEL,
    TEXT,
    Opened,
    ending_well,
    folder_bytes,
    length_for,
    open_model,
    read_text,
    size,
    whole,
)

EXAMPLES = """\
examples:
  python -m quantlib quantize SmolLM2-135M-Instruct small-int4 --method gptq
  python -m quantlib quantize ./my-llama my-llama-awq --method awq --group-size 128 --asymmetric --calibration my.txt
  python -m quantlib quantize stories15M stories-int8 --method llm-int8
  python -m quantlib quantize SmolLM2-135M-Instruct small.gguf --method rtn --bits 8 --group-size 32 --format gguf

what loads the formats:
  gptq, gptq_v2, awq, compressed-tensors   transformers, vLLM; quantlib.load_quantized
  bitsandbytes                             transformers with bitsandbytes; quantlib.load_quantized
  gguf                                     llama.cpp, Ollama
"""
METHODS = "rtn", "gptq", "awq", "llm-int8"
FORMATS = "gptq", "gptq_v2", "awq", "compressed-tensors", "bitsandbytes", "gguf"
LOADERS = {
    "gguf": "llama-cli -m {out}",
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained({out!r}) with bitsandbytes installed",
}
LOADER = "AutoModelForCausalLM.from_pretrained({out!r}), vllm serve {out}"


def parser() -> argparse.ArgumentParser:
    """The words that the command takes."""
    p = argparse.ArgumentParser(
        description="Quantize the linear layers of MODEL and write OUT, a new folder (a new file for gguf).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument("out", metavar="OUT", type=Path, help="what is written; it must not exist yet")
    p.add_argument("--method", choices=METHODS, default="gptq", help="default: gptq, through attention (part 4)")
    p.add_argument("--bits", type=int, help="2 to 8; default: 4, or 8 for llm-int8")
    p.add_argument("--group-size", help="weights that share a scale, or row; default: 64, or 32 where 64 does not divide")
    p.add_argument("--asymmetric", action="store_true", help="a grid with a zero point")
    p.add_argument("--format", choices=FORMATS, help="default: what fits the method")
    p.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave layers of this name (repeatable)")
    p.add_argument("--with-head", action="store_true", help="quantize the head (lm_head) as well")
    read = f"what gptq and awq read: {TEXT} (default: its validation set)"
    p.add_argument("--calibration", default="wikitext-2", metavar="TEXT", help=read)
    p.add_argument("--samples", type=whole, default=32, help="windows of it (default: %(default)s)")
    p.add_argument("--length", type=whole, default=1024, help="tokens of a window (default: %(default)s, if the model can)")
    p.add_argument("--seed", type=int, default=0, help="which windows are drawn")
    p.add_argument("--plain", action="store_true", help="gptq as in the paper: layers by their own outputs")
    p.add_argument("--refined", action="store_true", help="gptq with searched scales and a quarter of the residual")
    p.add_argument("--dtype", choices=("bfloat16", "float16"), help="of what is not quantized; default: as loaded")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantize and write; 0, 1 with a sentence, 2 for words that make no sense, 130 for Ctrl-C."""
    p = parser()
    options = p.parse_args(arguments)
    if options.plain and options.refined:
        p.error("--plain and --refined exclude each other")
    if (options.plain or options.refined) and options.method != "gptq":
        p.error("--plain and --refined are settings of --method gptq")
    asked = options.bits or 8, options.group_size or "row", options.asymmetric
    if options.method == "llm-int8" and asked != (8, "row", False):
        p.error("--method llm-int8 has 8 bits, a scale a row, symmetric: leave out --bits, --group-size, --asymmetric")
    return ending_well(lambda: _run(options))


def method_of(options: argparse.Namespace, columns: Sequence[int]):
    """The method, as quantize_model takes it, for layers of so many columns. Raises ValueError for a grid that is none."""
    from quantlib.models.awq import AWQ
    from quantlib.models.convert import GPTQ, RTN, LLMInt8
    from quantlib.numerics.grid import Grid

    if options.method == "llm-int8":
        return LLMInt8()
    group = options.group_size or ("64" if all(n % 64 == 0 for n in columns) else "32")
    bits = 4 if options.bits is None else options.bits
    grid = Grid(bits, int(group) if group.isdigit() else group, symmetric=not options.asymmetric)
    if options.method == "rtn":
        return RTN(grid)
    if options.method == "awq":
        return AWQ(grid)
    if options.plain:
        return GPTQ(grid)
    refined = {"search_scales": True, "residual": 0.25} if options.refined else {}
    return GPTQ(grid, through_attention=True, **refined)


def format_for(options: argparse.Namespace) -> str:
    """What was asked for, or what the method's own files are."""
    if options.format:
        return options.format
    if options.method == "gptq":
        return "gptq_v2" if options.asymmetric else "gptq"
    if options.method == "awq" and options.asymmetric and options.bits in (None, 4):
        return "awq"
    return "bitsandbytes" if options.method == "llm-int8" else "compressed-tensors"


def _run(options: argparse.Namespace) -> int:
    import torch

    from quantlib.models.checkpoints.folder import check_new
    from quantlib.models.checkpoints.saving import check_format, save_quantized
    from quantlib.models.convert import RTN, quantize_model
    from quantlib.models.sizes import model_shape

    check_new(options.out.expanduser().absolute())
    format = format_for(options)
    opened = open_model(options.model)
    if opened.quantized:
        raise ValueError(f"{options.model} is quantized already: name the float model")
    skip = (*(() if options.with_head else ("lm_head",)), *options.skip)
    columns = [columns for (_, columns), _ in model_shape(opened.model, skip).linears]
    method = method_of(options, columns)
    if options.method in ("gptq", "awq"):  # what the format cannot hold is said before the text is read
        check_format(quantize_model(opened.model, RTN(method.grid), skip=skip)[0], format, opened.tokenizer)
        model, report = quantize_model(opened.model, method, _windows(options, opened), skip=skip)
    else:
        model, report = quantize_model(opened.model, method, skip=skip)
    if options.dtype:
        model = model.to(getattr(torch, options.dtype))
    save_quantized(model, options.out, format, tokenizer=opened.tokenizer)
    print(f"{options.out}: {options.method} as {format}, {result(report)}")
    print(f"{size(folder_bytes(options.out))} on disk; {LOADERS.get(format, LOADER).format(out=str(options.out))}")
    for line in str(report).splitlines():
        if "SCALES TOO SMALL" in line or "no rule covers" in line:
            print(line.strip())
    return 0


def result(report) -> str:
    """Bits, bytes and error of what was converted, in a line."""
    weights = [layer.shape[0] * layer.shape[1] for layer in report.layers]
    error = (sum(layer.error**2 * n for layer, n in zip(report.layers, weights, strict=True)) / sum(weights)) ** 0.5
    said = (
        f"{report.bits_per_weight:.2f} bits a weight, {len(report.layers)} linear layers from "
        f"{size(report.bytes_before)} to {size(report.bytes_after)}, weights {100 * error:.1f} % off"
    )
    if any(layer.tokens for layer in report.layers):
        import statistics

        of_rounding = [l.output_error / l.rounding_error for l in report.layers if l.rounding_error]
        said += f", outputs lose {statistics.median(of_rounding):.2f} of what rounding loses (median)"
    return said


def _windows(options: argparse.Namespace, opened: Opened):
    from quantlib.models.windows import token_windows

    text, length = read_text(options.calibration, "validation"), length_for(opened, options.length)
    return token_windows(text, opened.tokenizer, length, options.samples, options.seed)
