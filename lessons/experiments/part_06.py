"""What part 6 measures on whole models: GPTQ that has read one text or another, more of it or less."""

import argparse
import difflib
import inspect

import torch

from quantlib import GPTQ, RTN, Grid, load_text, perplexity, quantize_model, token_windows
from quantlib.models.linears import dequantized
from quantlib.records import experiment, load_record

MODEL = "SmolLM2-135M-Instruct"


@experiment()
def code():
    """Python of the standard library (PSF licence): a text to read, and another to measure on."""
    return {"read": inspect.getsource(argparse)[:45_000], "measured": inspect.getsource(difflib)[:25_000]}


def drawn(loaded, start, count, length):
    """What a model writes when every token is drawn with the probability that it gives it: [count, length]."""
    ids, cache = torch.full((count, 1), start), None
    while ids.shape[1] < length:
        with torch.inference_mode():
            out = loaded.model(ids[:, -1:], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        likely = out.logits[:, -1].softmax(-1)  # [count, vocabulary]
        ids = torch.cat([ids, torch.multinomial(likely, 1)], dim=1)  # [count, so far + 1]
    return ids.int()


@experiment(model=MODEL)
def written(loaded, *, count=8, length=1024):
    """What the lesson model writes by itself."""
    return {"tokens": drawn(loaded, loaded.tokenizer.eos_token_id, count, length)}


@experiment(model="stories15M")
def more_stories(loaded, *, count=96, length=256):
    """What the small model tells, beside the stories of part 1."""
    return {"tokens": drawn(loaded, loaded.tokenizer.bos_token_id, count, length)}


def text_to_read(loaded, name, told, length, count, seed):
    """Windows of a text, [count, length]; told: what the model itself has written."""
    size = loaded.model.config.vocab_size  # a miniature knows fewer words
    generator = torch.Generator().manual_seed(seed)
    match name:
        case "WikiText-2":
            return token_windows(load_text("wikitext-2", "validation")[:300_000], loaded.tokenizer, length, count, seed)
        case "Python":
            return token_windows(load_record("part_06.code").values["read"], loaded.tokenizer, length, count, seed)
        case "its own":
            chosen = torch.randperm(len(told), generator=generator)[:count]
            return told[chosen, :length].long() % size
        case "random tokens":
            return torch.randint(size, (count, length), generator=generator)


def losses(loaded, model, text, windows, window):
    """Perplexity and the loss of every token on the beginning of a text."""
    ids = torch.tensor(loaded.tokenizer(text[:100_000]).input_ids[: windows * window])
    p = perplexity(dequantized(model), ids, window, windows)
    return {"perplexity": p.value, "nll": p.nll}


TEXTS = "float", "rounded", "WikiText-2", "its own", "Python", "random tokens"


@experiment(rows=TEXTS, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def perplexity_by_text(loaded, rows, *, count=8, seed=0, windows=8, window=1024):
    """Four bits, a scale per 64, by GPTQ through attention that has read each text; measured on two texts."""
    told, python = load_record("part_06.written").values["tokens"], load_record("part_06.code").values["measured"]
    on = Grid(4, 64)
    for row in rows:
        model = loaded.model
        if row == "rounded":
            model, _ = quantize_model(model, RTN(on))
        elif row != "float":
            read = text_to_read(loaded, row, told, window, count, seed)
            model, _ = quantize_model(model, GPTQ(on, through_attention=True), read)
        yield row, {
            "WikiText-2": losses(loaded, model, load_text("wikitext-2", "test"), windows, window),
            "Python": losses(loaded, model, python, min(windows, 4), window),
        }


def padded_lines(loaded, text, count, length, pad):
    """A recipe that circulates: the first lines of a text, each by itself, filled up: [count, length]."""
    rows = [loaded.tokenizer.encode(line, add_special_tokens=False)[:length] for line in text.split("\n")[:count]]
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


CUTS = "1024", "256", "64", "1024, BOS", "64, BOS", "64, attention", "64, lines padded", "64, lines"


# the miniature's few lines leave H nearly singular: the last bit of a CPU's sums decides between two codes
@experiment(rows=CUTS, model=MODEL, miniature={"tokens": 128, "windows": 2, "window": 64}, tolerance=0.05)
def perplexity_by_cut(loaded, rows, *, tokens=8192, seed=0, windows=8, window=1024):
    """As many tokens of the same text: in windows of one length or another, after a BOS or not; or lines, filled up with
    a token that the model takes for text, or with the one that it knows as padding, which then is left out.
    """
    wiki, test = load_text("wikitext-2", "validation")[:300_000], load_text("wikitext-2", "test")
    for row in rows:
        length, _, how = row.partition(", ")
        length = min(int(length), tokens // 2)
        read = token_windows(wiki, loaded.tokenizer, length, tokens // length, seed)
        if how == "BOS":
            first = torch.full((len(read), 1), loaded.model.config.bos_token_id)
            read = torch.cat([first, read[:, :-1]], dim=1)  # as long as without
        elif how.startswith("lines"):
            pad = 0 if how.endswith("padded") else loaded.model.config.pad_token_id or 0
            read = padded_lines(loaded, wiki, len(read), length, pad)
        model, _ = quantize_model(loaded.model, GPTQ(Grid(4, 64), through_attention=how == "attention"), read)
        yield row, losses(loaded, model, test, windows, window)


@experiment(
    rows=[f"{bits} bits, {which}" for bits in (3, 4) for which in ("another text", "the test")],
    model=MODEL, miniature={"count": 2, "window": 64})
def calibrated_on_the_test(loaded, rows, *, count=8, seed=0, window=1024):
    """GPTQ through attention that has read another text, or the very windows that it is measured on."""
    wiki, test = load_text("wikitext-2", "validation")[:300_000], load_text("wikitext-2", "test")[:100_000]
    read = {
        "another text": token_windows(wiki, loaded.tokenizer, window, count, seed),
        "the test": torch.tensor(loaded.tokenizer(test).input_ids[: count * window]).view(count, window),
    }
    for row in rows:
        bits, which = row.split(" bits, ")
        model, _ = quantize_model(loaded.model, GPTQ(Grid(int(bits), 64), through_attention=True), read[which])
        yield row, losses(loaded, model, test, count, window)


def measured_on_stories(loaded, method, read, windows, window):
    """Perplexity of the small model on half of the stories of part 1."""
    model, _ = quantize_model(loaded.model, method, read)
    told = load_record("part_01.stories").values["tokens"][16:] % loaded.model.config.vocab_size
    return perplexity(dequantized(model), told[:windows, :window].flatten().long(), window, windows)


COUNTS = 1, 2, 4, 8, 16, 32, 64
STORY_TEXTS = "its own", "WikiText-2", "random tokens"


@experiment(
    rows=["rounded", *(f"{text}, {count}" for text in STORY_TEXTS for count in COUNTS)],
    model="stories15M", miniature={"most": 2, "seeds": 1, "windows": 2, "window": 32}, tolerance=1e-4)
def stories_by_text(loaded, rows, *, most=64, seeds=5, windows=16, window=256):
    """The small model in three bits, a scale per 32: by text and number of windows; a perplexity for every draw."""
    on, told = Grid(3, 32), load_record("part_06.more_stories").values["tokens"]
    for row in rows:
        if row == "rounded":
            yield row, [measured_on_stories(loaded, RTN(on), None, windows, window).value]
            continue
        text, count = row.split(", ")
        reads = (text_to_read(loaded, text, told, window, min(int(count), most), seed) for seed in range(seeds))
        yield row, [measured_on_stories(loaded, GPTQ(on), read, windows, window).value for read in reads]


@experiment(
    rows=[f"{bits} bits, {which}" for bits in (3, 4) for which in ("other stories", "the test")],
    model="stories15M", miniature={"windows": 2, "window": 32})
def stories_on_the_test(loaded, rows, *, windows=16, window=256):
    """The small model, calibrated on as many other stories, or on the very stories that it is measured on."""
    told = load_record("part_01.stories").values["tokens"] % loaded.model.config.vocab_size
    read = {"other stories": told[:windows, :window].long(), "the test": told[16 : 16 + windows, :window].long()}
    for row in rows:
        bits, which = row.split(" bits, ")
        p = measured_on_stories(loaded, GPTQ(Grid(int(bits), 32)), read[which], windows, window)
        yield row, {"perplexity": p.value, "nll": p.nll}
