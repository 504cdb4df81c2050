"""Runs the pages and keeps what they printed and drew. Start at `executed`; `keep` takes a run that the tests made.

A page is run in a fresh kernel of this Python, in its own folder, and the result is kept as a notebook in
`_build/executed/`. It is used again only while everything it depends on is unchanged: the page, quantlib, the
recordings and experiments, the required and the installed versions, the machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionComplete, CellExecutionError, CellTimeoutError, DeadKernelError
from problems import BuildFailed, Problem
from stops import Stopped, beside, kill_group

SOURCES = ("quantlib", "lessons/recorded", "lessons/experiments", "requirements.txt")
VERSIONS = ("torch", "numpy", "transformers", "tokenizers", "safetensors", "gguf", "matplotlib", "triton")
CPU_SETTINGS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # make it stand for an older one
TIMEOUT = 600  # seconds a cell may take
FENCE = re.compile(r"^(`{3,}|~{3,})\{code-cell\}")
ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def machine() -> str:
    """What the page's numbers were made on, in the words of its last line: `torch 2.13.0, 2 CPU cores`."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        torch = f"torch {importlib.metadata.version('torch').split('+')[0]}, "
    except importlib.metadata.PackageNotFoundError:
        torch = ""
    return f"{torch}{cores} CPU core{'s' if cores > 1 else ''}"


def cpu() -> str:
    """The name of the processor, for the page that says what the book was made on; empty where nobody tells."""
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    named = re.search(r"^model name\s*: (.+)$", told, re.MULTILINE)
    return named[1].strip() if named else platform.processor()


def versions() -> dict[str, str]:
    """Of Python, and of the packages in VERSIONS that are installed."""
    found = {"Python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _files(root: Path) -> list[Path]:
    found: list[Path] = []
    for name in SOURCES:
        path = root / name
        found += [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return sorted(found)


def key(page: Path, root: Path) -> str:
    """A digest of everything that the outputs of `page` depend on."""
    digest = hashlib.sha256()
    for path in [page, Path(__file__), *_files(root)]:
        digest.update(f"{path.name if path == Path(__file__) else path.relative_to(root)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    installed = sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions())
    settings = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("QUANTLIB_", *CPU_SETTINGS)))
    digest.update(json.dumps([sys.version, machine(), installed, settings]).encode())
    return digest.hexdigest()


def code_lines(text: str) -> list[int]:
    """The line of `text`, from 1, on which the code of each `{code-cell}` begins: after its options and a blank."""
    lines, starts, i = text.splitlines(), [], 0
    while i < len(lines):
        fence = FENCE.match(lines[i])
        i += 1
        if not fence:
            continue
        if i < len(lines) and lines[i].strip() == "---":
            i = next((j + 1 for j in range(i + 1, len(lines)) if lines[j].strip() == "---"), i)
        else:
            while i < len(lines) and re.match(r":[\w-]+:", lines[i]):
                i += 1
        while i < len(lines) and not lines[i].strip():
            i += 1
        starts.append(i + 1)
        while i < len(lines) and not re.match(rf"{fence[1]}\s*$", lines[i]):
            i += 1
        i += 1
    return starts


def _seconds(cell: nbformat.NotebookNode) -> float | None:
    times = cell.metadata.pop("execution", {})
    try:
        begin, end = (datetime.fromisoformat(times[k]) for k in ("iopub.execute_input", "shell.execute_reply"))
    except KeyError:
        return None
    return round((end - begin).total_seconds(), 3)


def _failure(page: Path, root: Path, notebook: nbformat.NotebookNode, error: Exception, starts: list[int]) -> Problem:
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    broken = next(
        (
            i
            for i, c in enumerate(cells)
            if any(o.output_type == "error" for o in c.outputs) and "raises-exception" not in c.metadata.get("tags", [])
        ),
        None,
    )
    if broken is None:  # a timeout or a dead kernel: the first cell that has not finished
        broken = next(
            (i for i, c in enumerate(cells) if "execution" not in c.metadata or "shell.execute_reply" not in c.metadata.execution),
            0,
        )
    line = starts[broken] if broken < len(starts) else None
    inside = re.findall(r"Cell In\[\d+\], line (\d+)", ANSI.sub("", str(error)))
    if line and inside:
        line += int(inside[0]) - 1
    if not isinstance(error, CellExecutionError):
        what = str(error).strip().splitlines()[0]
    elif error.evalue or not line:
        what = f"{error.ename}: {error.evalue}"
    else:  # a bare assert says nothing: its line does
        what = f"{error.ename} at: {page.read_text(encoding='utf-8').splitlines()[line - 1].strip()}"
    return Problem(
        str(page.relative_to(root)),
        f"the cell raised {what}",
        "run the page in JupyterLab (make lab) and mend it; if the error is the point, tag the cell raises-exception",
        line,
    )


def environment(root: Path) -> dict[str, str]:
    """The variables a page's kernel is started with, beside those of this process."""
    return {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "QUANTLIB_STATIC": "1",  # a widget draws all its frames, and one that cannot be drawn raises
    }


def _client(page: Path) -> tuple[NotebookClient, list[int]]:
    """For the page's notebook, not yet run; and where its cells begin."""
    text = page.read_text(encoding="utf-8")
    client = NotebookClient(
        jupytext.reads(text, fmt="md:myst"),
        timeout=TIMEOUT,
        kernel_name="python3",
        record_timing=True,
        store_widget_state=False,
        extra_arguments=["--log-level=CRITICAL"],
        resources={"metadata": {"path": str(page.parent)}},
    )
    return client, code_lines(text)


def _run(page: Path, root: Path) -> nbformat.NotebookNode:
    client, starts = _client(page)
    try:
        if starts:  # a page without code needs no kernel
            beside(partial(client.execute, env=os.environ | environment(root)))
    except Stopped:
        kill_group(getattr(getattr(client.km, "provisioner", None), "pid", None))
        raise
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        raise BuildFailed([_failure(page, root, client.nb, error, starts)]) from None
    return _marked(client.nb, starts)


def _marked(notebook: nbformat.NotebookNode, starts: list[int]) -> nbformat.NotebookNode:
    """With what the template wants to know of the run."""
    for i, cell in enumerate(notebook.cells):
        cell.id = f"cell-{i}"
    code, total = [cell for cell in notebook.cells if cell.cell_type == "code"], 0.0
    for i, cell in enumerate(code):
        spent = _seconds(cell)
        total += spent or 0
        cell.metadata["book"] = {"seconds": spent, "line": starts[i] if i < len(starts) else None}
    notebook.metadata["book"] = {"machine": machine(), "cpu": cpu(), "versions": versions(), "seconds": round(total, 3)}
    return notebook


def _write(notebook: nbformat.NotebookNode, target: Path, wanted: str) -> None:
    notebook.metadata["book"]["key"] = wanted
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(f".{os.getpid()}.part")
    part.write_text(nbformat.writes(notebook), encoding="utf-8")
    part.replace(target)


def keep(page: Path, root: Path, folder: Path, wanted: str, heard: Sequence[Sequence[Mapping]]) -> bool:
    """Keeps a run that ended well, as `executed` keeps its own; False if the page or what it uses has changed since.

    wanted  key(page, root) before the run, which was in a kernel with `environment(root)`, in the page's folder
    heard   of each code cell, the messages about it on the kernel's iopub channel, to the one that says it is idle
    """
    if key(page, root) != wanted:
        return False
    client, starts = _client(page)
    client.reset_execution_trackers()
    client.clear_before_next_output = False
    code = [(i, cell) for i, cell in enumerate(client.nb.cells) if cell.cell_type == "code"]
    for count, ((i, cell), messages) in enumerate(zip(code, heard, strict=True), 1):
        cell.metadata["execution"] = {}
        for message in messages:
            try:
                client.process_message(message, cell, i)
            except CellExecutionComplete:  # the reply, on another channel, was just before
                cell.metadata["execution"]["shell.execute_reply"] = cell.metadata["execution"]["iopub.status.idle"]
                break
        for numbered in (cell, *(o for o in cell.outputs if o.output_type == "execute_result")):
            numbered["execution_count"] = count  # tests run cells outside the history, which counts
    _write(_marked(client.nb, starts), folder / f"{page.stem}.ipynb", wanted)
    return True


def executed(page: Path, root: Path, folder: Path) -> tuple[Path, bool]:
    """The executed notebook of `page` below `folder`, and whether it had to be run. Raises BuildFailed with the line that raised."""
    target, wanted = folder / f"{page.stem}.ipynb", key(page, root)
    if target.exists():
        try:
            if json.loads(target.read_text(encoding="utf-8"))["metadata"]["book"]["key"] == wanted:
                return target, False
        except (KeyError, ValueError):
            pass  # half-written or older: run again
    target.unlink(missing_ok=True)  # if the page fails now, nothing old may take its place
    _write(_run(page, root), target, wanted)
    return target, True
