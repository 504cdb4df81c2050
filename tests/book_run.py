"""The tests' run of a page of the book is kept, so that the book does not run it a second time. Start from :class:`BookRun`.

Only where it counts as the book's own: the same kernel, folder and variables, every cell passed, and nothing that the
page depends on has changed since it began. Otherwise the book runs the page itself (site/execute.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

SITE = Path(__file__).resolve().parent.parent / "site"
if str(SITE) not in sys.path:
    sys.path.insert(0, str(SITE))

import execute


@dataclass(frozen=True)
class BookRun:
    """A run that begins. root: the project; key: of all that the outputs depend on."""

    page: Path
    root: Path
    key: str

    @classmethod
    def of(cls, page: Path) -> BookRun | None:
        """Of a page in the lessons of a project; None for other pages."""
        root = page.parent.parent
        if page.parent.name != "lessons" or not (root / "myst.yml").exists():
            return None
        return cls(page, root, execute.key(page, root))

    @property
    def environment(self) -> dict[str, str]:
        return execute.environment(self.root)

    def keep(self, heard: Sequence[Sequence[Mapping]]) -> bool:
        """heard: of each code cell, the kernel's messages about it. False if something changed meanwhile, or if this CPU
        stands for an older one, of whose figures the book does not speak.
        """
        emulated = not os.environ.keys().isdisjoint(execute.CPU_SETTINGS)
        return not emulated and execute.keep(self.page, self.root, self.root / "_build" / "executed", self.key, heard)


def about_the_last(messages: Sequence[Mapping]) -> list[Mapping]:
    """Those that belong to the same request as the last."""
    return [m for m in messages if m["parent_header"].get("msg_id") == messages[-1]["parent_header"].get("msg_id")]
