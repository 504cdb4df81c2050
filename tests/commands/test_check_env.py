"""The environment check: every line says what is there or what to do, and it runs where nothing is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from quantlib.commands import check_env
from quantlib.commands.check_env import Check

HERE = Check("here", True, "1.0")
OPTIONAL = Check("extra", False, "none", "nothing to do", required=False)
ABSENT = Check("torch", False, "not installed", "install it")


def test_a_line_says_what_is_there_and_what_to_do_where_it_is_not():
    lines = check_env.report((HERE, OPTIONAL, ABSENT))[0].splitlines()
    assert [line.split()[:2] for line in lines[:-1]] == [
        ["[ok]", "here"], ["[missing]", "extra"], ["->", "nothing"], ["[missing]", "torch"], ["->", "install"],
    ]  # fmt: skip
    assert lines[-1] == "Not ready: torch."


@pytest.mark.parametrize("found, status", [((HERE,), 0), ((HERE, OPTIONAL), 0), ((HERE, OPTIONAL, ABSENT), 1)])
def test_only_something_required_makes_it_fail(found, status):
    text, returned = check_env.report(found)
    assert returned == status and text.splitlines()[-1].startswith("Not ready" if status else "Ready")


@pytest.mark.parametrize("running, present", [((3, 10, 14), False), ((3, 11, 0), True), ((3, 13, 1), True)])
def test_python_older_than_3_11_is_missing(running, present):
    check = check_env.python_version(running, "python")
    assert check.present == present and "3.11" in check.remedy


@pytest.mark.parametrize(
    "abilities, present",
    [(("avx2", "avx512f", "avx512_bf16"), True), (("asimd", "bf16"), True), (("avx2", "avx512f"), False), ((), False)],
)
def test_bf16_dot_products_are_found_and_never_required(abilities, present):
    check = check_env.bf16_dot_products(abilities)
    assert check.present == present and not check.required


def test_disk_asks_for_twice_the_download_in_a_folder_that_may_not_exist_yet(tmp_path):
    folder = tmp_path / "not" / "yet"
    free = check_env.shutil.disk_usage(tmp_path).free
    assert check_env.disk(folder, 0).present
    assert not check_env.disk(folder, free).present
    assert str(folder) in check_env.disk(folder, free).detail
    assert not folder.exists()


@pytest.mark.parametrize("size, present", [(2 * 2**30, False), (4 * 2**30, True), (None, True)])
def test_memory(size, present):
    assert check_env.memory(size).present == present


def test_another_release_than_the_tested_one_is_named_another_build_of_it_is_not(tmp_path):
    lists = tmp_path / "requirements.txt"
    lists.write_text("# comment\n-c constraints.txt\ntorch==2.13.0\npyarrow==26.0.1  # why\n")
    installed = {"torch": "2.13.0+cpu", "pyarrow": "26.0.1", "other": "1.0"}
    assert check_env.other_releases(installed, lists) == []
    named = check_env.other_releases(installed | {"torch": "2.13.1"}, lists)
    assert named == ["torch 2.13.1 (tested: 2.13.0)"]
    assert check_env.other_releases(installed, tmp_path / "none.txt") == []


def run(setup: str) -> subprocess.CompletedProcess:
    """`python -m quantlib check-env` after the statements in `setup`."""
    code = f"import runpy, sys\n{setup}\nsys.argv = ['', 'check-env']\nrunpy.run_module('quantlib', run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_here_everything_required_is_there():
    done = run("")
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    for name in (
        "Python",
        "torch",
        "packages",
        "CPU",
        "bf16 dot products",
        "CUDA",
        "SmolLM2",
        "WikiText-2",
        "disk",
        "memory",
    ):
        assert any(
            line.split("]")[1].strip().startswith(name) for line in done.stdout.splitlines() if line.startswith("[")
        )


def test_it_runs_without_torch_and_says_so():
    hide = """
import importlib.metadata as metadata
real = metadata.version
def version(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return real(name)
metadata.version = version
sys.modules["torch"] = sys.modules["transformers"] = None  # import raises ImportError
"""
    done = run(hide)
    assert done.returncode == 1 and not done.stderr, done.stderr
    assert "[missing] torch" in done.stdout and "-> run `make check-env`" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Not ready: torch")


def test_a_torch_that_does_not_import_is_missing():
    done = run("sys.modules['torch'] = None")
    assert done.returncode == 1 and "does not import" in done.stdout and "remove .venv" in done.stdout


def test_an_empty_cache_is_named_with_its_size_and_is_no_failure(tmp_path):
    done = run(f"import os; os.environ['QUANTLIB_CACHE'] = {str(tmp_path)!r}")
    assert done.returncode == 0
    for name in ("SmolLM2-135M-Instruct", "stories15M", "WikiText-2"):
        assert f"[missing] {name}" in done.stdout
    assert "fetched at its first use (93 MB" in done.stdout
    assert not list(Path(tmp_path).iterdir())


def test_products_that_are_wrong_are_named_and_a_kind_without_a_right_one_is_missing():
    fine = check_env.products_of("CPU", {"int8 weights": 3, "integers": 1}, {"onednn (integers)": "relative error 0.5"})
    assert fine.present and "3 of int8 weights" in fine.detail and "never used: onednn (integers), relative error" in fine.detail
    assert not check_env.products_of("CPU", {"int8 weights": 3, "integers": 0}, {}).present


def test_the_products_of_this_machine_are_asked(monkeypatch):
    checks = [*check_env.products()]
    assert checks[0].name == "products, CPU" and all(check.present and check.required for check in checks)
    from quantlib.kernels import probes

    fault = probes.fault_of
    monkeypatch.setattr(
        probes, "fault_of", lambda kernel, *rest: "relative error 1" if kernel.name == "onednn" else fault(kernel, *rest))
    [check, *_] = check_env.products()
    assert check.present and "never used: onednn (integers), relative error 1" in check.detail
