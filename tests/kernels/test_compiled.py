"""quantlib.kernels.cpu.compiled: the C++ answers as float64 does, on both of its paths, and only what was built is loaded."""

import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from compiled_builds import PATHS, needs_compiler
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quantlib.kernels.cpu import compiled
from quantlib.kernels.packed import pack_weight
from quantlib.kernels.reference import linear_reference
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder without a library, and a process that has loaded none."""
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QUANTLIB_COMPILED", raising=False)
    monkeypatch.setattr(compiled, "_loaded", {})
    return tmp_path / "cache"


def in_blocks(codes, block):
    """Codes [out, in] as uint8 [out/block, in, block/2], one byte at a time."""
    out, columns = codes.shape
    data = torch.empty((out // block, columns, block // 2), dtype=torch.uint8)
    for r in range(block // 2):
        low, high = codes[r::block].int() + 8, codes[r + block // 2 :: block].int() + 8  # [out/block, in]
        data[:, :, r] = (low + 16 * high).to(torch.uint8)
    return data


def spread(per_group, group_size):
    """[groups, out] -> float64 [out, in]"""
    return per_group.double().t().repeat_interleave(group_size, dim=1)


rows_of_x = st.one_of(st.integers(0, 9), st.sampled_from([15, 16, 31, 64, 127, 128, 129, 257]))


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=200, deadline=None)
@given(
    rows=rows_of_x,
    block=st.sampled_from([64, 32]),
    blocks=st.integers(0, 3),
    groups=st.integers(0, 4),
    group_size=st.sampled_from([2, 4, 6, 14, 32, 48, 64, 128, 130, 192, 320]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    scale_dtype=st.sampled_from([torch.float16, torch.float16, torch.float32, torch.bfloat16]),
    zeros=st.sampled_from([None, None, torch.int8, torch.int8, torch.float32, torch.float16]),
    threads=st.integers(1, 3),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(1, 64, 2, 4, 128, torch.bfloat16, torch.float16, None, 2, False, 0)
@example(0, 64, 2, 4, 128, torch.bfloat16, torch.float16, torch.int8, 2, False, 0)
@example(257, 32, 1, 1, 320, torch.float32, torch.float16, torch.int8, 1, True, 0)
def test_the_product_is_that_of_float64(
    libraries, path, rows, block, blocks, groups, group_size, dtype, scale_dtype, zeros, threads, strided, seed
):
    """|y − ref| ≤ u |ref| + (in + 4) u32 Σ |x| (|code| + |zero|) scale, with u half the dtype's eps, u32 float32's.

    The first term is the rounding of the result, which bfloat16 alone feels: its products are exact. The second bounds
    float32 sums of in terms in any order. The zero is subtracted after the sum, so it counts beside the code.
    """
    g = torch.Generator().manual_seed(seed)
    out, columns = block * blocks, groups * group_size
    codes = torch.randint(-8, 8, (out, columns), generator=g, dtype=torch.int8)
    scale = (torch.rand((groups, out), generator=g) * 0.1).to(scale_dtype)
    zero = None
    if zeros is not None:
        zero = torch.randint(-8, 8, (groups, out), generator=g).to(zeros)
        if zeros.is_floating_point:
            zero += torch.rand((groups, out), generator=g).to(zeros)
    x = (
        torch.randn((columns, rows), generator=g).to(dtype).t()
        if strided
        else torch.randn((rows, columns), generator=g)
    )
    x = x.to(dtype)

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = compiled.int4_matmul(x, in_blocks(codes, block), scale, zero, group_size, libraries[path])
    finally:
        torch.set_num_threads(before)

    shift = torch.zeros(out, columns) if zero is None else spread(zero, group_size)
    expected = x.double() @ ((codes.double() - shift) * spread(scale, group_size)).t()  # [rows, out]
    magnitude = x.double().abs() @ ((codes.double().abs() + shift.abs()) * spread(scale, group_size)).t()
    u, u32 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    bound = (u * expected.abs() + (columns + 4) * u32 * magnitude) * (1 + u) + torch.finfo(dtype).tiny
    assert y.dtype == dtype and y.shape == (rows, out)
    assert ((y.double() - expected).abs() <= bound).all()



@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@settings(max_examples=200, deadline=None)
@given(
    rows=rows_of_x,
    out=st.integers(0, 40),
    columns=st.one_of(st.integers(0, 200), st.sampled_from([256, 1000, 4096])),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    scale_dtype=st.sampled_from([torch.float16, torch.float32, torch.bfloat16]),
    threads=st.integers(1, 3),
    strided=st.booleans(),
    seed=st.integers(0, 2**31),
)
@example(1, 7, 33, torch.bfloat16, torch.float16, 2, False, 0)
@example(6, 5, 31, torch.float32, torch.float16, 2, True, 0)
def test_the_product_of_int8_rows_is_that_of_float64(
    libraries, path, rows, out, columns, dtype, scale_dtype, threads, strided, seed
):
    """The bound of the test above, without a zero."""
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(-128, 128, (out, columns), generator=g, dtype=torch.int8)
    scale = (torch.rand((out, 1), generator=g) * 0.1).to(scale_dtype)
    shape = (columns, rows) if strided else (rows, columns)
    x = torch.randn(shape, generator=g).to(dtype)
    x = x.t() if strided else x

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = compiled.int8_matmul(x, codes, scale, libraries[path])
    finally:
        torch.set_num_threads(before)

    w_hat = codes.double() * scale.double()
    expected, magnitude = x.double() @ w_hat.t(), x.double().abs() @ w_hat.abs().t()
    u, u32 = torch.finfo(dtype).eps / 2, torch.finfo(torch.float32).eps / 2
    bound = (u * expected.abs() + (columns + 4) * u32 * magnitude) * (1 + u) + torch.finfo(dtype).tiny
    assert y.dtype == dtype and y.shape == (rows, out)
    assert ((y.double() - expected).abs() <= bound).all()


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
def test_nan_and_infinity_reach_their_row_of_int8_products_and_no_other(libraries, path):
    codes, scale = torch.randint(-128, 128, (9, 50), dtype=torch.int8), torch.rand(9, 1)
    codes[3, 7] = 0
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(7, 50).to(dtype)
        x[2, 7], x[5, 49] = torch.inf, torch.nan
        y = compiled.int8_matmul(x, codes, scale, libraries[path])
        assert y[5].isnan().all() and y[2, 3].isnan() and not y[2].isfinite().any()
        assert y[[0, 1, 3, 4, 6]].isfinite().all()


@needs_compiler
@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"x": torch.zeros(2, 8, dtype=torch.float16)}, TypeError, r"x must be float32 or bfloat16, .*x\.float\(\)"),
        ({"codes": torch.zeros(4, 8, dtype=torch.uint8)}, TypeError, "codes must be int8, got torch.uint8"),
        ({"codes": torch.zeros(4, 9, dtype=torch.int8)}, ValueError, r"x must be \[rows, in\], codes \[out, in\]"),
        ({"x": torch.zeros(8)}, ValueError, "flatten x"),
        ({"scale": torch.ones(4)}, ValueError, r"scale \[out, 1\]"),
        ({"scale": torch.ones(4, 1, device="meta")}, ValueError, "must be on the CPU"),
    ],
)
def test_int8_arguments_that_do_not_fit_are_named(libraries, change, error, message):
    fits = {"x": torch.zeros(2, 8), "codes": torch.zeros(4, 8, dtype=torch.int8), "scale": torch.ones(4, 1)}
    with pytest.raises(error, match=message):
        compiled.int8_matmul(**(fits | change), library=libraries["this CPU"])


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("block", [64, 32])
@pytest.mark.parametrize("zeros", [None, torch.int8, torch.float32])
def test_the_identity_gives_every_weight_back_exactly(libraries, path, block, zeros):
    columns, group_size = 256, 64
    codes = torch.arange(block * 2 * columns).mul(7).div(3, rounding_mode="floor").remainder(16).sub(8)
    codes = codes.to(torch.int8).view(-1, columns)  # [out, in], all of −8 to 7
    scale = torch.linspace(0.01, 3, columns // group_size * len(codes)).view(-1, len(codes)).half()  # [groups, out]
    zero = None if zeros is None else torch.arange(scale.numel()).remainder(16).sub(8).view(scale.shape).to(zeros)
    shift = 0 if zero is None else spread(zero, group_size)
    w = (codes.double() - shift) * spread(scale, group_size)  # [out, in]
    y = compiled.int4_matmul(torch.eye(columns), in_blocks(codes, block), scale, zero, group_size, libraries[path])
    assert torch.equal(y.t().double(), w)
    y = compiled.int4_matmul(
        torch.eye(columns).bfloat16(), in_blocks(codes, block), scale, zero, group_size, libraries[path]
    )
    assert torch.equal(y.t(), w.bfloat16())


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
def test_every_float16_scale_is_read_as_it_is(libraries, path):
    scale = torch.arange(2**16).to(torch.uint16).view(torch.float16)[None]  # [1, out], infinities and nan among them
    codes = torch.tensor([[1, 0]], dtype=torch.int8).expand(2**16, 2)
    y = compiled.int4_matmul(torch.tensor([[1.0, 0.0]]), in_blocks(codes, 64), scale, None, 2, libraries[path])
    assert torch.equal(y.nan_to_num(7e7), scale.float().nan_to_num(7e7)) and y.isnan().sum() == scale.isnan().sum()


@needs_compiler
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_does_not_depend_on_its_neighbours_or_the_threads(libraries, path, dtype):
    g = torch.Generator().manual_seed(0)
    data = torch.randint(0, 256, (3, 256, 32), generator=g, dtype=torch.uint8)
    scale, zero = torch.rand((2, 192), generator=g).half(), torch.randint(-8, 8, (2, 192), generator=g).to(torch.int8)
    x = torch.randn((131, 256), generator=g).to(dtype)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole = compiled.int4_matmul(x, data, scale, zero, 128, libraries[path])
        torch.set_num_threads(1)
        assert torch.equal(whole, compiled.int4_matmul(x, data, scale, zero, 128, libraries[path]))
        for i in (0, 1, 5, 127, 128, 130):
            assert torch.equal(whole[i], compiled.int4_matmul(x[i : i + 1], data, scale, zero, 128, libraries[path])[0])
    finally:
        torch.set_num_threads(before)


@needs_compiler
@pytest.mark.parametrize("symmetric", [True, False])
def test_it_reads_what_pack_weight_writes(libraries, symmetric):
    w = torch.randn((128, 128), generator=torch.Generator().manual_seed(0))
    q = quantize(w, Grid(4, 32, symmetric=symmetric))
    x = torch.randn((3, 128), generator=torch.Generator().manual_seed(1))
    p = pack_weight(q, "cpu")
    if p.layout != "int4pack":
        pytest.skip("PyTorch on this CPU has no int4 order of 64 or 32 rows a block")
    y = compiled.int4_matmul(x, p.data, p.scale, p.zero_points(), p.group_size, libraries["this CPU"])
    torch.testing.assert_close(y.double(), linear_reference(x, q), atol=1e-5, rtol=1e-5)


def arguments():
    return {
        "x": torch.zeros(2, 8),
        "data": torch.zeros((1, 8, 32), dtype=torch.uint8),
        "scale": torch.ones((2, 64), dtype=torch.float16),
        "zero_point": None,
        "group_size": 4,
    }


@needs_compiler
@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", torch.zeros((2, 8), dtype=torch.float16), TypeError, "x must be float32 or bfloat16, got torch.float16"),
        ("x", torch.zeros(8), ValueError, r"x must be \[rows, in\].* got \[8\]"),
        ("x", torch.zeros(2, 6), ValueError, r"got \[2, 6\] and \[1, 8, 32\]"),
        ("x", torch.zeros((2, 8), device="meta"), ValueError, "must be on the CPU, x is on meta"),
        ("data", torch.zeros((1, 8, 32), dtype=torch.int8), TypeError, "data must be uint8, got torch.int8"),
        ("data", torch.zeros((1, 8, 8), dtype=torch.uint8), ValueError, r"B = 64 or 32, got .*\[1, 8, 8\]"),
        ("scale", torch.ones(64, 2), ValueError, r"scale must be \[groups, out\] = \[2, 64\], got \[64, 2\]"),
        ("scale", torch.ones(2, 1), ValueError, r"got \[2, 1\]: expand"),
        ("zero_point", torch.ones(1, 64), ValueError, r"zero_point must be .* = \[2, 64\], got \[1, 64\]"),
        ("group_size", 3, ValueError, "group_size must be even and divide the 8 columns, got 3"),
        ("group_size", 6, ValueError, "got 6"),
        ("group_size", 0, ValueError, "got 0"),
        ("group_size", 4.0, ValueError, "got 4.0"),
    ],
)
def test_what_does_not_fit_is_refused(libraries, name, value, error, message):
    with pytest.raises(error, match=message):
        compiled.int4_matmul(**arguments() | {name: value}, library=libraries["this CPU"])


# --- building


def test_nothing_is_there_before_it_is_built(empty_cache):
    assert not compiled.available() and compiled.load() is None
    with pytest.raises(RuntimeError, match="python -m quantlib build"):
        compiled.int4_matmul(**arguments())
    assert not empty_cache.exists()


@needs_compiler
def test_the_command_builds_it_and_threads_are_shared_with_torch(empty_cache):
    done = subprocess.run(
        [sys.executable, "-m", "quantlib", "build"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (path,) = empty_cache.iterdir()
    assert str(path) in done.stdout and path.suffix == ".so"
    assert compiled.available() and compiled.load().path == path and compiled.build() == path
    written = path.stat().st_mtime_ns
    compiled.build()
    assert path.stat().st_mtime_ns == written

    if not Path("/proc/self/maps").exists():
        return
    script = """if True:
        import torch
        from quantlib.kernels.cpu import compiled
        torch.set_num_threads(2)
        data, scale = torch.zeros((4, 8, 32), dtype=torch.uint8), torch.ones(1, 256)
        assert (compiled.int4_matmul(torch.ones(1, 8), data, scale, None, 8) == -64).all()
        paths = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.split()[-1].rsplit("/", 1)[-1]}
        print(*(p for p in paths if "compiled" not in p.rsplit("/", 1)[-1]), sep="\\n")
    """
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    runtimes = done.stdout.split()
    assert len(runtimes) == 1, runtimes


@needs_compiler
def test_a_library_under_the_wrong_name_is_not_used(empty_cache, libraries):
    path = compiled._path(compiled._compiler(), compiled.FLAGS)
    path.parent.mkdir()
    path.write_bytes(b"\x7fELF of another machine " + path.stem.encode())
    assert not compiled.available()
    shutil.copy(libraries["any CPU"].path, path)  # loads, but was built with other flags
    assert not compiled.available()
    assert compiled.build() == path and compiled.available()


@needs_compiler
def test_the_name_depends_on_flags_and_compiler(tmp_path):
    command = compiled._compiler()
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho another compiler\n")
    other.chmod(other.stat().st_mode | stat.S_IXUSR)
    keys = {compiled._key(c, f) for c in (command, (str(other),)) for f in PATHS.values()}
    assert len(keys) == 2 * len(PATHS)


@needs_compiler
def test_it_can_be_switched_off(libraries, monkeypatch):
    monkeypatch.setitem(compiled._loaded, compiled.FLAGS, libraries["this CPU"])
    monkeypatch.setenv("QUANTLIB_COMPILED", "1")
    assert compiled.available()
    monkeypatch.setenv("QUANTLIB_COMPILED", "0")
    assert not compiled.available()


def test_without_a_compiler_it_says_what_to_do(empty_cache, monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"install g\+\+ or clang\+\+, or name yours in the variable CXX"):
        compiled.build()
    assert not compiled.available()


def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(empty_cache, monkeypatch, tmp_path):
    broken = tmp_path / "broken-compiler"
    broken.write_text("#!/bin/sh\necho 'internal compiler error' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with pytest.raises(RuntimeError, match="(?s)use another compiler by the variable CXX.*internal compiler error"):
        compiled.build()
    assert list(empty_cache.iterdir()) == []


@needs_compiler
def test_a_folder_that_takes_no_file_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUANTLIB_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(compiled, "_loaded", {})
    with pytest.raises(RuntimeError, match="cannot be written .* set QUANTLIB_CACHE"):
        compiled.build()
