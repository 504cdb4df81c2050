"""A MyST page as the notebook that JupyterLab makes of it, with the line of each cell. Start from :func:`read_page`."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import jupytext.myst
from nbformat import NotebookNode
from nbval.kernel import CURRENT_ENV_KERNEL_NAME
from nbval.plugin import find_comment_markers, find_metadata_tags, metadata_tags

KERNEL = "python3"
CHECK = "nbval-check-output"
CELL_FENCE = re.compile(r"^[ \t>*+\-0-9.]*[`~:]{3,}[ \t]*\{code-cell\}", re.MULTILINE)


@dataclass(frozen=True)
class CodeCell:
    """A code cell of a page.

    node     as nbformat has it
    line     of the page where its code begins, from 1
    options  nbval's: {"check": True} if its output is compared; "skip", "check_exception"
    rtol     the relative tolerance it states, or None
    """

    node: NotebookNode
    line: int
    options: defaultdict[str, bool]
    rtol: float | None


def has_cells(path: Path) -> bool:
    """Whether a Markdown file holds code cells, wherever they stand in it."""
    return CELL_FENCE.search(path.read_text(encoding="utf-8", errors="replace")) is not None


def read_page(path: Path) -> tuple[NotebookNode, list[CodeCell]]:
    """The notebook of a page, and its code cells.

    Raises ValueError, with the page and the line, for a page that could not be tested as its author means: without
    the header that JupyterLab needs, with another kernel than Python's, with a code cell inside a list or directive
    (it never becomes a notebook cell), with a misspelt tag or tolerance.
    """
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.myst.myst_to_notebook(text, add_source_map=True)
    header = notebook.metadata
    if header.get("jupytext", {}).get("text_representation", {}).get("format_name") != "myst":
        raise ValueError(
            f"{path.name}:1: has code cells but no jupytext header with format_name: myst: it opens as text"
        )
    kernel = header.get("kernelspec", {}).get("name")
    if kernel != KERNEL:
        raise ValueError(
            f"{path.name}:1: asks for the kernel {kernel!r}, lessons run on {KERNEL!r}: mend its kernelspec"
        )
    header.kernelspec.name = CURRENT_ENV_KERNEL_NAME  # this very Python, whatever a user has installed as python3
    code = [(cell, at) for cell, at in zip(notebook.cells, header.source_map, strict=True) if cell.cell_type == "code"]
    nested = {text.count("\n", 0, fence.start()) + 1 for fence in CELL_FENCE.finditer(text)} - {at for _, at in code}
    if nested:
        raise ValueError(
            f"{path.name}:{min(nested)}: a code cell inside another block is no notebook cell: move it out"
        )
    lines = text.split("\n")
    return notebook, [_code_cell(cell, _first_line(cell.source, at, lines), path.name) for cell, at in code]


def _code_cell(node: NotebookNode, line: int, page: str) -> CodeCell:
    given = {"check": False} | dict(find_metadata_tags(node.metadata)) | dict(find_comment_markers(node.source))
    rtol = None
    for tag in node.metadata.get("tags", []):
        if tag.startswith("nbval") and tag not in metadata_tags:
            raise ValueError(f"{page}:{line}: {tag!r} is no tag of nbval: use {', '.join(sorted(metadata_tags))}")
        if tag.startswith("rtol"):
            rtol = _tolerance(tag, f"{page}:{line}")
    if rtol is not None and not given["check"]:
        raise ValueError(f"{page}:{line}: a tolerance is stated but nothing is compared: add the tag {CHECK}")
    return CodeCell(node, line, defaultdict(bool, given), rtol)


def _tolerance(tag: str, where: str) -> float:
    """1e-3 of the tag rtol=1e-3."""
    try:
        value = float(tag.removeprefix("rtol="))
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise ValueError(f"{where}: {tag!r} is no tolerance: write rtol=1e-3, from 0 to below 1")
    return value


def _first_line(source: str, fence: int, lines: list[str]) -> int:
    """Where a cell's code begins: after its fence, options and blank lines."""
    first = source.split("\n")[0]
    return next((number for number in range(fence + 1, len(lines) + 1) if lines[number - 1] == first), fence)
