"""JupyterLab folds the code that the book folds or leaves out. Start from :func:`fold`.

A Jupyter server extension, enabled in the environment that the course is installed in (.jupyter/server.json). Pages say
by tags what is folded; JupyterLab knows only its own metadata, which is set as a page is opened and never saved
(lessons/jupytext.toml), so that a reader who unfolds a cell does not change the page.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

FOLDED_BY = {"hide-cell", "hide-input", "remove-cell", "remove-input"}


def fold(notebook: NotebookNode) -> None:
    """Mark, in place, the code of every cell that a tag of FOLDED_BY is on as folded. Outputs stay in sight."""
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code" and FOLDED_BY.intersection(cell["metadata"].get("tags", ())):
            cell["metadata"].setdefault("jupyter", {})["source_hidden"] = True


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "quantlib.commands.lab"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Jupyter calls this for each extension in alphabetical order: jupytext has replaced the manager by now."""
    manager = app.contents_manager
    read = manager.get

    def get(*arguments: Any, **options: Any) -> Any:
        model = read(*arguments, **options)
        return _folded_later(model) if inspect.isawaitable(model) else _folded(model)

    manager.get = get


async def _folded_later(model: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return _folded(await model)


def _folded(model: dict[str, Any]) -> dict[str, Any]:
    """What Jupyter's contents service answers, the notebook in it folded if it is a page."""
    if model["type"] == "notebook" and model["path"].endswith(".md") and model["content"] is not None:
        fold(model["content"])
    return model
