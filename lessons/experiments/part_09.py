"""What part 9 measures: adapters on frozen codes, errors along a text, chains of answers, embeddings, long contexts, and
other languages."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from quantlib import GPTQ, RTN, Grid, load_text, perplexity, quantize, quantize_model, token_windows
from quantlib.measure.answers import answers, beside
from quantlib.models.linears import dequantized
from quantlib.records import experiment, load_record
from quantlib.zoo.languages import LANGUAGES, load_declaration

MODEL = "SmolLM2-135M-Instruct"
GRIDS = {"8 bits": Grid(8), "4 bits": Grid(4, 64, symmetric=False)}
STORY_GRIDS = {bits: Grid(int(bits[0]), 32, symmetric=False) for bits in ("4 bits", "3 bits")}


def frozen(model, base):
    """A copy, its linear layers on codes of bitsandbytes (int8, or NF4 in blocks of 64), or float; nothing to train."""
    import bitsandbytes as bnb

    model = copy.deepcopy(model).requires_grad_(False)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in layers:
        if base == "float" or name == "lm_head":
            continue
        out, columns = layer.weight.shape
        if base == "int8":
            new = bnb.nn.Linear8bitLt(columns, out, False, has_fp16_weights=False, threshold=6.0)
            new.load_state_dict(layer.state_dict())
            model.is_loaded_in_8bit = True  # where PEFT looks
        else:
            new = bnb.nn.Linear4bit(columns, out, False, compute_dtype=torch.float32, quant_type="nf4")
            new.weight = bnb.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4", module=new)
            model.is_loaded_in_4bit = True
        model.set_submodule(name, new.to("cpu"))  # which rounds
    return model.eval()  # in training mode bitsandbytes ignores the threshold on a CPU


def with_adapters(model, rank, seed):
    """PEFT's adapters beside every linear layer of the blocks."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=kinds)).eval()


def losses(model, windows):
    """The loss of every prediction, float32 [windows, length - 1]; one window at a time."""
    found = []
    with torch.no_grad():
        for ids in windows:
            logits = model(input_ids=ids[None]).logits[0, :-1].float()
            found.append(F.cross_entropy(logits, ids[1:], reduction="none"))
    return torch.stack(found)


def trained(model, read, held, steps, rate, every, seed):
    """Loss on held-out windows before, between and behind so many steps of AdamW, one window each."""
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    order = torch.randperm(len(read), generator=torch.Generator().manual_seed(seed))
    curve = [losses(model, held).mean(1)]
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 10)
        ids = read[order[step % len(read)]][None]
        F.cross_entropy(model(input_ids=ids).logits[0, :-1].float(), ids[0, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % every == 0:
            curve.append(losses(model, held).mean(1))
    return torch.stack(curve)  # [steps / every + 1, windows]


def moved(adapters, other):
    """The same adapters beside another base."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    set_peft_model_state_dict(other, get_peft_model_state_dict(adapters))
    return other


def bytes_of(model):
    """Of the linear layers in the blocks, codes and their scales."""
    total = 0
    for name, p in model.named_parameters():
        if ".layers." in name and "norm" not in name and "lora" not in name:
            total += p.numel() * p.element_size()
            state = getattr(p, "quant_state", None)
            total += 0 if state is None else state.absmax.numel() * state.absmax.element_size()
            total += 0 if getattr(p, "SCB", None) is None else p.SCB.numel() * p.SCB.element_size()
    return total


def fine_tuned(loaded, base, read, held, steps, rate, rank, every, seed):
    model = frozen(loaded.model, base)
    size = bytes_of(model)
    model = with_adapters(model, rank, seed)
    share = sum(p.numel() for p in model.parameters() if p.requires_grad)
    curve = trained(model, read, held, steps, rate, every, seed)
    values = {"curve": curve, "every": every, "bytes": size, "trained": share}
    if base == "float":
        other = with_adapters(frozen(loaded.model, "NF4"), rank, seed)
        values["moved to NF4"] = losses(moved(model, other), held).mean(1)
    return values


BASES = "float", "int8", "NF4"


@experiment(rows=BASES, model=MODEL)
def adapters(loaded, rows, *, steps=60, rate=1e-3, rank=8, windows=16, length=64, every=20, seed=0):
    """The lesson model learns to tell stories: PEFT's adapters on a frozen base. Needs bitsandbytes and peft; depends on
    their versions, and is a fact of its date."""
    from quantlib import load_model

    teller = load_model("stories15M").tokenizer
    texts = {}
    for name, told in (("read", "part_06.more_stories"), ("held", "part_01.stories")):
        stories = teller.batch_decode(load_record(told).values["tokens"].tolist(), skip_special_tokens=True)
        ids = loaded.tokenizer("\n\n".join(stories)).input_ids
        texts[name] = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
    for row in rows:
        yield row, fine_tuned(loaded, row, texts["read"], texts["held"][:windows], steps, rate, rank, every, seed)


@experiment(rows=[f"{base} {seed}" for seed in range(3) for base in BASES], model="stories15M")
def adapters_on_stories(loaded, rows, *, steps=60, rate=2e-3, rank=8, windows=16, length=128, every=20):
    """The small model learns to read an encyclopedia. Needs bitsandbytes and peft; a fact of its date."""
    read = token_windows(load_text("wikitext-2", "validation")[:300_000], loaded.tokenizer, length, 512, 0)
    ids = loaded.tokenizer(load_text("wikitext-2", "test")[:60_000]).input_ids
    held = torch.tensor(ids[: windows * length]).view(windows, length)
    for row in rows:
        base, seed = row.split()
        yield row, fine_tuned(loaded, base, read, held, steps, rate, rank, every, int(seed))


def written(model, start, length, draw):
    """[count, length]: start [count, some] continued, each token drawn as the model likes it, or the likeliest one."""
    ids, cache, new = start, None, start
    while ids.shape[1] < length:
        with torch.inference_mode():
            out = model(new, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[:, -1]
        new = torch.multinomial(logits.softmax(-1), 1) if draw else logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, new], dim=1)
    return ids


def beside_on(reference, model, ids, start):
    """Of every token behind the first `start`: nats of KL(reference, model) and of KL(model, reference), whether both
    put the same token first, and by how much likelier (in nats) the reference finds its first than its second."""
    found = {"KL": [], "KL from here": [], "same": [], "margin": []}
    with torch.inference_mode():
        for row in ids:
            p, q = (m(row[None]).logits[0, start - 1 : -1].float().log_softmax(-1) for m in (reference, model))
            found["KL"].append((p.exp() * (p - q)).sum(-1))
            found["KL from here"].append((q.exp() * (q - p)).sum(-1))
            found["same"].append(p.argmax(-1) == q.argmax(-1))
            best = p.topk(2, -1).values
            found["margin"].append(best[:, 0] - best[:, 1])
    return {name: torch.stack(values) for name, values in found.items()}  # [count, length - start]


def along(loaded, rows, grids, prompts, length):
    """Each model beside the float one, along a text that the float one writes and along one that it writes itself."""
    start = prompts.shape[1]
    likeliest = written(loaded.model, prompts, length, draw=False)
    for row in rows:
        model = dequantized(quantize_model(loaded.model, RTN(grids[row]))[0])
        torch.manual_seed(0)
        texts = {"float's": written(loaded.model, prompts, length, draw=True)}
        texts["its own"] = written(model, prompts, length, draw=True)
        found = {name: beside_on(loaded.model, model, ids, start) for name, ids in texts.items()}
        alone = written(model, prompts, length, draw=False)
        found["likeliest"] = beside_on(loaded.model, model, likeliest, start)["same"]
        found["alone"] = alone[:, start:] == likeliest[:, start:]
        yield row, found


@experiment(rows=STORY_GRIDS, model="stories15M", miniature={"count": 2, "length": 24, "start": 8}, tolerance=1e-4)
def along_stories(loaded, rows, *, count=32, start=8, length=136):
    """The small model goes on with stories."""
    told = load_record("part_01.stories").values["tokens"] % loaded.model.config.vocab_size
    more = load_record("part_06.more_stories").values["tokens"] % loaded.model.config.vocab_size
    prompts = torch.cat([told, more])[:count, :start].long()
    yield from along(loaded, rows, STORY_GRIDS, prompts, length)


WORDS = (
    "apple river stone cloud paper green table music horse winter garden silver bread ocean light road bridge "
    "window flower engine summer market letter forest butter castle finger island jacket kitchen"
).split()


def chains(count, seed):
    """{task: [(what is given, what has to follow)]}: words to repeat, a sequence to go on with, sums of one digit, and
    running sums, in which every step needs the result of the last."""
    g = torch.Generator().manual_seed(seed)

    def draw(low, high, n):
        return torch.randint(low, high, (n,), generator=g).tolist()

    tasks = {"copy": [], "count": [], "sums": [], "running sums": []}
    for _ in range(count):
        line = " ".join(WORDS[i] for i in torch.randperm(len(WORDS), generator=g)[:12].tolist())
        tasks["copy"].append([(f"{line}.\n{line}.\n{line.split()[0]}", False), (line[len(line.split()[0]) :], True)])
        first, step = draw(1, 20, 1)[0], draw(1, 4, 1)[0]
        numbers = [str(first + step * i) for i in range(14)]
        tasks["count"].append([(", ".join(numbers[:6]) + ",", False), (" " + ", ".join(numbers[6:]), True)])
        lines = list(zip(draw(1, 10, 6), draw(1, 10, 6), strict=True))
        shown = "\n".join(f"{a} + {b} = {a + b}" for a, b in lines[:-1])
        tasks["sums"].append([(f"{shown}\n{lines[-1][0]} + {lines[-1][1]} =", False), (f" {sum(lines[-1])}", True)])
        total, steps, parts = 0, draw(1, 4, 8), []
        for number, more in enumerate(steps):
            parts.append((f"{', ' if number else ''}{total} + {more} =", False))
            total += more
            parts.append((f" {total}", number > 2))  # the first three are shown
        tasks["running sums"].append(parts)
    return tasks


def hits(loaded, model, parts):
    """Whether each token that has to follow is the likeliest, given all that stands before, and their mean loss. A model
    that takes the likeliest token by itself writes the whole if, and only if, all are."""
    ids, asked = [], []
    for piece, wanted in parts:
        tokens = loaded.tokenizer.encode(piece, add_special_tokens=False)
        asked += [len(ids) + i for i in range(len(tokens)) if wanted]
        ids += tokens
    ids = torch.tensor(ids)
    with torch.inference_mode():
        logits = model(ids[None]).logits[0].float()
    likeliest, before = logits.argmax(-1), torch.tensor(asked) - 1
    nats = F.cross_entropy(logits[before], ids[asked])
    return {"right": [bool(likeliest[i] == ids[i + 1]) for i in before], "nats": nats.item()}


@experiment(rows=("float", "4 bits", "8 bits"), model=MODEL, miniature={"count": 1})
def tasks(loaded, rows, *, count=24, seed=0):
    """Copying and arithmetic: {task: for every text, whether each token that has to follow would have been written}."""
    for row in rows:
        model = loaded.model
        if row != "float":
            model = dequantized(quantize_model(model, RTN(GRIDS[row]))[0])
        yield row, {task: [hits(loaded, model, parts) for parts in of] for task, of in chains(count, seed).items()}


def with_embeddings(model, grid):
    """A copy whose embeddings, and with them a tied head, are rounded; its linear layers are as they were."""
    model = copy.deepcopy(model)
    words = model.get_input_embeddings()
    words.weight = nn.Parameter(quantize(words.weight, grid).dequantize(words.weight.dtype), False)
    model.tie_weights()
    return model


EMBEDDINGS = {"8 row": Grid(8), "4 64": Grid(4, 64, symmetric=False)}


@experiment(rows=EMBEDDINGS, model=MODEL, miniature={"windows": 2, "window": 16})
def embeddings(loaded, rows, *, windows=4, window=1024):
    """The losses with rounded embeddings (the head of this model is tied to them) and float layers."""
    ids = torch.tensor(loaded.tokenizer(load_text("wikitext-2", "test")[:60_000]).input_ids)
    for row in rows:
        p = perplexity(with_embeddings(loaded.model, EMBEDDINGS[row]), ids, window, windows)
        yield row, {"perplexity": p.value, "nll": p.nll}



def read_whole(model, ids, chunk):
    """The loss of every prediction of a text, float32 [length - 1], and its keys and values; some tokens at a time."""
    cache, found, targets = None, [], ids[1:]
    for start in range(0, len(ids), chunk):
        out = model(ids[None, start : start + chunk], past_key_values=cache, use_cache=True)
        cache, wanted = out.past_key_values, targets[start : start + chunk]
        found.append(F.cross_entropy(out.logits[0, : len(wanted)].float(), wanted, reduction="none"))
    return torch.cat(found), cache


def read_again(model, ids, cache, starts, length):
    """The text goes on with one of its own passages, for every start: the losses of the passage's second half, and
    whether its tokens are the likeliest; [starts, length / 2] each. All passages stand at the same positions."""
    nats, right = [], []
    for start in starts:
        passage = ids[start : start + length]
        logits = model(passage[None], past_key_values=cache, use_cache=True).logits[0, length // 2 - 1 : -1].float()
        cache.crop(-length)
        nats.append(F.cross_entropy(logits, passage[length // 2 :], reduction="none"))
        right.append(logits.argmax(-1) == passage[length // 2 :])
    return {"nats": torch.stack(nats), "right": torch.stack(right)}


@experiment(
    rows=("float", "8 bits", "4 bits"), model=MODEL, tolerance=1e-4,
    miniature={"windows": 2, "window": 96, "distances": (32, 64), "passages": 2, "length": 8, "chunk": 32})
def long_context(loaded, rows, *, windows=4, window=4096, distances=(256, 1024, 4032), passages=4, length=48, chunk=1024):
    """The losses along long texts, and of passages that stood so many tokens earlier and come again at the end."""
    text = load_text("wikitext-2", "test")[: 6 * windows * window]
    ids = torch.tensor(loaded.tokenizer(text).input_ids[: windows * window]).view(windows, window)
    for row in rows:
        model, found = loaded.model, []
        if row != "float":
            model = dequantized(quantize_model(model, RTN(GRIDS[row]))[0])
        with torch.inference_mode():
            for each in ids:
                nll, cache = read_whole(model, each, chunk)
                found.append({"nll": nll} | {
                    str(distance): read_again(
                        model, each, cache, [window - distance + length * i for i in range(passages)], length)
                    for distance in distances
                })  # fmt: skip
        again = {
            str(d): {name: torch.stack([f[str(d)][name] for f in found]) for name in ("nats", "right")} for d in distances
        }
        yield row, {"nll": torch.stack([f["nll"] for f in found]), "again": again}


def declaration(loaded, parts, read, length):
    """{language: pieces of two parts each to measure on}, and so many windows [read, length] of the pieces between them
    from each language. parts "written" stands for an invented text: a miniature fetches nothing."""
    measured, windows = {}, []
    for language in LANGUAGES:
        told = [f"{language}, part {i}: one of many languages." for i in range(6)]
        told = load_declaration(language) if parts == "kept" else told
        pieces = [" ".join(told[i : i + 2]) for i in range(0, len(told), 2)]
        measured[language] = pieces[2::2]
        ids = torch.tensor(loaded.tokenizer.encode("\n".join(pieces[:1] + pieces[1::2])))
        windows.append(ids[: min(read, len(ids) // length) * length].view(-1, length))
    return measured, torch.cat(windows)


CALIBRATED = "float", "rounded", "GPTQ, English", "GPTQ, all four"


@experiment(
    rows=CALIBRATED, model=MODEL, tolerance=1e-4,
    miniature={"parts": "written", "read": 2, "length": 16, "count": 2, "window": 64})
def languages(loaded, rows, *, parts="kept", read=4, length=256, count=4, window=1024, seed=0):
    """One text in four languages: of every piece the nats, the KL from float, the tokens predicted and the bytes. Four
    bits in groups of 64 with a zero point; calibrated on an English encyclopedia, or on as many tokens of the text's other
    pieces, in all four languages."""
    measured, mixed = declaration(loaded, parts, read, length)
    validation = load_text("wikitext-2", "validation")
    english = token_windows(
        validation[: len(validation) * 9 // 10], loaded.tokenizer, window, count, seed,
        evaluation=load_text("wikitext-2", "test"))
    grid = GRIDS["4 bits"]
    ways = {
        "rounded": (RTN(grid), None),
        "GPTQ, English": (GPTQ(grid, through_attention=True), english),
        "GPTQ, all four": (GPTQ(grid, through_attention=True), mixed),
    }
    ids = {of: [loaded.tokenizer.encode(piece) for piece in pieces] for of, pieces in measured.items()}
    floats = {of: [answers(loaded.model, each, len(each), 1) for each in pieces] for of, pieces in ids.items()}
    for row in rows:
        model = loaded.model if row == "float" else dequantized(quantize_model(loaded.model, *ways[row])[0])
        values = {}
        for language, pieces in ids.items():
            found = [
                beside(reference, reference if row == "float" else answers(model, each, len(each), 1))
                for reference, each in zip(floats[language], pieces, strict=True)
            ]
            values[language] = {
                "nats": torch.stack([f.nll.double().sum() for f in found]),  # [pieces]
                "KL": torch.stack([f.kl.double().sum() for f in found]),
                "same": torch.stack([f.same.sum() for f in found]),
                "tokens": torch.tensor([f.nll.numel() for f in found]),
                "bytes": torch.tensor([len(piece.encode()) for piece in measured[language]]),
            }
        yield row, values
