"""Other libraries, held against ours where they are installed: `make peers` makes an environment that has them all.

A file tests one peer; where that is not installed, the file is skipped. A run of the whole suite leaves this folder out.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

HERE = Path(__file__).parent
os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # it counts the machine's cores, not those it may use
sys.path.append(str(HERE.parent / "models"))  # tiny models, which those tests share

PEERS = {  # file -> the peer, as its package index calls it
    "test_peer_compressed_tensors.py": "compressed-tensors",
    "test_peer_llm_compressor.py": "llmcompressor",
    "test_peer_gptqmodel.py": "gptqmodel",
    "test_peer_bitsandbytes.py": "bitsandbytes",
    "test_peer_llama_cpp.py": "llama.cpp",
}


def pytest_ignore_collect(collection_path, config):
    """Everything, unless this folder or a file of it was named."""
    return None if _asked_for(config) else True


def _asked_for(config) -> bool:
    named = [Path(argument.partition("::")[0]).absolute() for argument in config.args]
    return any(path.is_relative_to(HERE) for path in named)


@pytest.fixture(scope="module")
def tokens():
    """int64 [2, 24]: ids that every model here knows."""
    import torch

    return torch.randint(3, 90, (2, 24), generator=torch.Generator().manual_seed(0))


def pytest_terminal_summary(terminalreporter):
    """Which peers were tested, at the end of a run of this folder."""
    if not _asked_for(terminalreporter.config):
        return
    outcomes = {file: {} for file in PEERS}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            file = report.nodeid.partition("::")[0].rpartition("/")[2]
            if file in outcomes:
                outcomes[file][outcome] = outcomes[file].get(outcome, 0) + 1
    terminalreporter.section("peers")
    for file, counts in outcomes.items():
        said = ", ".join(f"{count} {outcome}" for outcome, count in counts.items()) or "not run"
        terminalreporter.line(f"{PEERS[file]} {_version(PEERS[file])}: {said}")


def _version(peer: str) -> str:
    if peer == "llama.cpp":
        from quantlib.measure.llama_cpp import available
        from quantlib.measure.node_llama_cpp import VERSION

        return f"(node-llama-cpp {VERSION})" if available() is None else "is not installed"
    try:
        return version(peer)
    except PackageNotFoundError:
        return "is not installed"
