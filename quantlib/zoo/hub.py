"""Causal language models from a folder or the Hugging Face hub, through transformers. Start from `load_pretrained`.

What was downloaded once is used without asking the network again; `hf cache rm` makes it be downloaded anew. Weights are
float32 on the CPU, where half precision is slow and rounds; on a GPU they keep the dtype in which they are stored,
because a 7B model in float32 would need 28 GB.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import httpx
import huggingface_hub
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from quantlib.progress import can_redraw, megabytes, show_message
from quantlib.zoo.fetch import FetchError

HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
HUB_SECONDS = 10  # how long the hub may take to answer what a model consists of
# The names transformers reads; some models carry a second copy under another.
WEIGHTS = re.compile(r"model[^/]*\.safetensors")
PARTS = ("*.json", "*.txt", "*.model", "*.jinja")  # config, tokenizer, chat template
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
CODES = {  # the last part of a tensor's name -> who keeps codes under it
    "codes": "quantlib",
    "qweight": "GPTQ or AWQ",
    "weight_packed": "compressed-tensors",
    "SCB": "bitsandbytes",
    "absmax": "bitsandbytes",
}
SAMPLES, SAMPLE_BYTES = 64, 1 << 20


def load_pretrained(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str, str]:
    """(model, tokenizer, name, checksum) of a folder or a hub name, as `quantlib.zoo.zoo.load_model` describes them."""
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        _refuse_codes(name, _tensor_names(folder))  # a missing tokenizer is not what is wrong with such a folder
        for patterns in (("config.json",), ("*.safetensors",), TOKENIZERS):
            if not any(any(folder.glob(pattern)) for pattern in patterns):
                raise FetchError(
                    f"the folder {str(folder)!r} holds no {patterns[0]}: write it with model.save_pretrained(folder) "
                    "and tokenizer.save_pretrained(folder)."
                )
        return *_load(str(folder), device), folder.resolve().name, weights_checksum(folder)
    if not HUB_NAME.fullmatch(name):
        raise FetchError(
            f"{name!r} is neither an existing folder nor a model's name: use 'SmolLM2-135M-Instruct', 'stories15M', a "
            "folder with config.json and *.safetensors, or a hub name such as 'HuggingFaceTB/SmolLM2-135M-Instruct'."
        )
    try:
        loaded = _load(name, device)
    except FetchError:  # not in the hub's cache, or not all of it
        _download(name)
        loaded = _load(name, device)
    config_file = huggingface_hub.try_to_load_from_cache(name, "config.json")
    return *loaded, name, weights_checksum(Path(config_file).parent)


def weights_checksum(folder: Path) -> str:
    """SHA-256 over config.json and, of each safetensors file, its name, its size and 64 samples of 1 MiB, evenly spread.

    Files of up to 64 MiB are read whole. Training moves every weight, so that a fine-tuned copy never shares the sum of
    its original, and a 14 GB model costs a tenth of a second instead of a minute; a single altered byte may escape.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"\n{path.name} {size}\n".encode())
        last = max(size - SAMPLE_BYTES, 0)
        with open(path, "rb") as stream:
            for start in sorted({last * sample // (SAMPLES - 1) for sample in range(SAMPLES)}):
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _load(name: str, device: torch.device) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """From a folder or the hub's cache, without asking the network. Raises FetchError if a part is not there."""
    options = {"local_files_only": True, "trust_remote_code": False}
    dtype = torch.float32 if device.type == "cpu" else "auto"
    with _quiet(), _loading_explained(name):
        config = AutoConfig.from_pretrained(name, **options)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{name!r} is already quantized: give load_model the float model it was made from, "
            "or open a folder of it with load_quantized."
        )
    with _quiet(), _loading_explained(name):
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
        except ValueError as error:  # transformers' word for files that are not there
            raise OSError(f"its tokenizer ({_first_line(error)})") from error
        model, report = AutoModelForCausalLM.from_pretrained(
            name, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **options
        )
    _refuse_codes(name, report["unexpected_keys"])
    if absent := sorted(report["missing_keys"]):
        lacks = f"{len(absent)} of its weights, {absent[0]} among them"
        raise FetchError(f"{name!r} lacks {lacks}: save or download it again.")
    return model.eval().requires_grad_(False).to(device), tokenizer


def _refuse_codes(name: str, tensors: Iterable[str]) -> None:
    """Raises ValueError if some of these tensors are named as quantized layers name their codes."""
    if quantized := [key for key in sorted(tensors) if key.rpartition(".")[2] in CODES]:
        maker = CODES[quantized[0].rpartition(".")[2]]
        way = "and quantize that again" if maker == "quantlib" else "or open this one with load_quantized"
        raise ValueError(
            f"{name!r} is already quantized, {quantized[0]} and {len(quantized) - 1} more of its tensors hold codes as "
            f"{maker} keeps them: give load_model the float model it was made from, {way}."
        )


def _tensor_names(folder: Path) -> list[str]:
    """Of all safetensors files of a folder; none of a damaged one, which loading tells of."""
    names: list[str] = []
    for path in folder.glob("*.safetensors"):
        with suppress(SafetensorError, OSError), safe_open(path, "pt") as file:
            names += file.keys()
    return names


def _download(name: str) -> None:
    """Brings the parts that `_load` reads into the hub's own cache, where an interrupted download is resumed."""
    try:
        # Asked for first: it answers at once where a download would retry for long.
        info = huggingface_hub.HfApi().model_info(name, files_metadata=True, timeout=HUB_SECONDS)
        weights = {file.rfilename: file.size or 0 for file in info.siblings if WEIGHTS.fullmatch(file.rfilename)}
        if weights:
            show_message(f"{name}: {megabytes(sum(weights.values()))} to download from the Hugging Face hub")
            with nullcontext() if can_redraw() else _quiet():  # no bar that nobody could see move
                huggingface_hub.snapshot_download(name, allow_patterns=[*PARTS, *weights], ignore_patterns="*/*")
            return
        said = (
            "offers no model*.safetensors files, and other formats would have to be unpickled, which can run code of a "
            "stranger's: choose another model"
        )
    except GatedRepoError:  # what such a model consists of may be public, its files are not
        said = (
            f"is given only to those who accept its licence: do so on https://huggingface.co/{name}, then run "
            "`hf auth login`"
        )
    except RepositoryNotFoundError:
        said = (
            "is not a model on the Hugging Face hub, or a private one: check the spelling (owner/model), or run "
            "`hf auth login`; the lessons' own models are 'SmolLM2-135M-Instruct' and 'stories15M'"
        )
    except (OSError, httpx.HTTPError) as error:  # OSError: HF_HUB_OFFLINE, a full disk, an answer that is an HTTP error
        said = (
            "is neither a folder nor whole in the hub's cache here, and the download from the Hugging Face hub "
            f"failed ({type(error).__name__}: {_first_line(error)}): connect to the internet and run this again, which "
            "goes on where it stopped, or name a folder, 'SmolLM2-135M-Instruct' or 'stories15M'"
        )
    raise FetchError(f"{name!r} {said}.")


@contextmanager
def _loading_explained(name: str) -> Iterator[None]:
    """What transformers raises, in one sentence each; the original stays attached as the cause."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        said = f"the weight files of {name!r} are damaged or do not fit its config.json: replace them."
        raise FetchError(said) from error
    except OSError as error:
        raise FetchError(f"{name!r} cannot be loaded, because a part of it is missing: {_first_line(error)}") from error
    except (ValueError, KeyError, ImportError) as error:
        raise ValueError(
            f"{name!r} is not a causal language model that transformers {transformers.__version__} loads by itself "
            f"({_first_line(error)}): choose another model."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar, transformers' or the hub's, and no warning; what was chosen before is chosen again afterwards."""
    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
