"""Experiments too slow for a page: short functions that `make record` runs. Start from :func:`experiment`.

They live in lessons/experiments/part_NN.py, one file a page. The page shows the function (:func:`show_experiment`),
reads what it returned (records.py), and runs the same function on a small piece (:func:`load_experiment`).
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantlib.fingerprint import fingerprint
from quantlib.lesson_files import lessons_folder

PACKAGE = Path(__file__).resolve().parent
COMMENT = re.compile(r"[ \t]*//.*")
NAME = re.compile(r"[A-Za-z]\w*\.[A-Za-z]\w*", re.ASCII)


@dataclass(frozen=True)
class Experiment:
    """A function whose result is recorded. Calling it runs it.

    function   f(loaded, *, a=1, b=2) with a model, f(*, a=1, b=2) without
    name       file and function: "part_01.perplexity_of_grids"
    sources    the quantlib modules whose change makes its record stale: ("grid", "evaluate"); with a module, the C++
               file of the same name
    model      the name of the lesson model it measures, or None
    seed       torch, NumPy and random are seeded with it before a recording
    """

    function: Callable[..., object]
    name: str
    sources: tuple[str, ...]
    model: str | None
    seed: int

    def __call__(self, *args: object, **parameters: object) -> object:
        return self.function(*args, **parameters)

    @property
    def parameters(self) -> dict[str, object]:
        """The defaults of the function's parameters, which a recording uses."""
        return {
            name: p.default
            for name, p in inspect.signature(self.function).parameters.items()
            if p.default is not p.empty
        }


def experiment(
    *, sources: Sequence[str], model: str | None = None, seed: int = 0
) -> Callable[[Callable[..., object]], Experiment]:
    """Mark a function of lessons/experiments/part_NN.py as an experiment.

        @experiment(sources=("grid", "evaluate"), model="SmolLM2-135M-Instruct")
        def perplexity_of_grids(loaded, *, bits=(8, 4), windows=8): ...

    Raises TypeError or ValueError if a source is no module of quantlib, the model none of the lessons' (a record needs
    its checksum), or a parameter has no default.
    """
    if isinstance(sources, str):
        raise TypeError(f"sources must be a tuple of module names, got {sources!r}: write ({sources!r},)")
    for source in sources:
        _source_file(source)
    if model is not None and lesson_model_checksum(model) is None:
        raise ValueError(f"model={model!r} is no lesson model: name one that quantlib.zoo keeps, or None")

    def mark(function: Callable[..., object]) -> Experiment:
        name = f"{Path(function.__code__.co_filename).stem}.{function.__name__}"
        given = list(inspect.signature(function).parameters.values())[0 if model is None else 1 :]
        for parameter in given:
            if parameter.default is parameter.empty:
                raise TypeError(
                    f"parameter {parameter.name!r} of experiment {name} has no default: give it the recorded value"
                )
        return Experiment(function, name, tuple(sources), model, seed)

    return mark


def load_experiment(name: str) -> Experiment:
    """The experiment of this name, from its file in lessons/experiments/. ValueError if there is none."""
    found = {e.name: e for e in load_experiments(experiment_file(name))}
    if name not in found:
        raise ValueError(f"{name!r} is no experiment: {experiment_file(name).name} has {', '.join(found) or 'none'}")
    return found[name]


def load_experiments(file: Path) -> list[Experiment]:
    """All experiments of a file, in their order."""
    module_name = f"lesson_experiments_{file.stem}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look their module up by name
    spec.loader.exec_module(module)
    return [value for value in vars(module).values() if isinstance(value, Experiment)]


def show_experiment(name: str) -> None:
    """Display an experiment's source in a page, highlighted where the page can, plain text elsewhere."""
    from IPython.display import display

    text = experiment_file(name).read_text(encoding="utf-8")
    nodes = {node.name: node for node in _experiment_nodes(ast.parse(text))}
    function = name.partition(".")[2]
    if function not in nodes:
        raise ValueError(f"{name!r} is no experiment: {experiment_file(name).name} has {', '.join(nodes) or 'none'}")
    source = "\n".join(text.split("\n")[slice(*_lines(nodes[function]))])
    display({"text/plain": source, "text/markdown": f"````python\n{source}\n````"}, raw=True)


def fingerprints(of: Experiment) -> dict[str, str]:
    """The fingerprint of each file that an experiment's record depends on."""
    own = f"experiments/{of.name.partition('.')[0]}.py"
    modules = [_source_file(source) for source in of.sources]
    parts = [part for module in modules for part in (module, module.with_suffix(".cpp")) if part.is_file()]
    files = [own, *(part.relative_to(PACKAGE.parent).as_posix() for part in parts)]
    return {file: fingerprint_of(file, of.name) for file in files}


def lesson_model_checksum(name: str) -> str | None:
    """SHA-256 of a lesson model's file, as zoo pins it; None for any other model. Loads nothing."""
    from quantlib.zoo import PACKAGES

    return next((package.files[0].sha256 for package in PACKAGES if package.title == name), None)


def experiment_file(name: str) -> Path:
    """lessons/experiments/part_NN.py of an experiment's name. ValueError for no such name and no such file."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ValueError(f"name must be a file and a function, as part_01.perplexity_of_grids, got {name!r}")
    folder = lessons_folder() / "experiments"
    file = folder / f"{name.partition('.')[0]}.py"
    if not file.is_file():
        there = ", ".join(sorted(f.name for f in folder.glob("*.py"))) or "no files"
        raise ValueError(f"{name!r} is no experiment: {folder} has {there}")
    return file


def _source_file(source: str) -> Path:
    path = PACKAGE.joinpath(*source.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    raise ValueError(
        f"sources names {source!r}, but quantlib has no module of that name: write it as after `quantlib.`"
    )


def fingerprint_of(file: str, name: str) -> str | None:
    """Of a file as fingerprints() names it; of the experiment's own file, only what the experiment uses."""
    path = lessons_folder() / file if file.startswith("experiments/") else PACKAGE.parent / file
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".cpp":
        return fingerprint(COMMENT.sub("", text))
    return fingerprint(_used_by(name.partition(".")[2], text) if file.startswith("experiments/") else text)


def _used_by(function: str, text: str) -> str:
    """The file's text without the functions, classes and constants that this function does not reach by name.

    So a new experiment in a file, or a helper of another, makes no record stale. Statements that define nothing
    (imports, calls) stay.
    """
    nodes = [(node, _defined_by(node)) for node in ast.parse(text).body]
    needed, before = {function}, set()
    while needed != before:
        before = set(needed)
        kept = [node for node, names in nodes if not names or names & needed]
        needed |= {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
    dropped = {i for node, _ in nodes if node not in kept for i in range(*_lines(node))}
    return "\n".join(line for i, line in enumerate(text.split("\n")) if i not in dropped)


def _defined_by(node: ast.stmt) -> set[str]:
    """The names that a top-level statement gives a meaning, imports left out."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, (ast.AnnAssign, ast.AugAssign))
        else []
    )
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}


def _experiment_nodes(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and any(
            isinstance(d, ast.Call) and getattr(d.func, "id", "") == "experiment" for d in node.decorator_list
        ):
            yield node


def _lines(node: ast.stmt) -> tuple[int, int]:
    """First and one past the last of a statement's lines, its decorators included, counted from 0."""
    return min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))]) - 1, node.end_lineno
