"""What part 3 measures: what rounding the activations costs a model, and what keeping a few columns costs in time."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from quantlib import Grid, LLMInt8, load_text, perplexity, quantize, quantize_model
from quantlib.kernels import int8_matmul
from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import Int8Linear
from quantlib.measure.benchmark import measure
from quantlib.measure.ceilings import ceilings
from quantlib.measure.steps import steps
from quantlib.methods.llm_int8 import massive_activations, outlier_features, outlier_stats, quantize_rows
from quantlib.methods.smoothquant import fold, smooth_scale
from quantlib.records import experiment, load_record

MODEL = "SmolLM2-135M-Instruct"
THRESHOLDS = (None, 48.0, 24.0, 12.0, 6.0, 3.0, 1.0, 0.0)


class Rounded(nn.Module):
    """A linear layer with weights and inputs on a grid, in floats.

    per        "tensor" or "token": what shares a scale of x
    threshold  columns of x that reach it are not rounded
    step       of x, if it was fixed before ("static")
    exact      outlier columns meet the float weight, not the rounded
    """

    def __init__(self, linear, bits=8, per="token", threshold=None, step=None, exact=False):
        super().__init__()
        grid = Grid(bits, "row", narrow_range=True)
        q = quantize(linear.weight, grid, scale_dtype=torch.float32)
        self.w_hat = q.dequantize(linear.weight.dtype)
        self.bias = linear.bias
        self.w = linear.weight if exact else self.w_hat
        self.top, self.per, self.step = grid.qmax, per, step
        self.threshold = threshold

    def forward(self, x):
        rows = x.flatten(0, -2)  # [tokens, in]
        kept = outlier_features(rows, self.threshold)  # [in]
        step = self.step
        if step is None:
            below = rows.abs()
            if self.threshold is not None:
                below = below.masked_fill(below >= self.threshold, 0)
            per = None if self.per == "tensor" else 1
            largest = below.amax(per, keepdim=per == 1)
            step = torch.where(largest > 0, largest / self.top, 1.0)
        codes = (rows / step).round().clamp(-self.top, self.top)
        codes = codes.masked_fill(kept, 0)
        y = (codes * step) @ self.w_hat.t()  # [tokens, out]
        y += rows[:, kept] @ self.w[:, kept].t()
        y = y if self.bias is None else y + self.bias
        return y.unflatten(0, x.shape[:-1])


def linears(model):
    """Every linear layer but the head: (name, layer)."""
    return [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name != "lm_head"
    ]


def with_layers(model, make):
    """A copy of the model with make(name, layer) in each place."""
    model = copy.deepcopy(model)
    for name, layer in linears(model):
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, make(name, layer))
    return model


def watch(model, ids, see):
    """see(name, layer, x) for every linear layer while ids [tokens] pass."""

    def hook(name):
        def seen(layer, args):
            see(name, layer, args[0].flatten(0, -2))

        return seen

    handles = [
        layer.register_forward_pre_hook(hook(name))
        for name, layer in linears(model)
    ]
    with torch.inference_mode():
        for window in ids.split(1024):
            model(window[None])
    for handle in handles:
        handle.remove()


def text(loaded, split, windows):
    """int64 [windows · 1024]: the beginning of a text."""
    ids = loaded.tokenizer(load_text("wikitext-2", split)).input_ids
    return torch.tensor(ids[: windows * 1024])


def absmax(loaded, windows, per_column=False):
    """Layer name -> the largest magnitude of its input on validation text."""
    found = {}

    def see(name, layer, x):
        largest = x.abs().amax(0) if per_column else x.abs().amax()
        found[name] = torch.maximum(found.get(name, largest), largest)

    watch(loaded.model, text(loaded, "validation", windows), see)
    return found


ACTIVATIONS = {  # name of a row -> what Rounded is told
    "float": None,
    "weights only": {"threshold": 0.0},
    "tensor": {"per": "tensor"},
    "tensor, static": {"per": "tensor"},
    "token": {},
    "mixed": {"threshold": 6.0},
    "mixed, float weights": {"threshold": 6.0, "exact": True},
    "mixed, all columns": {"threshold": 0.0, "exact": True},
    "mixed, per tensor": {"per": "tensor", "threshold": 6.0},
    "LLMInt8(6.0)": LLMInt8(6.0),
    "LLMInt8(None)": LLMInt8(None),
}


@experiment(
    rows=ACTIVATIONS, model=MODEL,
    miniature={"windows": 2, "window": 16, "calibration": 1})
def perplexity_of_activations(
        loaded, rows, *, windows=8, window=1024, calibration=4):
    """The losses of W8A8 in its variants, and of LLM.int8()."""
    largest = absmax(loaded, calibration)
    ids = text(loaded, "test", windows)
    for row in rows:
        how = ACTIVATIONS[row]
        if how is None:
            model = loaded.model
        elif isinstance(how, LLMInt8):
            model, _ = quantize_model(loaded.model, how)
        else:
            model = with_layers(loaded.model, lambda name, linear: Rounded(
                linear, **how, step=(
                    largest[name] / 127 if "static" in row else None)))
        p = perplexity(model, ids, window, windows)
        yield row, {"perplexity": p.value, "nll": p.nll}


@experiment(
    rows=[f"{bits} {threshold}" for bits in (8, 6, 5, 4) for threshold in THRESHOLDS],
    model=MODEL, miniature={"windows": 2, "window": 16})
def thresholds(loaded, rows, *, windows=2, window=1024):
    """For every number of bits and threshold: perplexity, the layers' error, the share of columns kept."""
    ids = text(loaded, "test", windows)
    seen = inputs(loaded, ids[:256])
    for row in rows:
        bits, threshold = (None if word == "None" else float(word) for word in row.split())
        model = with_layers(loaded.model, lambda name, linear: Rounded(linear, int(bits), threshold=threshold))
        p = perplexity(model, ids, window, windows)
        errors, shares = [], []
        layers = [layer for layer in model.modules() if isinstance(layer, Rounded)]
        for layer, (x, w) in zip(layers, seen, strict=True):
            y = x @ w.t()  # [tokens, out]
            errors.append(((layer(x) - y).norm() / y.norm()).item())
            shares.append(outlier_features(x, threshold).float().mean().item())
        yield row, {
            "perplexity": p.value, "nll": p.nll, "error": torch.tensor(errors), "kept": torch.tensor(shares),
        }  # fmt: skip


def inputs(loaded, ids):
    """(x [tokens, in], weight) of every linear layer of the float model, in its order."""
    seen = {}

    def see(name, layer, x):
        seen[name] = x.clone(), layer.weight.detach()

    watch(loaded.model, ids, see)
    return [seen[name] for name, _ in linears(loaded.model)]


KINDS = {"q_proj": "attention", "o_proj": "output", "gate_proj": "up", "down_proj": "down"}


@experiment(model=MODEL, miniature={})
def outlier_map(loaded, *, threshold=6.0, counts=(1, 4, 16, 64, 256, 1024)):
    """Where the outliers of one window are: by layer, kind of layer and feature; and the massive activations."""
    results = {kind: {"largest": [], "tokens": [], "kept": [], "ratio": []} for kind in KINDS.values()}
    massive, shares = [], {count: [] for count in counts}

    def see(name, layer, x):
        for count in counts:
            shares[count].append(outlier_features(x[-count:], threshold).float().mean().item())
        kind = KINDS.get(name.rpartition(".")[2])
        if kind is None:
            return
        stats = outlier_stats(x, threshold)
        found = results[kind]
        found["largest"].append(x.abs().amax(0).half())  # [in]
        found["tokens"].append((x.abs() >= threshold).float().mean(0).half())  # [in]
        found["kept"].append(stats.share_of_columns)
        found["ratio"].append(stats.ratio[0].item() if len(stats.ratio) else 1.0)
        m = massive_activations(x)
        for (token, feature), value in zip(m.position[:4].tolist(), m.value[:4].tolist(), strict=True):
            massive.append((len(found["kept"]) - 1, kind, token, feature, value, m.median, len(m.value)))

    watch(loaded.model, text(loaded, "test", 1), see)
    for found in results.values():
        found["largest"], found["tokens"] = torch.stack(found["largest"]), torch.stack(found["tokens"])
        found["kept"], found["ratio"] = torch.tensor(found["kept"]), torch.tensor(found["ratio"])
    kept = {str(count): torch.tensor(values) for count, values in shares.items()}
    return {"kinds": results, "massive": massive, "kept_by_rows": kept}


def smoothed(model, largest, alpha):
    """The same function, with the outliers moved into the weights."""
    model = copy.deepcopy(model)
    for i, block in enumerate(model.model.layers):
        a, m = block.self_attn, block.mlp
        for norm, name, readers in (
            (block.input_layernorm, "self_attn.q_proj", (a.q_proj, a.k_proj, a.v_proj)),
            (block.post_attention_layernorm, "mlp.gate_proj", (m.gate_proj, m.up_proj)),
        ):
            weights = [layer.weight.detach() for layer in readers]
            w_absmax = torch.stack([w.abs().amax(0) for w in weights]).amax(0)
            s = smooth_scale(largest[f"model.layers.{i}.{name}"], w_absmax, alpha)
            gain, weights = fold(norm.weight.detach(), weights, s)
            norm.weight = nn.Parameter(gain, False)
            for layer, w in zip(readers, weights, strict=True):
                layer.weight = nn.Parameter(w, False)
        # down_proj reads a product with up_proj's output: fold its s there
        x = largest[f"model.layers.{i}.mlp.down_proj"]
        s = smooth_scale(x, m.down_proj.weight.detach().abs().amax(0), alpha)
        m.up_proj.weight = nn.Parameter(m.up_proj.weight.detach() / s[:, None], False)
        m.down_proj.weight = nn.Parameter(m.down_proj.weight.detach() * s, False)
    return model


@experiment(
    rows=[f"{alpha} {per}" for alpha in (None, 0.3, 0.5, 0.7, 0.8, 0.9) for per in ("tensor", "token")],
    model=MODEL, miniature={"windows": 2, "window": 16, "calibration": 1})
def smoothing(loaded, rows, *, windows=8, window=1024, calibration=4):
    """The losses of W8A8 after SmoothQuant, per tensor and per token."""
    largest = absmax(loaded, calibration, per_column=True)
    ids = text(loaded, "test", windows)
    for row in rows:
        alpha, per = row.split()
        model = loaded.model if alpha == "None" else smoothed(loaded.model, largest, float(alpha))
        with torch.inference_mode():
            before, after = (m(ids[None, :128]).logits for m in (loaded.model, model))
        rounded = with_layers(model, lambda name, linear: Rounded(linear, per=per))
        p = perplexity(rounded, ids, window, windows)
        apart = ((after - before).norm() / before.norm()).item()
        yield row, {"perplexity": p.value, "nll": p.nll, "apart": apart}


def planted(model, strength, feature=7):
    """The same function, with one feature of every norm `strength` times as large."""
    model = copy.deepcopy(model)
    for block in model.model.layers:
        a, m = block.self_attn, block.mlp
        for norm, readers in (
            (block.input_layernorm, (a.q_proj, a.k_proj, a.v_proj)),
            (block.post_attention_layernorm, (m.gate_proj, m.up_proj)),
        ):
            with torch.no_grad():
                norm.weight[feature] *= strength
                for layer in readers:
                    layer.weight[:, feature] /= strength
    return model


@experiment(
    rows=[str(2**i) for i in range(10)], model="stories15M",
    miniature={"windows": 2, "window": 16})
def planted_outlier(loaded, rows, *, windows=16, window=256):
    """The losses on stories with an outlier planted, rounded or not."""
    stories = load_record("part_01.stories").values["tokens"].flatten()
    stories = stories % loaded.model.config.vocab_size  # if it is small
    ways = {
        "float": None,
        "tensor": {"per": "tensor"},
        "token": {},
        "mixed": {"threshold": 6.0},
        "mixed, float weights": {"threshold": 6.0, "exact": True},
    }
    with torch.inference_mode():
        before = loaded.model(stories[None, :window].long()).logits
    for row in rows:
        model = planted(loaded.model, int(row))
        with torch.inference_mode():
            after = model(stories[None, :window].long()).logits
        found = {
            "apart": ((after - before).norm() / before.norm()).item()}
        for way, options in ways.items():
            rounded = model
            if options is not None:
                rounded = with_layers(model, lambda name, linear: Rounded(
                    linear, **options))
            p = perplexity(rounded, stories, window, windows)
            found[way] = {"perplexity": p.value, "nll": p.nll}
        yield row, found


@experiment()
def speed(
        *, shapes=((1024, 1024), (4096, 4096), (11008, 4096)),
        counts=(1, 16, 256, 1024), one_in=1024, rounds=11, patience=6):
    """Seconds of float layers, W8A8, LLM.int8() and its parts.

    One column in so many is an outlier. No round begins after so many
    seconds (patience), once there are five.
    """
    cases = {f"{out}x{columns} {count}": (out, columns, count)
             for out, columns in shapes for count in counts}
    work = {name: out * columns * (64 + count)
            for name, (out, columns, count) in cases.items()}
    devices = ["cpu", *["cuda"][: torch.cuda.is_available()]]
    return {
        device: {
            "ceilings": ceilings(device),
            "layers": {
                name: time_layer(
                    *cases[name], one_in, rounds, patience, device)
                for name in steps(f"layers on {device}", work)
            },
        }
        for device in devices
    }


def time_layer(out, columns, count, one_in, rounds, patience, device):
    from quantlib.layers.mixed import quantize_in_pieces

    linear = nn.Linear(columns, out, bias=False, device=device)
    w, w16 = linear.weight.detach(), linear.weight.detach().bfloat16()
    w8a8, mixed = (
        MixedInt8Linear.from_float(linear, t) for t in (None, 6.0))
    exact = MixedInt8Linear.from_float(
        linear.bfloat16(), 6.0, keep_float=True)
    weight_only = Int8Linear.from_quantized(
        quantize(w, Grid(8, "row", narrow_range=True)))
    x = torch.randn(count, columns, device=device).clamp_(-5, 5)
    x[:, ::one_in] *= 20
    x[0, ::one_in] = 60.0  # so they are outliers in every call
    x16 = x.bfloat16()
    found = outlier_features(x16, 6.0)
    codes = quantize_rows(x16, 6.0, found).codes
    ways = {
        "fp32": lambda: F.linear(x, w),
        "bf16": lambda: F.linear(x16, w16),
        "weight only": lambda: weight_only(x16),
        "w8a8": lambda: w8a8(x16),
        "mixed": lambda: mixed(x16),
        "mixed, float weights": lambda: exact(x16),
        "part: find the outliers": lambda: outlier_features(x16, 6.0),
        "part: quantize the rows":
            lambda: quantize_in_pieces(x16, 6.0, found),
        "part: multiply integers":
            lambda: int8_matmul(codes, mixed.packed),
    }
    with torch.inference_mode():
        for layer in (weight_only, w8a8, mixed, exact):
            layer(x16)  # kernels are chosen once, not in the race
        return measure(
            ways,
            race=[name for name in ways if not name.startswith("part")],
            warmup=1,
            rounds=rounds,
            patience=patience,
            device=device,
        )
