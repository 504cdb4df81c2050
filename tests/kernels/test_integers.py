"""Products of integer codes on a CPU: exact for all codes and shapes, in C++ on each of its paths and without it."""

import os
import subprocess
import sys

import pytest
import torch
from compiled_builds import PATHS, needs_compiler
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlib.kernels.cpu import compiled, compiled_integers
from quantlib.kernels.cpu import integers as cpu_integers
from quantlib.kernels.packed import pack_weight
from quantlib.kernels.reference import int8_matmul_reference
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import QuantizedTensor, quantize

KERNELS = {kernel.name: kernel for kernel in cpu_integers.INT8_KERNELS}
WITHOUT_COMPILER = ("onednn halves", "float32", "naive int8")  # right on every CPU
CODES = ("any", "lowest", "highest", "ends", "opposite")

rows_of_x = st.one_of(st.integers(1, 9), st.sampled_from([12, 13, 16, 63, 64, 65, 130]))
shapes = {
    "rows": rows_of_x,
    "out": st.integers(1, 70),
    "columns": st.one_of(st.integers(1, 200), st.sampled_from([255, 256, 257, 512, 513, 1024, 1025, 2100, 4096])),
    "like": st.sampled_from(CODES),
    "seed": st.integers(0, 2**31),
}


def weight(codes):
    return QuantizedTensor(codes, torch.ones(len(codes), 1), None, None, Grid(8, "row"))


def both(rows, out, columns, like, seed):
    """codes of activations int8 [rows, columns], and a weight [out, columns]."""
    g = torch.Generator().manual_seed(seed)
    x, w = (torch.randint(-128, 128, (n, columns), generator=g, dtype=torch.int8) for n in (rows, out))
    if like == "lowest":
        x, w = torch.full_like(x, -128), torch.full_like(w, -128)
    elif like == "highest":
        x, w = torch.full_like(x, 127), torch.full_like(w, 127)
    elif like == "opposite":  # the lowest sums of pairs there are
        x, w = torch.full_like(x, 127), torch.full_like(w, -128)
    elif like == "ends":
        x, w = (torch.where(t < 0, -128, 127).to(torch.int8) for t in (x, w))
    return x, weight(w)


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=150, deadline=None)
@given(**shapes, threads=st.integers(1, 3))
@example(5, 33, 4096, "lowest", 0, 2)
@example(2, 5, 4096, "opposite", 0, 1)
def test_the_compiled_product_is_exact(libraries, path, rows, out, columns, like, seed, threads):
    x, q = both(rows, out, columns, like, seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = compiled_integers.product(x, pack_weight(q, layout="rows"), libraries[path])
    finally:
        torch.set_num_threads(before)
    assert y.dtype == torch.float32 and y.equal(int8_matmul_reference(x, q).float())


@pytest.mark.parametrize("name", WITHOUT_COMPILER)
@settings(max_examples=80, deadline=None)
@given(**shapes)
@example(3, 5, 2049, "lowest", 0)
@example(2, 3, 4096, "opposite", 0)
def test_the_kernels_that_need_no_compiler_are_exact(name, rows, out, columns, like, seed):
    kernel, (x, q) = KERNELS[name], both(rows, out, columns, like, seed)
    ran = 0
    for layout in ("rows", "onednn"):
        p = pack_weight(q, layout=layout)
        if not kernel.refuses(p, x.dtype, rows):
            ran += 1
            y = kernel.run(x, p)
            assert y.dtype == torch.float32 and y.equal(int8_matmul_reference(x, q).float()), layout
    assert ran


def test_sums_that_float32_does_not_hold_are_rounded_once():
    """Odd sums beyond 2^24, where two roundings would show: of the halves, or of pieces of the columns."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(100, 128, (40, 9001), generator=g, dtype=torch.int8)
    q = weight(torch.randint(100, 128, (50, 9001), generator=g, dtype=torch.int8))
    exact = int8_matmul_reference(x, q)
    assert (exact > 2**24).all() and (exact != exact.float().long()).any()
    for name in WITHOUT_COMPILER:
        layout = "onednn" if name == "onednn halves" else "rows"
        assert KERNELS[name].run(x, pack_weight(q, layout=layout)).equal(exact.float()), name


@pytest.mark.parametrize("like", ["lowest", "opposite"])
def test_where_int32_would_overflow_they_refuse_and_others_are_still_exact(like):
    for columns, refused in ((2**17 - 1, False), (2**17, True)):
        x, q = both(1, 2, columns, like, 0)
        rows, onednn = (pack_weight(q, layout=layout) for layout in ("rows", "onednn"))
        for name, p in (("onednn halves", onednn), ("compiled integers", rows)):
            assert ("int32 does not hold the sum" in (KERNELS[name].refuses(p, x.dtype, 1) or "")) == refused
        exact = int8_matmul_reference(x, q).float()
        for name in ("float32", "naive int8"):
            assert KERNELS[name].run(x, rows).equal(exact), name
        if not refused:
            assert KERNELS["onednn halves"].run(x, onednn).equal(exact)


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
def test_the_longest_sums_are_exact_in_c(libraries, path):
    x, q = both(7, 3, 2**17 - 1, "lowest", 0)
    p = pack_weight(q, layout="rows")
    assert compiled_integers.product(x, p, libraries[path]).equal(int8_matmul_reference(x, q).float())
    assert compiled_integers.product(x[:2], p, libraries[path]).equal(int8_matmul_reference(x[:2], q).float())


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("rows", [1, 4, 5, 67])
def test_nothing_is_written_outside_the_product(libraries, path, rows):
    x, q = both(rows, 37, 50, "any", 0)
    out, guard = 37, 4096
    around = torch.full((guard + rows * out + guard,), 0.5)
    y = around[guard:-guard]
    arguments = x.data_ptr(), q.codes.data_ptr(), y.data_ptr(), rows, 50, out, 2
    libraries[path].int8_integers(compiled_integers.PRODUCT.pack(*arguments))
    assert y.view(rows, out).equal(int8_matmul_reference(x, q).float())
    assert (around[:guard] == 0.5).all() and (around[-guard:] == 0.5).all()


def test_halves_are_exact_where_the_whole_codes_saturate():
    """A process whose oneDNN may use AVX2 and no more, as on the CPUs where it adds pairs of products in 16 bits."""
    script = """if True:
        import torch
        from quantlib.numerics.grid import Grid
        from quantlib.numerics.quantize import QuantizedTensor
        from quantlib.kernels.cpu.integers import INT8_KERNELS
        from quantlib.kernels.packed import pack_weight
        kernels = {k.name: k for k in INT8_KERNELS}
        g = torch.Generator().manual_seed(0)
        x, w = (torch.randint(-128, 128, (n, 512), generator=g, dtype=torch.int8) for n in (33, 40))
        x[0], x[1], w[0], w[1] = -128, 127, -128, 127
        exact = (x.long() @ w.long().t()).float()
        p = pack_weight(QuantizedTensor(w, torch.ones(40, 1), None, None, Grid(8, "row")), layout="onednn")
        print(*(int(kernels[name].run(x, p).equal(exact)) for name in ("onednn halves", "onednn")))
    """
    env = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr
    halves, whole = done.stdout.split()
    assert halves == "1"
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):  # an x86 CPU: the case exists here
        assert whole == "0"


@needs_compiler
def test_what_it_cannot_take_is_named(libraries):
    library = libraries["this CPU"]
    p = pack_weight(quantize(torch.randn(8, 64), Grid(8, narrow_range=True)))
    for wrong, words in (
        (pack_weight(quantize(torch.randn(8, 64), Grid(8, narrow_range=True)), layout="onednn"), "not onednn"),
        (pack_weight(quantize(torch.randn(64, 64), Grid(4, 32)), layout="rows"), "not rows of nibbles"),
    ):
        assert words in compiled_integers.refuses(wrong, torch.int8, 1, library)
        with pytest.raises(ValueError, match=words):
            compiled_integers.product(torch.zeros(1, 64, dtype=torch.int8), wrong, library)
    with pytest.raises(TypeError, match=r"codes must be int8, got torch\.float32: quantize the activations"):
        compiled_integers.product(torch.zeros(1, 64), p, library)
    eight = torch.int8
    for codes in (torch.zeros(64, dtype=eight), torch.zeros(2, 63, dtype=eight), torch.zeros(64, 2, dtype=eight).t()):
        with pytest.raises(ValueError, match=r"codes must be contiguous \[rows, 64\] on the CPU"):
            compiled_integers.product(codes, p, library)
    assert compiled_integers.product(torch.zeros(0, 64, dtype=eight), p, library).shape == (0, 8)


def test_without_the_library_it_says_so(monkeypatch):
    monkeypatch.setenv("QUANTLIB_COMPILED", "0")
    p = pack_weight(quantize(torch.randn(8, 64), Grid(8, narrow_range=True)))
    assert "was not built" in KERNELS["compiled integers"].refuses(p, torch.int8, 1)
    with pytest.raises(ValueError, match="was not built"):
        compiled_integers.product(torch.zeros(1, 64, dtype=torch.int8), p)
    assert not compiled.available()
