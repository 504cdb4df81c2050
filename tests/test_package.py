"""The package as a whole: it is ours, it is light, and what it promises is there."""

import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

import quantlib

ROOT = Path(__file__).parent.parent


def test_the_package_is_ours_and_not_the_finance_library():
    assert Path(quantlib.__file__).is_relative_to(ROOT)
    assert distribution("quantization-lessons").metadata["Name"] == "quantization-lessons"


def test_import_is_light():
    code = "import sys, quantlib; print([m for m in ('torch', 'transformers', 'triton', 'matplotlib', 'ipywidgets') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


@pytest.mark.parametrize("name", quantlib.__all__)
def test_every_promised_name_exists(name):
    assert getattr(quantlib, name) is not None and name in dir(quantlib)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(AttributeError, match="has no attribute 'quantise'; it offers .*quantize"):
        quantlib.quantise  # noqa: B018


FLOORS = [
    {"fetch", "transports", "progress"}, {"rounding", "grid", "packing"}, {"methods", "outliers", "digits", "smooth"}, {"kernels", "layers", "mixed"},
    {"models", "convert", "report", "checkpoint", "zoo", "hub", "readers", "evaluate", "sizes", "benchmark", "ceilings", "caches", "clocks", "decoding"},
]  # fmt: skip


def test_imports_point_down():
    import ast

    def floor(module):
        return next((i for i, names in enumerate(FLOORS) if module in names), len(FLOORS))

    for path in sorted((ROOT / "quantlib").rglob("*.py")):
        own = path.relative_to(ROOT / "quantlib").parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = (
                [node.module]
                if isinstance(node, ast.ImportFrom) and node.module
                else [a.name for a in getattr(node, "names", [])]
                if isinstance(node, ast.Import)
                else []
            )
            for name in names:
                if name.startswith("quantlib."):
                    other = name.split(".")[1]
                    assert floor(other) <= floor(own), (
                        f"{path.name} (floor {floor(own)}) imports {other} (floor {floor(other)})"
                    )
