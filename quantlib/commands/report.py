"""`python -m quantlib report MODEL`: the book's table for the reader's own model, as one page. Start from :func:`main`."""

from __future__ import annotations

import argparse
import html
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.commands.opening import (
    MODEL,
    TEXT,
    Opened,
    ending_well,
    length_for,
    open_model,
    read_text,
    tokens_of,
    whole,
)

EXAMPLES = """\
examples:
  python -m quantlib report SmolLM2-135M-Instruct
  python -m quantlib report ./my-llama --out my-llama.html --calibration my.txt --methods int8 rtn gptq
"""
COLUMNS = (
    "method", "bits a weight", "linear layers, MB", "perplexity", "nats a token, against float", "95 % interval",
    "KL, nats", "same first token", "seconds to quantize",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """A line of the table, in the order of COLUMNS."""

    cells: tuple[str, ...]


def methods(group_size: int) -> dict:
    """By the name that --methods takes: (words, method, whether it reads text)."""
    from quantlib.models.awq import AWQ
    from quantlib.models.convert import GPTQ, RTN, LLMInt8
    from quantlib.numerics.grid import Grid

    four, asymmetric = Grid(4, group_size), Grid(4, group_size, symmetric=False)
    return {
        "int8": ("int8, a scale a row, rounded", RTN(Grid(8)), False),
        "llm-int8": ("LLM.int8(), activations too", LLMInt8(), False),
        "rtn": (f"int4, a scale per {group_size}, rounded", RTN(four), False),
        "awq": ("the same by AWQ, asymmetric", AWQ(asymmetric), True),
        "gptq": ("the same by GPTQ, through attention", GPTQ(four, through_attention=True), True),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print or write the page; 0, 1 with a sentence, 2 for words that make no sense, 130 for Ctrl-C."""
    names = "int8", "llm-int8", "rtn", "awq", "gptq"
    p = argparse.ArgumentParser(
        description="Quantize MODEL in a few ways and measure each on the same text: bytes, perplexity, the paired "
        "difference to the float model with its interval, KL divergence. Nothing of the model is written.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help=MODEL)
    p.add_argument("--out", type=Path, help="a new file, .html or .md; default: Markdown to the terminal")
    some = f"of {', '.join(names)}"
    p.add_argument("--methods", nargs="+", choices=names, default=list(names), metavar="NAME", help=some)
    p.add_argument("--group-size", type=whole, default=64, help="of the int4 rows (default: %(default)s)")
    p.add_argument("--text", default="wikitext-2", help=f"measured on: {TEXT} (default: its test set)")
    p.add_argument("--windows", type=whole, default=8, help="of it (default: %(default)s)")
    read = f"read by awq and gptq: {TEXT} (default: its validation set)"
    p.add_argument("--calibration", default="wikitext-2", metavar="TEXT", help=read)
    p.add_argument("--samples", type=whole, default=8, help="windows of it (default: %(default)s)")
    p.add_argument("--length", type=whole, default=1024, help="tokens of a window (default: %(default)s, if the model can)")
    p.add_argument("--seed", type=int, default=0, help="which calibration windows are drawn")
    options = p.parse_args(arguments)
    if options.out and options.out.suffix not in (".html", ".md"):
        p.error(f"--out {options.out}: name a file that ends in .html or .md")
    if options.windows < 2:
        p.error("--windows: an interval needs at least 2")
    return ending_well(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from quantlib.models.checkpoints.folder import check_new, new_file

    if options.out:
        check_new(options.out.expanduser().absolute())
    opened = open_model(options.model)
    if opened.quantized:
        raise ValueError(f"{options.model} is quantized already: name the float model; eval measures this one")
    rows, protocol = table(options, opened)
    notes = [
        f"Measured on {options.text}: {protocol}.",
        f"awq and gptq read {options.samples} windows of {options.calibration}, seed {options.seed}.",
        "An interval that holds 0 is a tie. Head and embeddings stay as they are.",
    ]
    title = f"{options.model}, quantized"
    if options.out is None:
        print(as_markdown(title, rows, notes))
        return 0
    page = (as_html if options.out.suffix == ".html" else as_markdown)(title, rows, notes)
    with new_file(options.out) as work:
        work.write_text(page, encoding="utf-8")
    print(f"{options.out}: {len(rows)} rows")
    return 0


def table(options: argparse.Namespace, opened: Opened) -> tuple[list[Row], str]:
    """The rows, the float model's first, and the protocol in words."""
    from quantlib.measure.evaluate import compare, paired_bootstrap, perplexity
    from quantlib.models.convert import quantize_model
    from quantlib.models.windows import token_windows

    length = length_for(opened, options.length)
    evaluation = read_text(options.text, "test")
    ids = tokens_of(evaluation, opened, length, options.windows)
    chosen = {name: known for name, known in methods(options.group_size).items() if name in options.methods}
    windows = None
    if any(reads for _, _, reads in chosen.values()):
        text = read_text(options.calibration, "validation")
        windows = token_windows(text, opened.tokenizer, length, options.samples, options.seed, evaluation=evaluation)
    before = perplexity(opened.model, ids, length, options.windows)
    rows = []
    for words, method, reads in chosen.values():
        print(f"{words} …", file=sys.stderr, flush=True)
        start = time.perf_counter()
        model, report = quantize_model(opened.model, method, *([windows] if reads else []))
        seconds = time.perf_counter() - start
        if not rows:
            bits = statistics.mean(8 * l.bytes_before / (l.shape[0] * l.shape[1]) for l in report.layers)
            floats = f"{bits:.2f}", f"{report.bytes_before / 1e6:.1f}", f"{before.value:.2f}"
            rows.append(Row(("float, as it is loaded", *floats, *["–"] * 5)))
        found = perplexity(model, ids, length, options.windows)
        d, near = paired_bootstrap(before, found), compare(opened.model, model, ids, length, options.windows)
        rows.append(Row((
            words, f"{report.bits_per_weight:.2f}", f"{report.bytes_after / 1e6:.1f}", f"{found.value:.2f}",
            f"{d.mean:+.4f}", f"{d.low:+.4f} to {d.high:+.4f}", f"{near.kl:.4f}", f"{100 * near.top1:.1f} %",
            f"{seconds:.0f}",
        )))  # fmt: skip
    return rows, str(before.protocol)


def as_markdown(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """A Markdown page."""
    lines = [f"# {title}", "", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    return "\n".join([*lines, "", *notes, ""])


STYLE = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "div{overflow-x:auto}table{border-collapse:collapse}th,td{padding:.4rem .8rem;border-bottom:1px solid #8886;"
    "text-align:right;font-variant-numeric:tabular-nums}th{vertical-align:bottom;font-weight:500}"
    ":is(th,td):first-child{text-align:left}"
)


def as_html(title: str, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """A page that stands alone."""

    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row.cells, "td") for row in rows)
    said = "\n".join(f"<p>{html.escape(note)}</p>" for note in notes)
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n"
        f"<div><table><thead>{line(COLUMNS, 'th')}</thead><tbody>\n{body}\n</tbody></table></div>\n{said}\n</html>\n"
    )
