"""How much a model lost: perplexity, agreement with a reference, and whether a difference is noise.

Start from :func:`perplexity`. One protocol serves every page: disjoint windows of the text, no BOS token, each
window predicted from its own beginning. Results keep the loss of every token, so that two models are compared
**paired**, on the same predictions (:func:`paired_bootstrap`), and an order within noise is called a tie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS_AT_ONCE = 128  # log-probabilities of 128 tokens over 49,152 words take 25 MB; of a whole window, 200 MB

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")  # as configurations call them


@dataclass(frozen=True)
class Protocol:
    """What was predicted: so many disjoint windows of so many tokens, each token from those before it in its window."""

    window: int
    windows: int
    dtype: str

    @property
    def predictions(self) -> int:
        """The first token of a window is not predicted."""
        return self.windows * (self.window - 1)

    def __str__(self):
        return f"{self.windows} disjoint windows of {self.window} tokens, no BOS, {self.predictions} predictions, {self.dtype}"


@dataclass(frozen=True, eq=False)
class Perplexity:
    """value = exp(mean nll); nll float32 [windows, window − 1] in nats, on the CPU; the protocol."""

    value: float
    nll: Tensor
    protocol: Protocol

    def __str__(self):
        return f"{self.value:.2f} ({self.protocol})"


@dataclass(frozen=True, eq=False)
class Agreement:
    """How far a model is from its reference, over all predictions.

    kl         mean KL(reference ‖ model) in nats
    top1       share of positions where both put the same token first
    kl_tokens  float32 [windows, window − 1], nats;  same_top1  bool [windows, window − 1]
    """

    kl: float
    top1: float
    kl_tokens: Tensor
    same_top1: Tensor
    protocol: Protocol


@dataclass(frozen=True)
class PairedDifference:
    """mean of b − a, and the interval [low, high] that holds it at the stated level."""

    mean: float
    low: float
    high: float
    level: float

    @property
    def verdict(self) -> str:
        """ "higher" or "lower" (b than a) if the interval excludes 0, else "tie"."""
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "tie"

    def __str__(self):
        return f"{self.mean:+.4f} [{self.low:+.4f}, {self.high:+.4f}]: {self.verdict}"


def perplexity(
    model: torch.nn.Module, tokens: Sequence[int] | Tensor, window: int = 1024, max_windows: int = 8
) -> Perplexity:
    """exp of the mean negative log-likelihood of a text, in disjoint windows.

    model   a causal language model: called with int64 [1, window], returns logits [1, window, vocabulary], or an
            object that has them as .logits
    tokens  the text as token ids, 1-D; the first window · max_windows are used

    The model is evaluated in eval mode and given back as it was.

    Raises ValueError if the text does not fill one window, or window < 2, or max_windows < 1, or the model's
    configuration says that it has fewer positions than a window.
    """
    windows = _windows(tokens, window, max_windows, model)  # [windows, window]
    with _evaluating(model):
        nll = _over_windows(lambda ids: _nll(_logits(model, ids), ids[1:]), windows)  # [windows, window - 1]
    return Perplexity(math.exp(min(nll.double().mean().item(), 700.0)), nll, _protocol(model, windows))


def compare(
    reference: torch.nn.Module,
    model: torch.nn.Module,
    tokens: Sequence[int] | Tensor,
    window: int = 1024,
    max_windows: int = 8,
) -> Agreement:
    """KL(reference ‖ model) and top-1 agreement on a text, under perplexity's protocol and with its arguments."""
    windows = _windows(tokens, window, max_windows, reference, model)
    kl, same = [], []
    with _evaluating(reference, model):
        for ids in windows:
            expected, got = _logits(reference, ids), _logits(model, ids)  # [window - 1, vocabulary]
            kl.append(_by_rows(_kl, expected, got))
            same.append((expected.argmax(-1) == got.argmax(-1)).cpu())
    kl_tokens, same_top1 = torch.stack(kl), torch.stack(same)  # [windows, window - 1]
    return Agreement(
        kl_tokens.double().mean().item(),
        same_top1.double().mean().item(),
        kl_tokens,
        same_top1,
        _protocol(model, windows),
    )


def paired_bootstrap(
    a: Perplexity | Tensor, b: Perplexity | Tensor, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """The mean of b − a over the same predictions, with a bootstrap interval over windows.

    a, b  losses [windows, predictions], or two Perplexity under one protocol. Whole windows are resampled, because
    the losses inside one are not independent of each other.

    Raises ValueError if the shapes differ, there are fewer than two windows or no predictions, a loss is NaN or
    infinite (saying where), or level is not in (0, 1).
    """
    a, b = (x.nll if isinstance(x, Perplexity) else x for x in (a, b))
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"a and b must be the losses of the same predictions, [windows, predictions] each; got {list(a.shape)} and {list(b.shape)}"
        )
    if len(a) < 2:
        raise ValueError(f"a bootstrap over windows needs at least 2 of them, got {len(a)}: raise max_windows")
    if not a.shape[1]:
        raise ValueError("a and b hold no predictions, so nothing can be compared: evaluate windows of at least 2 tokens")
    for name, losses in (("a", a), ("b", b)):
        if len(bad := (~torch.isfinite(losses)).nonzero()):
            window, prediction = bad[0].tolist()
            raise ValueError(
                f"{name} holds {len(bad)} losses that are NaN or infinite, the first {losses[window, prediction].item()} "
                f"in window {window} at prediction {prediction}: leave such windows out of both, or mend the model"
            )
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    of_window = (b.double() - a.double()).mean(1)  # [windows]
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(of_window), (resamples, len(of_window)), generator=generator)  # [resamples, windows]
    means = of_window[drawn].mean(1)  # [resamples]
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = means.quantile(tails).tolist()
    return PairedDifference(of_window.mean().item(), low, high, level)


def _windows(tokens: Sequence[int] | Tensor, window: int, max_windows: int, *models: torch.nn.Module) -> Tensor:
    """int64 [windows, window] on the CPU, which all models have positions for."""
    tokens = torch.as_tensor(tokens)
    if tokens.ndim != 1 or tokens.is_floating_point():
        raise ValueError(f"tokens must be one sequence of token ids, got {tokens.dtype} {list(tokens.shape)}")
    if window < 2 or max_windows < 1:
        raise ValueError(f"window must be at least 2 and max_windows at least 1, got {window} and {max_windows}")
    positions = min((n for model in models if (n := _positions(model))), default=window)
    if window > positions:
        raise ValueError(
            f"window={window} is longer than the {positions} positions the model is made for, beyond which it predicts "
            f"at random: pass window={positions} or less"
        )
    count = min(max_windows, len(tokens) // window)
    if count == 0:
        raise ValueError(
            f"tokens hold {len(tokens)}, which does not fill one window of {window}: pass a longer text or a smaller window"
        )
    return tokens[: count * window].reshape(count, window).long().cpu()


def _positions(model: torch.nn.Module) -> int | None:
    """How many tokens a model can read at once, if its configuration says so."""
    config = getattr(model, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = (getattr(config, name, None) for name in POSITIONS)
    return next((n for n in found if isinstance(n, int) and n > 0), None)


@contextmanager
def _evaluating(*models: torch.nn.Module) -> Iterator[None]:
    """Inside, no module of these models is in training mode; afterwards each is as it was."""
    training = [module for model in models for module in model.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _over_windows(measure: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    return torch.stack([measure(ids) for ids in windows])


def _logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Logits that predict ids[1:], [window - 1, vocabulary], in the model's dtype on its device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    with torch.inference_mode():
        out = model(ids.unsqueeze(0).to(device))  # [1, window, vocabulary]
    return (out if isinstance(out, Tensor) else out.logits)[0, :-1]


def _nll(logits: Tensor, targets: Tensor) -> Tensor:
    """float32 [tokens] on the CPU."""
    return _by_rows(lambda x, t: F.cross_entropy(x.float(), t, reduction="none"), logits, targets.to(logits.device))


def _kl(expected: Tensor, got: Tensor) -> Tensor:
    """KL(expected ‖ got) of each row, float32 [tokens]."""
    return divergence(expected.float().log_softmax(-1), got.float().log_softmax(-1))


def divergence(expected: Tensor, got: Tensor) -> Tensor:
    """KL(expected ‖ got) in nats, of log-probabilities [rows, vocabulary] each: [rows]."""
    share = expected.exp()
    return (share * (expected - got)).masked_fill_(share == 0, 0).sum(-1)  # what never happens costs nothing


def _by_rows(f: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> Tensor:
    return torch.cat([f(x, y).cpu() for x, y in zip(a.split(ROWS_AT_ONCE), b.split(ROWS_AT_ONCE), strict=True)])


def _protocol(model: torch.nn.Module, windows: Tensor) -> Protocol:
    dtype = next((p.dtype for p in model.parameters()), torch.float32)
    return Protocol(windows.shape[1], windows.shape[0], str(dtype).removeprefix("torch."))
