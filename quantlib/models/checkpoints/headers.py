"""What the weight files of a folder hold, read before anything is loaded. Start from :func:`read_headers`.

Nothing is unpickled: only safetensors files are opened, whose header is JSON that the safetensors package checks. No
path out of the folder is followed: an index may name files, not paths.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from quantlib.models.checkpoints.fields import Fields
from quantlib.models.checkpoints.layout import Note

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
KEY = "quantlib"  # in a file's metadata
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
LARGEST_JSON = 100_000_000


@dataclass(frozen=True)
class Entry:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Headers:
    """entries by name; note and sums as the file's writer left them, None and {} in files of other tools."""

    entries: dict[str, Entry]
    note: Note | None
    sums: dict[Path, str]


def read_headers(folder: Path) -> Headers:
    """Of all weight files of a folder. Raises ValueError, in a sentence, for anything that is not as it must be."""
    files, index = _weight_files(folder)
    entries: dict[str, Entry] = {}
    notes, sums = [], {}
    for file in files:
        with opened(file) as tensors:
            for name in tensors.keys():  # noqa: SIM118: no mapping
                if name in entries:
                    raise ValueError(f"{name} is in {entries[name].file.name} and in {file.name}")
                piece = tensors.get_slice(name)
                dtype = DTYPES.get(piece.get_dtype())
                if dtype is None:
                    raise ValueError(f"{file.name}: {name} has the dtype {piece.get_dtype()}, which is not read here")
                entries[name] = Entry(file, tuple(piece.get_shape()), dtype)
            note, sums[file] = _left_by_writer(tensors.metadata() or {}, file)
            notes.append(note)
    if index is not None:
        _check_index(index, entries)
    if len(set(notes)) > 1:
        raise ValueError("the weight files do not agree on what their grid was: they are of different checkpoints")
    return Headers(entries, notes[0], {file: digest for file, digest in sums.items() if digest is not None})


@contextmanager
def opened(file: Path) -> Iterator[safe_open]:
    """A safetensors file, open for reading. Raises ValueError if it is none."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except SafetensorError as error:
        raise ValueError(f"{file.name} is no safetensors file that can be read ({str(error)[:120]})") from error
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read ({error})") from error


def check_sum(file: Path, digest: str) -> None:
    """Raises ValueError unless the file's tensors are those that its writer saw."""
    with opened(file) as tensors:
        found = digest_of({name: tensors.get_tensor(name) for name in tensors.keys()})  # noqa: SIM118
    if found != digest:
        raise ValueError(f"{file.name} does not hold what was written into it (another SHA-256): copy it again")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        t = tensors[name].contiguous().cpu()
        digest.update(f"\n{name} {t.dtype} {list(t.shape)}\n".encode())
        if t.numel():
            digest.update(t.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def metadata_of(tensors: Mapping[str, Tensor], note: Note) -> dict[str, str]:
    """What is written into a file beside its tensors."""
    words = {"symmetric": note.symmetric, "narrow_range": note.narrow_range, "sha256": digest_of(tensors)}
    return {"format": "pt", KEY: json.dumps(words)}


def read_json(path: Path) -> object:
    """A JSON file. Raises ValueError if it is missing, too large, or none."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise ValueError(f"{path.name} has {path.stat().st_size} bytes, which no such file needs")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"the folder {str(path.parent)!r} holds no {path.name}") from error
    except (UnicodeDecodeError, json.JSONDecodeError, OSError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON that can be read ({str(error)[:120]})") from error


def _left_by_writer(metadata: Mapping[str, str], file: Path) -> tuple[Note | None, str | None]:
    if KEY not in metadata:
        return None, None
    try:
        words = json.loads(metadata[KEY])
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{file.name}: what its writer noted is damaged") from error
    fields = Fields(words, f"{file.name}: what its writer noted")
    return Note(fields.truth("symmetric"), fields.truth("narrow_range")), fields.text("sha256")


def _weight_files(folder: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """The files, and the index's map of names to files where there is one."""
    if (folder / INDEX).exists():
        named = Fields(read_json(folder / INDEX), INDEX).inner("weight_map").values
        for name, file in named.items():
            plain = isinstance(file, str) and file.endswith(".safetensors") and not set(file) & set("/\\:\0")
            if not plain or file.startswith("."):
                raise ValueError(
                    f"{INDEX}: {name!r} is said to be in {file!r:.80}, which is not a name of a weight file"
                )
        files = [folder / file for file in sorted(set(named.values()))]
        if missing := [file.name for file in files if not file.is_file()]:
            raise ValueError(f"the folder lacks {missing[0]}, which {INDEX} names ({len(missing)} missing in all)")
        if not files:
            raise ValueError(f"{INDEX} names no file")
        return files, named
    files = [folder / SINGLE] if (folder / SINGLE).is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files, None
    if files:
        raise ValueError(f"the folder holds {len(files)} weight files and no {INDEX}, which says what is in which")
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
    if pickles:
        raise ValueError(
            f"{pickles[0]} would have to be unpickled, which can run code: convert it to safetensors first"
        )
    raise ValueError(f"the folder {str(folder)!r} holds no {SINGLE}")


def _check_index(named: Mapping[str, str], entries: Mapping[str, Entry]) -> None:
    for name in named.keys() ^ entries.keys():
        where = "the index names it and no file holds it" if name in named else "a file holds it and the index does not"
        raise ValueError(f"{name}: {where}")
    for name, file in named.items():
        if entries[name].file.name != file:
            raise ValueError(f"{name} is in {entries[name].file.name}, and the index says {file}")
