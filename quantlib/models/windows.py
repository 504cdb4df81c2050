"""The text that a model is calibrated on, cut as the papers cut it. Start from :func:`token_windows`.

Source: Frantar et al. 2023 (arXiv:2210.17323), section 4: segments of fixed length from a text joined to one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBE = 32  # tokens in a row that two texts do not share by chance


def token_windows(
    text: str | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    count: int,
    seed: int,
    *,
    evaluation: str | Sequence[str] | None = None,
) -> Tensor:
    """Windows of a text, int64 [count, length], for calibration: disjoint, drawn at random, the same for the same seed.

    text        a string, or its parts, which are joined by a blank line
    tokenizer   of the model. No BOS is added, nothing is padded; special tokens that the text itself spells
                ("</s>") are left out, because no reader of plain text meets them
    evaluation  the text that the model will be measured on. A window that shares 63 tokens in a row with it is an error

    Raises ValueError for a text too short for that many windows, saying how many it has, and for windows of the
    evaluation text.
    """
    for name, value in (("length", length), ("count", count)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number from 1 on, got {value!r}")
    ids = _ids(text, tokenizer)
    if len(ids) < count * length:
        raise ValueError(
            f"text has {len(ids)} tokens, {len(ids) // length} windows of {length}: {count} were asked for; "
            "take a longer text, fewer windows or shorter ones"
        )
    generator = torch.Generator().manual_seed(seed)
    offset = int(torch.randint(min(length, len(ids) - count * length + 1), (), generator=generator))
    slots = (len(ids) - offset) // length
    chosen = torch.randperm(slots, generator=generator)[:count]
    windows = ids[offset : offset + slots * length].view(slots, length)[chosen]  # [count, length]
    if evaluation is not None:
        _check_apart(windows, _ids(evaluation, tokenizer))
    return windows


def checked_windows(model: nn.Module, windows: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Calibration windows as a list of int64 [tokens], padding cut off at both ends.

    Padding in front would stand where later tokens look for the first one of a text: read as text it spoils what they
    read, and left out of the sums it takes the most read token of all with it.

    Raises ValueError or TypeError for something else, for no window, for padding alone and for ids that the model's
    vocabulary lacks.
    """
    rows = list(windows.unbind() if isinstance(windows, Tensor) and windows.ndim == 2 else windows)
    if not rows:
        raise ValueError("windows must hold at least one window of tokens, got none: token_windows(...) cuts them")
    vocabulary = getattr(getattr(model, "config", None), "vocab_size", None)
    for i, row in enumerate(rows):
        row = torch.as_tensor(row)
        if row.ndim != 1 or row.is_floating_point() or row.dtype == torch.bool or not len(row):
            raise TypeError(
                f"windows must be int64 [count, length] or rows of token ids, got {row.dtype} {list(row.shape)} at {i}"
            )
        rows[i] = row.long().cpu()
        low, high = int(rows[i].min()), int(rows[i].max())
        if low < 0 or (vocabulary is not None and high >= vocabulary):
            raise ValueError(
                f"windows[{i}] holds token {low if low < 0 else high}, outside the model's vocabulary of {vocabulary}: "
                "cut them with the model's own tokenizer"
            )
    rows = [trimmed for row in rows if len(trimmed := _trimmed(model, row))]
    if not rows:
        raise ValueError("windows hold nothing but the model's padding token: there is no text to calibrate on")
    return rows


def _trimmed(model: nn.Module, window: Tensor) -> Tensor:
    """The window from its first to its last token that is text."""
    text = not_padding(model, window)
    if text is None:
        return window
    where = text.nonzero()  # [text tokens, 1]
    return window[int(where[0]) : int(where[-1]) + 1] if len(where) else window[:0]


def not_padding(model: nn.Module, window: Tensor) -> Tensor | None:
    """bool [tokens]: which are text, not the padding between two texts. None if all are, and if a model's config names
    no padding token.
    """
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    text = None if pad is None else window != pad
    return None if text is None or bool(text.all()) else text


def _ids(text: str | Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """int64 [tokens] of a text, special tokens left out."""
    joined = text if isinstance(text, str) else "\n\n".join(text)
    ids = torch.tensor(tokenizer.encode(joined, add_special_tokens=False, verbose=False), dtype=torch.int64)
    special = torch.tensor(tokenizer.all_special_ids, dtype=torch.int64)
    return ids[~torch.isin(ids, special)]


def _check_apart(windows: Tensor, evaluation: Tensor) -> None:
    text = np.ascontiguousarray(evaluation.numpy(), dtype="<i4").tobytes()
    step = min(PROBE, windows.shape[1])
    for i, window in enumerate(windows):
        for start in range(0, windows.shape[1] - step + 1, step):
            piece = np.ascontiguousarray(window[start : start + step].numpy(), dtype="<i4").tobytes()
            if piece in text:
                raise ValueError(
                    f"window {i} overlaps the evaluation text from its token {start} on: a model calibrated on it is "
                    "flattered by the measurement; calibrate on another split"
                )
