"""Where the lessons lie, wherever a page runs, and how a file beside them is written. See :func:`lessons_folder`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


def lessons_folder() -> Path:
    """The folder that holds index.md and experiments/.

    Looked for in this order: the environment variable QUANTLIB_LESSONS; the working folder, those above it and a
    lessons/ in any of them; beside the package, where `pip install -e` left it. Raises FileNotFoundError.
    """
    given, here = os.environ.get("QUANTLIB_LESSONS"), Path.cwd()
    places = [place for folder in (here, *here.parents) for place in (folder, folder / "lessons")]
    places.append(Path(__file__).resolve().parents[2] / "lessons")
    for place in [Path(given)] if given else places:
        if (place / "index.md").is_file() and (place / "experiments").is_dir():
            return place.resolve()
    wrong = f"QUANTLIB_LESSONS is {given!r}, but no index.md and experiments/ are there"
    found = wrong if given else f"no lessons/ folder in or above {here}"
    raise FileNotFoundError(f"{found}: set QUANTLIB_LESSONS to the lessons/ folder of a checkout")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write readable JSON; a reader of the path sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.part")  # what a killed writer leaves, the next one overwrites
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path, mend: str) -> dict[str, object]:
    """The object in a JSON file. Raises FileNotFoundError or ValueError, whose sentence ends with how to mend it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, not an object")
        return content
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} does not exist: {mend}") from None
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"{path} is damaged ({error}): {mend}") from None


def remedy(name: str) -> str:
    """What mends the record of an experiment, or what is recorded of a page."""
    return f"run `make record RECORD={name}`"
