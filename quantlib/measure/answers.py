"""What a model answers on a text, kept so that many others can be held beside it. Start from :func:`answers`.

A float model is read once: what enters its head, [tokens, hidden], is 85 times smaller than its logits, and the head makes
the logits of it again, a few rows at a time. :func:`beside` then gives what tables of quantized models print: the loss
of every token, KL divergence (as llama.cpp's tool: mean, median, 99th percentile), how often both put the same token
first, and flips.

Flips: Dutta et al. 2024 (arXiv:2407.09141): answers that were right and are wrong now, or the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from quantlib.measure.evaluate import ROWS_AT_ONCE, _evaluating, _windows, divergence


@dataclass(frozen=True, eq=False)
class Answers:
    """What a model answers: head(hidden) are its logits.

    hidden   [windows, window − 1, hidden], on the CPU, what enters the head
    head     the module that makes logits of it
    targets  int64 [windows, window − 1], the tokens that follow
    """

    hidden: Tensor
    head: nn.Module
    targets: Tensor


@dataclass(frozen=True, eq=False)
class Beside:
    """A model beside its reference, over all predictions; [windows, window − 1] each.

    nll    float32, nats, of the model
    kl     float32, nats, KL(reference ‖ model)
    same   bool, both put the same token first
    right, was_right  bool, the token that follows was put first: by the model, by the reference
    """

    nll: Tensor
    kl: Tensor
    same: Tensor
    right: Tensor
    was_right: Tensor

    @property
    def flips(self) -> Tensor:
        """bool: right before and wrong now, or wrong before and right now."""
        return self.right != self.was_right


def answers(model: nn.Module, tokens: Sequence[int] | Tensor, window: int = 1024, max_windows: int = 8) -> Answers:
    """What a causal language model answers on the beginning of a text, under perplexity's protocol.

    Raises ValueError as `perplexity` does, and for a model whose logits are not what its head makes (Gemma 2 caps them):
    use `compare` for those.
    """
    windows = _windows(tokens, window, max_windows, model)  # [windows, window]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None:
        raise ValueError(f"{type(model).__name__} names no head (get_output_embeddings): use compare(reference, model)")
    device, entered, kept = next(model.parameters()).device, [], []
    handle = head.register_forward_pre_hook(lambda _, args: entered.append(args[0][0]))
    try:
        with _evaluating(model), torch.inference_mode():
            for ids in windows:
                logits = model(ids[None].to(device)).logits[0]  # [window, vocabulary]
                hidden = entered.pop()  # [window, hidden]
                if not kept and not torch.allclose(head(hidden[-1:]), logits[-1:], rtol=1e-3, atol=1e-3):
                    raise ValueError(
                        f"{type(model).__name__} changes its logits behind the head: use compare(reference, model)"
                    )
                kept.append(hidden[:-1].cpu())
    finally:
        handle.remove()
    return Answers(torch.stack(kept), head, windows[:, 1:])


def beside(reference: Answers, found: Answers) -> Beside:
    """A model beside its reference, from what both answer on one text.

    Raises ValueError if the texts differ.
    """
    if not reference.targets.equal(found.targets):
        raise ValueError("reference and found must be answers on the same windows of the same text")
    parts: list[tuple[Tensor, ...]] = []
    with torch.inference_mode():
        for ours, its, targets in zip(*(t.flatten(0, 1).split(ROWS_AT_ONCE) for t in (
            reference.hidden, found.hidden, found.targets
        )), strict=True):  # fmt: skip
            expected, got = _log_likelihoods(reference.head, ours), _log_likelihoods(found.head, its)
            targets = targets[:, None]  # [rows, 1]
            first, was_first = got.argmax(-1), expected.argmax(-1)
            right, was_right = first == targets[:, 0], was_first == targets[:, 0]
            parts.append((-got.gather(1, targets)[:, 0], divergence(expected, got), first == was_first, right, was_right))
    return Beside(*(torch.cat(column).view(found.targets.shape) for column in zip(*parts, strict=True)))


def _log_likelihoods(head: nn.Module, hidden: Tensor) -> Tensor:
    """float32 [rows, vocabulary] on the CPU."""
    device = next(head.parameters()).device
    return head(hidden.to(device)).float().log_softmax(-1).cpu()
