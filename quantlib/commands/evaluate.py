"""`python -m quantlib eval MODEL`: perplexity on a text, and how far from another model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from quantlib.commands.opening import MODEL, TEXT, ending_well, length_for, open_model, read_text, tokens_of, whole

EXAMPLES = """\
examples:
  python -m quantlib eval SmolLM2-135M-Instruct
  python -m quantlib eval small-int4 --against SmolLM2-135M-Instruct
  python -m quantlib eval small-int4 --against SmolLM2-135M-Instruct --text my.txt --windows 20
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what was measured; 0, 1 with a sentence, 2 for words that make no sense, 130 for Ctrl-C."""
    p = argparse.ArgumentParser(
        description="Perplexity of MODEL, float or quantized, in disjoint windows without BOS; and, against another "
        "model, the paired difference with its 95 % interval over windows, KL divergence and top-1 agreement.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("model", metavar="MODEL", help=f"{MODEL}; quantized folders too")
    p.add_argument("--against", metavar="MODEL", help="the reference")
    p.add_argument("--text", default="wikitext-2", help=f"{TEXT} (default: wikitext-2, its test set)")
    p.add_argument("--windows", type=whole, default=8, help="how many (default: %(default)s)")
    p.add_argument("--length", type=whole, default=1024, help="tokens of each (default: %(default)s, if the model can)")
    options = p.parse_args(arguments)
    return ending_well(lambda: _run(options))


def _run(options: argparse.Namespace) -> int:
    from quantlib.measure.evaluate import compare, paired_bootstrap, perplexity

    text = read_text(options.text, "test")
    opened = open_model(options.model)
    length = length_for(opened, options.length)
    reference = None
    if options.against:
        reference = open_model(options.against)
        length = length_for(reference, length)
    ids = tokens_of(text, opened, length, options.windows)
    if reference is not None and not ids.equal(tokens_of(text, reference, length, options.windows)):
        raise ValueError(f"{options.model} and {options.against} split the text into other tokens: nothing can be paired")
    found = perplexity(opened.model, ids, length, options.windows)
    print(f"{options.model}: perplexity {found}")
    if reference is None:
        return 0
    before = perplexity(reference.model, ids, length, options.windows)
    print(f"{options.against}: perplexity {before.value:.2f}")
    if len(found.nll) > 1:
        print(f"nats a token, {options.model} − {options.against}: {paired_bootstrap(before, found)}")
    else:
        mean = (found.nll.double() - before.nll.double()).mean().item()
        print(f"nats a token, {options.model} − {options.against}: {mean:+.4f} (an interval needs two windows)")
    agreement = compare(reference.model, opened.model, ids, length, options.windows)
    print(f"KL {agreement.kl:.4f} nats, the same token first in {100 * agreement.top1:.1f} %")
    return 0
