"""Experiments too slow for a page: short functions that `make record` runs. Start from :func:`experiment`.

They live in lessons/experiments/part_NN.py, one file a page. The page shows the function (:func:`show_experiment`),
reads what it gave (records.py), and runs the same function on a small piece (:func:`load_experiment`).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import random
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from quantlib.records.lesson_files import lessons_folder


@dataclass(frozen=True, eq=False)
class Experiment:
    """A function that yields (row, value). Calling it runs it: {row: value} of the rows that are named, else of all.

    function   f(loaded, rows, *, a=1, b=2): without `loaded` if it measures no model. Without rows, f(loaded, *, a=1)
               returns a mapping, all at once
    name       file and function: "part_01.perplexity_of_grids"
    rows       the names of all rows
    model      the name of the lesson model it measures, or None
    seed       torch, NumPy and random are seeded with it before every row of a recording
    miniature  parameters with which all rows take a blink on quantlib.records.miniature's model: what they then give is kept
               with the record, which is stale when it moves by more than the tolerance (times the number, above 1).
               None: the record is a fact of its date and machine, never stale
    gpu        whether only a machine with a CUDA device can run it
    """

    function: Callable[..., object]
    name: str
    rows: tuple[str, ...]
    model: str | None
    seed: int = 0
    miniature: Mapping[str, object] | None = None
    tolerance: float = 1e-5
    gpu: bool = False

    def __call__(self, *loaded: object, rows: Iterable[str] = (), **parameters: object) -> dict[str, object]:
        return dict(self.run(*loaded, rows=rows, **parameters))

    def run(self, *loaded: object, rows: Iterable[str] = (), **parameters: object) -> Iterator[tuple[str, object]]:
        """The same, row by row. ValueError for a row that is none."""
        if not self.rows:
            yield from self.function(*loaded, **parameters).items()
            return
        rows = tuple(rows) or self.rows
        for row in rows:
            if row not in self.rows:
                raise ValueError(f"{row!r} is no row of {self.name}: there are {', '.join(self.rows)}")
        yield from self.function(*loaded, rows, **parameters)

    def seeded(self, *loaded: object, rows: Iterable[str] = (), **parameters: object) -> Iterator[tuple[str, object]]:
        """The same, each row from the seed, so that it does not matter which rows went before."""

        results, more = self.run(*loaded, rows=rows, **parameters), True
        while more:
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(self.seed)
            yield from (more := list(itertools.islice(results, 1)))

    @property
    def parameters(self) -> dict[str, object]:
        """The defaults of the function's parameters, which a recording uses."""
        given = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in given if p.default is not p.empty}

    @property
    def code(self) -> str:
        """The function as it stands, without its decorator."""
        return "def " + inspect.getsource(self.function).partition("\ndef ")[2].rstrip()


def experiment(
    *, rows: Iterable[str] = (), model: str | None = None, **options: object
) -> Callable[[Callable[..., object]], Experiment]:
    """Mark a function of lessons/experiments/part_NN.py as an experiment; options: the other fields of Experiment.

        @experiment(rows=GRIDS, model="SmolLM2-135M-Instruct", miniature={"windows": 2})
        def perplexity_of_grids(loaded, rows, *, windows=8): ...

    A row that the table GRIDS gains leaves the record of the others as it is. Raises ValueError if the model is none of
    the lessons' (a record needs its checksum), TypeError if a parameter has no default.
    """
    if model is not None and lesson_model_checksum(model) is None:
        raise ValueError(f"model={model!r} is no lesson model: name one that quantlib.zoo.zoo keeps, or None")
    rows = tuple(rows)

    def mark(function: Callable[..., object]) -> Experiment:
        name = f"{Path(function.__code__.co_filename).stem}.{function.__name__}"
        made = Experiment(function, name, rows, model, **options)
        for parameter in list(inspect.signature(function).parameters)[(model is not None) + bool(rows) :]:
            if parameter not in made.parameters:
                raise TypeError(f"parameter {parameter!r} of experiment {name} has no default: give the recorded value")
        return made

    return mark


def load_experiment(name: str) -> Experiment:
    """The experiment of this name, from its file in lessons/experiments/. ValueError if there is none."""
    file = experiment_file(name)
    found = {made.name: made for made in load_experiments(file)}
    if name not in found:
        raise ValueError(f"{name!r} is no experiment: {file.name} has {', '.join(found) or 'none'}")
    return found[name]


def load_experiments(file: Path) -> list[Experiment]:
    """All experiments of a file, in their order."""
    module_name = f"lesson_experiments_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = sys.modules[module_name] = importlib.util.module_from_spec(spec)  # where classes look themselves up
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, Experiment)]


def show_experiment(name: str) -> None:
    """Display an experiment's source in a page, highlighted where the page can, plain text elsewhere."""
    from IPython.display import display

    source = inspect.getsource(load_experiment(name).function).rstrip()
    display({"text/plain": source, "text/markdown": f"````python\n{source}\n````"}, raw=True)


def meaning(source: str) -> str:
    """What Python says, without comments, docstrings and layout; what is not Python (a cell's magic) as it stands."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # ValueError: a null byte
        return "\n".join(line.rstrip() for line in source.strip().splitlines())
    for node in ast.walk(tree):
        if isinstance(getattr(node, "body", None), list):
            node.body = [line for line in node.body if not _is_text(line)] or [ast.Pass()]
    return ast.unparse(tree)


def lesson_model_checksum(name: str) -> str | None:
    """SHA-256 of a lesson model's file, as zoo pins it; None for any other model. Loads nothing."""
    from quantlib.zoo.zoo import PACKAGES

    return next((package.files[0].sha256 for package in PACKAGES if package.title == name), None)


def experiment_file(name: str) -> Path:
    """lessons/experiments/part_NN.py of an experiment's name. ValueError for no such name and no such file."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*\.[A-Za-z]\w*", name, re.ASCII):
        raise ValueError(f"name must be a file and a function, as part_01.perplexity_of_grids, got {name!r}")
    folder = lessons_folder() / "experiments"
    files = {file.stem: file for file in sorted(folder.glob("*.py"))}
    if name.partition(".")[0] not in files:
        there = ", ".join(file.name for file in files.values()) or "no files"
        raise ValueError(f"{name!r} is no experiment: {folder} has {there}")
    return files[name.partition(".")[0]]


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
