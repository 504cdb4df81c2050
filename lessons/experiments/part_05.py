"""What part 5 measures on whole models: AWQ by itself, what its search should look at, and AWQ before GPTQ."""

import time

import torch
from torch import nn

from quantlib import AWQ, GPTQ, RTN, Grid, InputStats, collect_stats, load_lesson_model, load_text, mse_clip
from quantlib import perplexity, quantize, quantize_model, token_windows
from quantlib.methods.awq import ALPHAS, CLIPS, FINE_CLIPS, activation_scale, awq_clip, awq_scale, duo_scale, protected
from quantlib.models.folding import find_folds
from quantlib.models.linears import dequantized, twin_of
from quantlib.records import experiment, load_record

MODEL = "SmolLM2-135M-Instruct"
FEW = (0.25, 0.5)  # ratios, for a miniature


def grid(words):
    """The Grid of "4 64 symmetric"; "narrow" is symmetric, its step 1/7 of the largest weight: that one is exact."""
    bits, group, kind = words.split()
    return Grid(int(bits), int(group), symmetric=kind != "asymmetric", narrow_range=kind == "narrow")


def texts():
    """WikiText-2: what is calibrated on, what choices are made on, and what is only measured. As in part 4."""
    validation = load_text("wikitext-2", "validation")
    end = len(validation) * 9 // 10
    return validation[:end], validation[end:], load_text("wikitext-2", "test")


def losses(loaded, model, text, windows, window):
    """Perplexity and the loss of every token on the beginning of a text."""
    ids = torch.tensor(loaded.tokenizer(text).input_ids[: windows * window])
    p = perplexity(dequantized(model), ids, window, windows)
    return {"perplexity": p.value, "nll": p.nll}


def with_weights(model, weights):
    """A copy of the model that shares all but these weights: layer name -> [out, in]."""
    replaced = {}
    for name, weight in weights.items():
        linear = nn.Linear(*reversed(weight.shape), bias=False)
        linear.weight = nn.Parameter(weight, False)
        replaced[id(model.get_submodule(name))] = linear
    return twin_of(model, replaced)


def called(model, window):
    """What every attention and MLP is called with on a text, and what it answers: name -> (args, kwargs, output)."""
    calls, handles = {}, []
    for name, module in model.named_modules():
        if name.endswith(("self_attn", "mlp")):
            def hook(module, args, kwargs, out, name=name):
                calls[name] = args, kwargs, out
            handles.append(module.register_forward_hook(hook, with_kwargs=True))
    with torch.inference_mode():
        model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return calls


def answer(out):
    return out[0] if isinstance(out, tuple) else out


class Searched:
    """AWQ by hand on one reading of the text: scales by what the search looks at, and the weights Q(W s)/s.

    looks   "outputs" of the layers themselves; "attention": values by what attention makes of their inputs;
            "modules": query, key and value by the output of attention, gate and up by that of the MLP, on 512 tokens,
            which is what the authors do; "duo": outputs, with AutoAWQ's candidates
    """

    def __init__(self, model, read, alphas):
        self.model, self.alphas = model, alphas
        self.through = collect_stats(model, read, through_attention=True)
        self.plain = dict(self.through)
        self.folds = find_folds(model, list(self.through), read[0][:16])
        for fold in self.folds:
            self.plain |= dict.fromkeys(fold.readers, self.through[fold.readers[0]])  # queries come before values
        self.calls = called(model, read[0][:512])
        self.found = {}

    def weight(self, name):
        return self.model.get_submodule(name).weight.detach()

    def scales(self, on, looks):
        """Layer name -> s [in]."""
        if (on, looks) not in self.found:
            self.found[on, looks] = {
                name: s for fold in self.folds if fold.source is not None
                for name, s in dict.fromkeys(fold.readers, self.scale(fold, on, looks)).items()
            }  # fmt: skip
        return self.found[on, looks]

    def scale(self, fold, on, looks):
        weights = [self.weight(name) for name in fold.readers]
        stats = [(self.through if looks == "attention" else self.plain)[name] for name in fold.readers]
        if looks == "modules" and len(weights) > 1:
            return self.by_module(fold.readers, weights, stats[0].absmean, on)
        family = duo_scale if looks == "duo" else activation_scale
        return awq_scale(weights, stats, on, family=family, alphas=self.alphas, shared=fold.channel).s

    def by_module(self, names, weights, absmean, on):
        """The s with which the module around these layers answers most like the float one."""
        parent = names[0].rpartition(".")[0]
        module, (args, kwargs, out) = self.model.get_submodule(parent), self.calls[parent]
        best = torch.inf, None
        for alpha in self.alphas:
            s = activation_scale(absmean, weights, on, alpha)
            new = {
                name.rpartition(".")[2] + ".weight": quantize(w * s, on).dequantize(w.dtype) / s
                for name, w in zip(names, weights, strict=True)
            }
            with torch.inference_mode():
                off = answer(torch.func.functional_call(module, new, args, kwargs)) - answer(out)
            best = min(best, (off.square().sum().item(), alpha))
        return activation_scale(absmean, weights, on, best[1])

    def weights(self, on, looks, unclipped=None, clips=CLIPS):
        """Q(W s)/s of all layers; clipped but for those layers, if any are named. looks None: no scales, mse_clip."""
        stats = self.through if looks == "attention" else self.plain
        scales = self.scales(on, looks) if looks else {}
        made = {}
        for name, known in stats.items():
            w, clip = self.weight(name), 1.0
            s = scales.get(name, w.new_ones(w.shape[1]))
            if looks is None:
                clip = mse_clip(w, on)
            elif unclipped is not None and not name.endswith(unclipped):
                clip = awq_clip(w * s, known.divided_by(s), on, ratios=clips)
            made[name] = quantize(w * s, on, clip=clip).dequantize(w.dtype) / s
        return made


ALONE = {  # the last words of a row -> what the search looks at, and the layers that are not clipped
    "clip": (None,),
    "awq": ("outputs",),
    "awq clip": ("outputs", ("q_proj", "k_proj")),
    "awq clip all": ("outputs", ("none",)),
    "awq fine clip": ("outputs", ("none",), FINE_CLIPS),
    "attention": ("attention",),
    "attention clip": ("attention", ("q_proj", "k_proj")),
    "modules": ("modules",),
    "duo": ("duo",),
}
ALONE_ROWS = (
    *(f"4 64 symmetric {how}" for how in ALONE),
    *(f"{start} {how}" for start in ("4 64 asymmetric", "3 64 symmetric") for how in ("clip", "awq", "awq clip")),
    *(f"4 64 asymmetric awq {how}" for how in ("clip all", "fine clip")),
    "4 64 narrow clip",
)


@experiment(rows=ALONE_ROWS, model=MODEL, miniature={"count": 2, "windows": 2, "window": 64, "alphas": FEW})
def awq_alone(loaded, rows, *, count=8, seed=0, windows=8, window=1024, alphas=ALPHAS):
    """AWQ without GPTQ, the text read once for all rows; measured on the same kind of text, and on Python."""
    ours, _, test = texts()
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    searched = Searched(loaded.model, read, alphas)
    python = load_record("part_06.code").values["measured"]
    for row in rows:
        bits, group, kind, how = row.split(maxsplit=3)
        weights = searched.weights(grid(f"{bits} {group} {kind}"), *ALONE[how])
        model = with_weights(loaded.model, weights)
        found = losses(loaded, model, test, windows, window)
        yield row, found | {"Python": losses(loaded, model, python, min(windows, 4), window)}


THEN = {  # as in part 4's tables
    "plain": {},
    "attention": {"through_attention": True},
    "attention search": {"through_attention": True, "search_scales": True},
    "attention refined": {"through_attention": True, "search_scales": True, "residual": 0.25},
}


def then_gptq(on, how, alphas=ALPHAS):
    """AWQ's scales, and GPTQ to round."""
    return AWQ(on, then=GPTQ(on, **THEN[how]), alphas=alphas)


THEN_ROWS = (
    "32 windows, 0, 4 64 symmetric attention refined",
    "4 windows, 0, 4 64 symmetric plain",
    "4 windows, 2, 4 64 symmetric attention refined",
)


@experiment(rows=THEN_ROWS, model=MODEL, miniature={"most": 2, "windows": 2, "window": 64, "alphas": FEW})
def awq_then_gptq(loaded, rows, *, most=32, windows=8, window=1024, alphas=ALPHAS):
    """AWQ's scales first, GPTQ on the scaled weights after it: as many windows and the same seeds as in part 4."""
    ours, _, test = texts()
    for row in rows:
        count, seed, words = row.split(", ")
        read = token_windows(
            ours, loaded.tokenizer, window, min(most, int(count.split()[0])), int(seed), evaluation=test)
        bits, group, kind, how = words.split(maxsplit=3)
        model, _ = quantize_model(loaded.model, then_gptq(grid(f"{bits} {group} {kind}"), how, alphas), read)
        yield row, losses(loaded, model, test, windows, window)


KEPT = "activation", "weight", "random"


@experiment(
    rows=[f"{bits} bits, {by}" for bits in (3, 4) for by in KEPT],
    model=MODEL, miniature={"count": 2, "windows": 2, "window": 64})
def kept_in_float(loaded, rows, *, share=0.01, count=4, seed=0, windows=8, window=1024):
    """Rounded to nearest but for 1 % of the input channels of each layer, which stay float (AWQ's Table 1)."""
    ours, _, test = texts()
    read = token_windows(ours, loaded.tokenizer, window, count, seed, evaluation=test)
    stats = collect_stats(loaded.model, read)
    for row in rows:
        bits, by = row.split(" bits, ")
        generator, weights = torch.Generator().manual_seed(seed), {}
        for name, known in stats.items():
            w = loaded.model.get_submodule(name).weight.detach()
            salience = {
                "activation": known.absmean,
                "weight": w.norm(dim=0),
                "random": torch.rand(w.shape[1], generator=generator),
            }[by]  # fmt: skip
            chosen = salience.topk(max(1, round(share * w.shape[1]))).indices
            weights[name] = protected(w, Grid(int(bits), 64), chosen)
        yield row, losses(loaded, with_weights(loaded.model, weights), test, windows, window)


STORY_METHODS = {
    "awq": lambda on, alphas: AWQ(on, clip=False, alphas=alphas),
    "awq clip": lambda on, alphas: AWQ(on, alphas=alphas),
    **{how: lambda on, _, how=how: GPTQ(on, **THEN[how]) for how in ("plain", "attention refined")},
    **{f"awq {how}": lambda on, alphas, how=how: then_gptq(on, how, alphas) for how in ("plain", "attention refined")},
}
OTHER = "awq clip", "attention refined", "awq attention refined"
STORY_ROWS = (
    "4 bits, float",
    *(f"{bits} bits, {how}" for bits in (4, 3) for how in ("rounded", "clip", *STORY_METHODS)),
    *(f"3 bits, {how}, WikiText-2" for how in OTHER),
)


def to_read(loaded, text, length, count, seed):
    """Windows [count, length]: stories that the small model has told, drawn with a seed, or another kind of text."""
    if text == "WikiText-2":
        return token_windows(load_text("wikitext-2", "validation")[:200_000], loaded.tokenizer, length, count, seed)
    told = load_record("part_06.more_stories").values["tokens"] % loaded.model.config.vocab_size  # if it is small
    chosen = torch.randperm(len(told), generator=torch.Generator().manual_seed(seed))[:count]
    return told[chosen, :length].long()


@experiment(
    rows=STORY_ROWS, model="stories15M", tolerance=1e-4,
    miniature={"windows": 2, "window": 32, "count": 2, "seeds": 1, "alphas": FEW})
def on_stories(loaded, rows, *, seeds=3, count=16, windows=16, window=256, alphas=ALPHAS):
    """The small model, a scale per 32, measured on stories that were not read; once for every draw of what is read."""
    told = load_record("part_01.stories").values["tokens"] % loaded.model.config.vocab_size
    test = told[16 : 16 + windows, :window].flatten().long()
    for row in rows:
        bits, how, *text = row.split(", ")
        on, models = Grid(int(bits[0]), 32), [loaded.model]
        if how == "clip":
            layers = {name: layer.weight.detach() for name, layer in linears(loaded.model).items()}
            models = [with_weights(loaded.model, {
                name: quantize(w, on, clip=mse_clip(w, on)).dequantize(w.dtype) for name, w in layers.items()
            })]  # fmt: skip
        elif how == "rounded":
            models = [quantize_model(loaded.model, RTN(on))[0]]
        elif how != "float":
            reads = [to_read(loaded, *text or ["stories"], window, count, seed) for seed in range(seeds)]
            models = (quantize_model(loaded.model, STORY_METHODS[how](on, alphas), read)[0] for read in reads)
        found = [perplexity(dequantized(model), test, window, windows) for model in models]
        values = torch.tensor([p.value for p in found], dtype=torch.float64)  # [seeds]
        yield row, {"perplexity": values, "nll": torch.stack([p.nll for p in found])}


def linears(model):
    """The linear layers that are quantized: all but the head."""
    return {
        name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear) and "lm_head" not in name
    }


TOGETHER = ("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)


def inputs_of(block, model, read):
    """The linear layers of a block that read the same, and what they read: [([weights], [tokens, in])]."""
    layers = {name.rpartition(".")[2]: layer for name, layer in linears(block).items()}
    heard = {names: [] for names in TOGETHER}
    handles = [
        layers[names[0]].register_forward_pre_hook(lambda _, args, names=names: heard[names].append(args[0][0]))
        for names in TOGETHER
    ]
    with torch.inference_mode():
        for window in read:
            model(window[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return [([layers[name].weight.detach() for name in names], torch.cat(x)) for names, x in heard.items()]


def run_again(weights, x, on):
    """The search as it is usually written: the layers run on the text for every ratio. The best ratio."""
    absmean, answers, lost = x.abs().mean(0), [x @ w.t() for w in weights], []
    for alpha in ALPHAS:
        s = activation_scale(absmean, weights, on, alpha)
        rounded = (quantize(w * s, on).dequantize(w.dtype) / s for w in weights)
        lost.append(sum(
            ((x @ w.t() - y).square().sum() / y.square().sum()).item() for w, y in zip(rounded, answers, strict=True)
        ))  # fmt: skip
    return ALPHAS[lost.index(min(lost))]


@experiment()
def cost(*, tokens=(512, 2048, 8192), block=10, blocks=6, count=4):
    """Seconds, one thread: the search in one block from Gram matrices, and by running its layers for every ratio; the
    ratios that both find; and AWQ with its clip of the first blocks, the reading included.
    """
    model, ours, on = (loaded := load_lesson_model("cpu")).model, texts()[0], Grid(4, 64)
    found, threads = {"blocks": blocks}, torch.get_num_threads()
    torch.set_num_threads(1)

    def timed(name, function):
        start = time.perf_counter()
        out = function()
        found[name] = time.perf_counter() - start
        return out

    for n in tokens:
        read = token_windows(ours, loaded.tokenizer, min(n, 1024), max(1, n // 1024), 0)
        inputs = inputs_of(model.model.layers[block], model, read)
        stats = timed(f"{n} sums", lambda: [InputStats.of(x) for _, x in inputs])
        scales = timed(f"{n} search", lambda: [
            awq_scale(weights, known, on) for (weights, _), known in zip(inputs, stats, strict=True)
        ])  # fmt: skip
        again = timed(f"{n} run again", lambda: [run_again(weights, x, on) for weights, x in inputs])
        found[f"{n} ratios"] = [[s.alpha for s in scales], again]
    read = token_windows(ours, loaded.tokenizer, 1024, count, 0)
    model.model.layers = model.model.layers[:blocks]
    timed("AWQ", lambda: quantize_model(model, AWQ(on), read))
    torch.set_num_threads(threads)
    return found
