"""JupyterLab folds the code that the book folds or leaves out. Start from :func:`fold`.

A Jupyter server extension, enabled in the environment that the course is installed in (.jupyter/server.json). Pages say
by tags what is folded; JupyterLab knows only its own metadata, which is set as a page is opened and never saved
(lessons/jupytext.toml), so that a reader who unfolds a cell does not change the page.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from typing import Any

FOLDED_BY = {"hide-cell", "hide-input", "remove-cell", "remove-input"}


def fold(model: dict[str, Any]) -> dict[str, Any]:
    """What Jupyter's contents service answers: in a page, code with a tag of FOLDED_BY marked, in place, as folded."""
    if model["type"] == "notebook" and model["path"].endswith(".md") and model["content"] is not None:
        for cell in model["content"]["cells"]:
            if cell["cell_type"] == "code" and FOLDED_BY.intersection(cell["metadata"].get("tags", ())):
                cell["metadata"].setdefault("jupyter", {})["source_hidden"] = True  # outputs stay in sight
    return model


async def _fold_later(model: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return fold(await model)


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "quantlib.commands.lab"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Jupyter calls this for each extension in alphabetical order: jupytext has replaced the manager by now."""
    manager = app.contents_manager
    read = manager.get

    def get(*arguments: Any, **options: Any) -> Any:
        model = read(*arguments, **options)
        return _fold_later(model) if inspect.isawaitable(model) else fold(model)

    manager.get = get
