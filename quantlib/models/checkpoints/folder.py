"""A folder, or a file, that appears whole or not at all. Start from :func:`new_folder` and :class:`Shards`."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from quantlib.models.checkpoints.headers import INDEX, SINGLE

PARTIAL = ".{}.partial-"  # what a killed process leaves beside the target; nothing reads it


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, that gets the target's name when the block ends without exception, else is gone.

    It lies beside the target, on the same disk, so that the renaming is one step. Raises ValueError if the target
    exists or its parent does not.
    """
    target = target.expanduser().absolute()
    check_new(target)
    work = Path(tempfile.mkdtemp(prefix=PARTIAL.format(target.name), dir=target.parent))
    try:
        work.chmod(0o777 & ~_umask())
        yield work
        for path in work.iterdir():
            _to_disk(path)
        _to_disk(work)
        check_new(target)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """The same for a file. Its block must write it whole, and close it."""
    target = target.expanduser().absolute()
    check_new(target)
    handle, name = tempfile.mkstemp(prefix=PARTIAL.format(target.name), dir=target.parent)
    os.close(handle)
    work = Path(name)
    try:
        yield work
        work.chmod(0o666 & ~_umask())
        _to_disk(work)
        check_new(target)
        work.rename(target)
    except BaseException:
        work.unlink(missing_ok=True)
        raise


def check_new(target: Path) -> None:
    """Raises ValueError if something has this name, or there is no folder to put it into."""
    if os.path.lexists(target):
        raise ValueError(f"{str(target)!r} exists already: name a new one, or remove it first")
    if not target.parent.is_dir():
        raise ValueError(f"{str(target.parent)!r} is not a folder: make it first")


class Shards:
    """Tensors into safetensors files of a limited size, as they come: only one file's are held in memory."""

    def __init__(self, folder: Path, limit: int, metadata: Callable[[Mapping[str, Tensor]], dict[str, str]]):
        if limit < 1:
            raise ValueError(f"max_shard_bytes must be at least 1, got {limit}")
        self.folder, self.limit, self.metadata = folder, limit, metadata
        self.held: dict[str, Tensor] = {}
        self.held_bytes = self.total = 0
        self.written: list[tuple[Path, list[str]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """One more; a tensor larger than the limit gets a file of its own."""
        size = tensor.numel() * tensor.element_size()
        if self.held and self.held_bytes + size > self.limit:
            self._write()
        self.held[name] = tensor.detach().cpu().contiguous()
        self.held_bytes += size
        self.total += size

    def close(self) -> None:
        """Write what is left, give the files their names, and the index where there are several."""
        if self.held or not self.written:
            self._write()
        count = len(self.written)
        if count == 1:
            self.written[0][0].rename(self.folder / SINGLE)
            return
        named = {}
        for number, (path, names) in enumerate(self.written, 1):
            file = f"model-{number:05}-of-{count:05}.safetensors"
            path.rename(self.folder / file)
            named |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self.total}, "weight_map": dict(sorted(named.items()))}
        write_json(self.folder / INDEX, index)

    def _write(self) -> None:
        path = self.folder / f"part-{len(self.written)}.safetensors"
        save_file(self.held, path, metadata=self.metadata(self.held))
        path.chmod(0o666 & ~_umask())
        self.written.append((path, list(self.held)))
        self.held, self.held_bytes = {}, 0


def write_json(path: Path, value: object) -> None:
    """As transformers writes its files."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _to_disk(path: Path) -> None:
    """What was written is there after a loss of power too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
