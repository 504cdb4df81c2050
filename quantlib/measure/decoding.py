"""How fast a model writes, and where the time of one token goes.

Start from :func:`tokens_per_second` and :func:`profile_decode`. Decoding reads every weight once a token, so that a
quantized model should gain as many times as it has fewer bytes. It gains less: the linear layers are only a part of
a step, and the rest (attention, norms, the Python between them) takes as long as before. That is Amdahl's law, and
profile_decode measures its fraction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType

import torch
from torch import Tensor, nn

from quantlib.layers.weight_only import QuantizedLinear
from quantlib.measure.benchmark import measure, using_threads
from quantlib.measure.clocks import Clock, clock_of
from quantlib.measure.measurements import Benchmark, Ratio


@dataclass(frozen=True)
class TokenRates:
    """benchmark: seconds of generating so many tokens, by the candidates' names."""

    benchmark: Benchmark
    tokens: int

    @classmethod
    def from_values(cls, values: Mapping) -> TokenRates:
        """From a mapping of the fields, as JSON or a record keeps it. ValueError if one is missing."""
        if values.keys() != {"benchmark", "tokens"}:
            raise ValueError(f"values must hold benchmark and tokens, got {', '.join(values)}")
        return cls(Benchmark.from_values(values["benchmark"]), values["tokens"])

    def __getitem__(self, name: str) -> float:
        """Tokens a second at the median. KeyError for a name that was not measured."""
        return self.tokens / self.benchmark[name].median

    def ratio(self, a: str, b: str) -> Ratio:
        """Tokens a second of a over those of b, paired by rounds. Above 1: a is so many times as fast as b."""
        return self.benchmark.ratio(b, a)


@dataclass(frozen=True)
class DecodeProfile:
    """One decoding step, medians over the rounds, all in seconds.

    step_seconds     of an undisturbed step
    watched_seconds  of a step while its layers are timed; how far it exceeds step_seconds is the cost of watching
    layer_seconds    name of a linear layer -> its part of the watched step, in the order of the model. On a GPU from
                     the event before the layer to the one after, so a GPU that waits for the CPU is counted there
    linear_seconds   of all linear layers together
    """

    step_seconds: float
    watched_seconds: float
    layer_seconds: Mapping[str, float]
    linear_seconds: float
    rounds: int
    device: str
    threads: int

    @classmethod
    def from_values(cls, values: Mapping) -> DecodeProfile:
        """From a mapping of the fields, as JSON or a record keeps it. ValueError if one is missing or unknown."""
        try:
            return cls(**{**values, "layer_seconds": MappingProxyType(dict(values["layer_seconds"]))})
        except (KeyError, TypeError) as error:
            raise ValueError(f"values are not those of a DecodeProfile: {error!r}") from None

    @property
    def linear_share(self) -> float:
        """Of an undisturbed step, the part in linear layers. No kernel makes a step more than 1/(1 − share) as fast."""
        return self.linear_seconds / self.step_seconds

    @property
    def other_seconds(self) -> float:
        """Seconds of an undisturbed step outside of linear layers."""
        return self.step_seconds - self.linear_seconds

    def __str__(self):
        return (
            f"{1e3 * self.step_seconds:.2f} ms a token on {self.device}, {self.threads} threads: "
            f"{self.linear_share:.0%} in {len(self.layer_seconds)} linear layers"
        )


def tokens_per_second(
    generators: Mapping[str, Callable[[], Tensor]],
    tokens: int,
    *,
    rounds: int = 5,
    warmup: int = 1,
    race: Collection[str] = (),
    device: str | torch.device = "cpu",
    threads: int | None = None,
    seed: int = 0,
    clock: Clock | None = None,
) -> TokenRates:
    """Tokens a second of each generator, measured by turns.

    generators  name -> call that generates and returns exactly `tokens` new token ids, of any shape
    race        generators of which the first call tells whether they are hopeless, as for measure. One that compiles in
                its first call must not be among them

    The cache is not emptied between calls: each token of a model finds what the one before has left, and so it is
    measured. Raises ValueError as measure does, and RuntimeError that names the generator if it raises or returns
    another number of tokens (a model that stops early would look fast).
    """
    if not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"tokens must be an int of at least 1, got {tokens!r}")

    def counted(generate: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                got = torch.as_tensor(generate()).numel()
            if got != tokens:
                raise ValueError(
                    f"it returned {got} token ids, not {tokens}: return the new ones only, and let nothing stop it early"
                )

        return run

    candidates = {name: counted(generate) for name, generate in generators.items()}
    how = {"rounds": rounds, "warmup": warmup, "device": device, "threads": threads, "seed": seed, "clock": clock}
    return TokenRates(measure(candidates, race=race, launches=1, cold=False, **how), tokens)


def decode_step(model: nn.Module, prompt: Tensor) -> Callable[[], Tensor]:
    """A call that decodes one more token greedily after the prompt, and returns it, int64 [1, 1].

    model   a causal language model of transformers, which keeps keys and values (use_cache)
    prompt  int64 [1, tokens], tokens ≥ 1; read here, once, so that only decoding is in the call

    The cache grows by a token with each call, as it does in use. ValueError for a prompt of another shape and for a
    model that returns no cache.
    """
    if prompt.ndim != 2 or prompt.shape[0] != 1 or prompt.shape[1] < 1:
        raise ValueError(f"prompt must be token ids [1, tokens], got {list(prompt.shape)}")
    cache, token = None, prompt

    def step() -> Tensor:
        nonlocal cache, token
        with torch.no_grad():
            out = model(token, past_key_values=cache, use_cache=True)
        cache, token = out.past_key_values, out.logits[:, -1:].argmax(-1)  # [1, 1]
        if cache is None:
            raise ValueError(
                f"model must return its keys and values (past_key_values); {type(model).__name__} does not"
            )
        return token

    step()
    return step


def profile_decode(
    model: nn.Module,
    step: Callable[[], object],
    *,
    layers: tuple[type[nn.Module], ...] = (nn.Linear, QuantizedLinear),
    rounds: int = 10,
    warmup: int = 2,
    threads: int | None = None,
    clock: Clock | None = None,
) -> DecodeProfile:
    """How much of a decoding step its linear layers take.

    step    runs the model once, as decode_step(model, prompt) does
    layers  the classes that are timed; one inside another counts as part of the outer one

    Every round runs an undisturbed step, then one with each layer timed by hooks, which are removed again. Raises
    ValueError if the model has no such layer or the step calls none of them, rounds < 1 or warmup < 0.
    """
    if rounds < 1 or warmup < 0:
        raise ValueError(f"rounds must be at least 1 and warmup at least 0, got {rounds} and {warmup}")
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    clock = clock or clock_of(device)
    watched = _outermost(model, layers)
    if not watched:
        raise ValueError(f"model has no layer of the classes {', '.join(c.__name__ for c in layers)}: pass its own")
    plain, watching = [], []
    of_layer: dict[str, list[float]] = {name: [] for name in watched}
    with using_threads(threads), torch.no_grad():
        for _ in range(warmup):
            step()
        for _ in range(rounds):
            plain.append(_seconds(step, clock))
            with _watching(watched, clock) as spans:
                watching.append(_seconds(step, clock))
            for name, of_round in spans.items():
                of_layer[name].append(sum(clock.seconds(a, b) for a, b in of_round))
        used_threads = torch.get_num_threads()
    sums = [sum(of_round) for of_round in zip(*of_layer.values(), strict=True)]
    if not any(sums):
        raise ValueError("step called none of the model's linear layers: it must run the model that is passed")
    return DecodeProfile(
        median(plain),
        median(watching),
        MappingProxyType({name: median(seconds) for name, seconds in of_layer.items()}),
        median(sums),
        rounds,
        str(device),
        used_threads,
    )


def _outermost(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():  # outer modules come first
        inside = any(name.startswith(f"{outer}.") or not outer for outer in found)
        if isinstance(module, classes) and not inside:
            found[name] = module
    return found


@contextmanager
def _watching(layers: Mapping[str, nn.Module], clock: Clock) -> Iterator[dict[str, list[tuple]]]:
    """Layer name -> the (start, stop) marks of its calls inside the block."""
    spans: dict[str, list[tuple]] = {name: [] for name in layers}
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        starts: list[object] = []
        handles.append(layer.register_forward_pre_hook(lambda *_: starts.append(clock.mark())))
        handles.append(layer.register_forward_hook(lambda *_: spans[name].append((starts.pop(), clock.mark()))))

    try:
        for name, layer in layers.items():
            watch(name, layer)
        yield spans
    finally:
        for handle in handles:
            handle.remove()


def _seconds(step: Callable[[], object], clock: Clock) -> float:
    start = clock.mark()
    step()
    stop = clock.mark()
    clock.synchronise()
    return clock.seconds(start, stop)
