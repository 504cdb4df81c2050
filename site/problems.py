"""What stops a build: a place, what is wrong there, and what to do. Start at `report`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    file: str
    what: str
    remedy: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return f"{place}: {self.what}\n    {self.remedy}"


class BuildFailed(Exception):
    """Carries every problem found so far, so that one build tells them all."""

    def __init__(self, problems: Iterable[Problem]):
        self.problems = list(problems)
        super().__init__("\n".join(map(str, self.problems)))


def report(problems: Iterable[Problem]) -> None:
    """Prints each problem once, in the order of the pages."""
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)
