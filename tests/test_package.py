"""The package as a whole: it is ours, it is light, and what it promises is there."""

import re
import subprocess
import sys
import tomllib
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


def test_imports_point_down_and_in_no_circle():
    """The contracts of pyproject.toml: rooms as floors, and no two files that need each other."""
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 kept, 0 broken" in done.stdout, done.stdout + done.stderr
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert not any("ignore_imports" in contract for contract in settings["contracts"]), "no exceptions"


ROOM_OF = {
    "numerics": ("Grid", "QuantizedTensor", "quantize", "mse_clip", "pack"),
    "methods": ("outlier_features", "smooth_scale", "gptq_quantize", "InputStats"),
    "kernels": ("linear", "explain"),
    "layers": ("Int8Linear", "Int4Linear", "MixedInt8Linear"),
    "models": ("quantize_model", "RTN", "LLMInt8", "collect_stats", "footprint"),
    "measure": ("perplexity", "compare", "paired_bootstrap"),
    "zoo": ("load_lesson_model", "load_text"),
    "book": ("explore",),
}


def test_every_name_is_in_the_room_where_one_looks():
    assert {name for names in ROOM_OF.values() for name in names} <= set(quantlib.__all__)
    for room, names in ROOM_OF.items():
        for name in names:
            assert getattr(quantlib, name).__module__.split(".")[1] == room, name


def test_the_readme_knows_the_rooms_and_their_sizes():
    """In lines of Python, to within a tenth: README's table is what a reader decides by."""
    rows = re.findall(r"^\| `(\w+)/` \| .* \| ([\d,]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    rooms = {folder.name for folder in (ROOT / "quantlib").iterdir() if (folder / "__init__.py").exists()}
    assert {room for room, _ in rows} == rooms and len(rows) == 10
    for room, said in rows:
        lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in (ROOT / "quantlib" / room).rglob("*.py"))
        assert abs(int(said.replace(",", "")) - lines) <= 0.1 * lines, f"{room} has {lines} lines"
