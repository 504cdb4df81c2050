"""What the commands on models share: opening MODEL and TEXT, and ending with a sentence. Start from :func:`open_model`."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

MODEL = (
    "a lesson model (SmolLM2-135M-Instruct, stories15M: fetched once, then offline), a folder, or a name on the "
    "Hugging Face hub"
)
TEXT = "wikitext-2, or a text file"


@dataclass(frozen=True, eq=False)
class Opened:
    """A model, float or quantized, and its tokenizer."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    quantized: bool


def ending_well(work: Callable[[], int]) -> int:
    """What work() returns; 1 after a sentence on stderr for what was refused or failed; 130 for Ctrl-C."""
    try:
        return work()
    except (ValueError, TypeError, OSError) as error:
        print(f"not done: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        return 130


def open_model(name: str) -> Opened:
    """The model of this name. Raises what load_model and load_quantized raise."""
    if is_quantized(Path(name)):
        from transformers import AutoTokenizer

        from quantlib.models.checkpoints.loading import load_quantized

        model = load_quantized(name)
        return Opened(model, AutoTokenizer.from_pretrained(name, local_files_only=True), True)
    from quantlib.zoo.zoo import load_model

    loaded = load_model(name)
    return Opened(loaded.model, loaded.tokenizer, False)


def is_quantized(folder: Path) -> bool:
    """Whether this is a folder whose config.json says so; what is wrong with it is said by who opens it."""
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        return False


def read_text(name: str, split: str) -> str:
    """WikiText-2's split, or a file's text. Raises ValueError for a file that is not there, no text, or empty."""
    if name == "wikitext-2":
        from quantlib.zoo.zoo import load_text

        return load_text("wikitext-2", split)
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror}): name {TEXT}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not text in UTF-8 (byte {error.start}): name {TEXT}") from error
    if not text.strip():
        raise ValueError(f"{name} is empty: name a file with text in it")
    return text


def tokens_of(text: str, opened: Opened, window: int, windows: int):
    """The first window · windows token ids. Raises ValueError if they do not fill one window."""
    import torch

    ids = opened.tokenizer(text[: 40 * window * windows]).input_ids[: window * windows]
    if len(ids) < window:
        raise ValueError(f"the text has {len(ids)} tokens, a window {window}: take a longer text or a smaller --length")
    return torch.tensor(ids)


def length_for(opened: Opened, asked: int) -> int:
    """As many tokens as were asked for, or as the model has positions for."""
    positions = getattr(opened.model.config, "max_position_embeddings", None)
    return min(asked, positions) if isinstance(positions, int) and positions > 1 else asked


def whole(text: str) -> int:
    """A whole number from 1 on, for argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return value


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of a folder's weights."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def size(count: int) -> str:
    """Bytes as a person says them."""
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
