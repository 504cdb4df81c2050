"""Accuracy on questions with answers: which one the model holds likeliest. Start from :func:`score`.

The log-likelihood of each answer is summed over its tokens, as EleutherAI's harness does for "acc". The question is
read once: its keys and values are kept, and the answers follow it side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn


class Question(Protocol):
    """quantlib.zoo.tasks.Item is one."""

    context: str
    choices: tuple[str, ...]
    right: int


@dataclass(frozen=True, eq=False)
class Scores:
    """How a model answers questions.

    log_likelihoods  float32 [items, most choices], nats; NaN where an item has fewer choices
    right            bool [items]
    """

    log_likelihoods: Tensor
    right: Tensor

    @property
    def accuracy(self) -> float:
        """The share of the items that are right."""
        return self.right.double().mean().item()


def score(model: nn.Module, tokenizer: object, items: Sequence[Question]) -> Scores:
    """How a causal language model answers; it is called on the CPU or wherever its parameters are.

    An item with several choices is right if the right one is the likeliest; one with a single choice if every token of
    it was the likeliest in its place.

    Raises ValueError for no items, and for a context or a choice without tokens.
    """
    if not items:
        raise ValueError("items must hold at least one question: load_task(...) gives some")
    model.eval()
    most, likelihoods, right = max(len(item.choices) for item in items), [], []
    for item in items:
        found, greedy = _answers(model, tokenizer, item)
        likelihoods.append(torch.nn.functional.pad(found, (0, most - len(found)), value=torch.nan))
        right.append(bool(greedy[0]) if len(found) == 1 else int(found.argmax()) == item.right)
    return Scores(torch.stack(likelihoods), torch.tensor(right))


def _answers(model: nn.Module, tokenizer: object, item: Question) -> tuple[Tensor, Tensor]:
    """Of each choice the log-likelihood, float32 [choices], and whether greedy decoding writes it, bool [choices]."""
    context = torch.tensor(tokenizer.encode(item.context))
    choices = [torch.tensor(tokenizer.encode(choice)) for choice in item.choices]
    if not len(context) or not all(map(len, choices)):
        raise ValueError(f"{item} has a context or a choice without tokens: leave it out")
    device = next(model.parameters()).device
    width, count = max(map(len, choices)), len(choices)
    ids = torch.zeros(count, width, dtype=torch.int64)  # filled up behind: what comes later is not seen
    for row, choice in zip(ids, choices, strict=True):
        row[: len(choice)] = choice
    with torch.inference_mode():
        read = model(context[None].to(device), use_cache=True)
        first, later = read.logits[:, -1:].expand(count, -1, -1), []  # [choices, 1, vocabulary]
        if width > 1:
            read.past_key_values.batch_repeat_interleave(count)
            out = model(ids[:, :-1].to(device), past_key_values=read.past_key_values, use_cache=True)
            later = [out.logits]  # [choices, width - 1, vocabulary]
        logits = torch.cat([first, *later], 1).float().cpu()
    said = logits.log_softmax(-1).gather(2, ids[..., None])[..., 0]  # [choices, width]
    best = logits.argmax(-1) == ids
    ends = [len(choice) for choice in choices]
    likelihoods = torch.stack([row[:end].sum() for row, end in zip(said, ends, strict=True)])
    return likelihoods, torch.stack([row[:end].all() for row, end in zip(best, ends, strict=True)])
