"""GPTQ against the field's own implementations, against rounding, and against what must not matter."""

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantlib import Grid, quantize
from quantlib.methods.cholesky import inverse_factor
from quantlib.methods.gptq import gptq_quantize, gptq_with_damping, output_error

# case_small's W, XᵀX of its calibration and evaluation inputs, and the weights that GPTQModel 7.7.0, llm-compressor
# 0.14.0.1 and the authors' code made of them at damping 0.01
ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "gptq_small.safetensors")
W, H = ORACLE["W"], ORACLE["gram_cal"].float()
KEYS = sorted(key for key in ORACLE if "/" in key and not key.endswith("/scale"))


def case(key):
    bits, group, symmetric, *rest = key.partition("/")[2].split("_")
    grid = Grid(int(bits[1:]), "row" if group == "g-1" else int(group[1:]), symmetric=symmetric == "sym")
    return grid, "act" in rest or "gar" in rest


def loss(weight, gram=ORACLE["gram_eval"]):
    w, d = W.double(), W.double() - weight.double()
    return (((d @ gram) * d).sum() / ((w @ gram) * w).sum()).item()


def grams(seed, columns, tokens=None, heavy=True):
    """XᵀX of correlated inputs with a few large columns."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn((tokens or 3 * columns, columns), generator=g) @ torch.randn((columns, columns), generator=g)
    if heavy:
        x[:, torch.randperm(columns, generator=g)[: columns // 16]] *= 20
    return x.t() @ x


def weight(seed, out, columns):
    return torch.randn((out, columns), generator=torch.Generator().manual_seed(seed + 1))


# --- the field


def test_the_oracle_covers_what_it_should():
    assert len(KEYS) == 52 and {key.partition("/")[0] for key in KEYS} == {"ist", "gptqmodel", "llmc"}


@pytest.mark.parametrize("key", KEYS)
def test_loss_on_held_out_inputs_is_the_fields(key):
    grid, act_order = case(key)
    for scale_dtype in (torch.float32, torch.float16):
        q = gptq_quantize(W, H, grid, act_order=act_order, scale_dtype=scale_dtype)
        assert loss(q.dequantize()) <= 1.01 * loss(ORACLE[key])


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("key", [key for key in KEYS if "_static" in key or key.startswith("llmc/")])
def test_codes_are_the_fields(key, scale_dtype):
    grid, act_order = case(key)
    q = gptq_quantize(W, H, grid, act_order=act_order, scale_dtype=scale_dtype)
    step = q.scale.float().repeat_interleave(W.shape[1] // q.scale.shape[1], 1)
    assert ((q.dequantize() - ORACLE[key]).abs() < 0.5 * step).float().mean() >= 0.99
    if key.startswith("llmc/") and scale_dtype is torch.float32:
        assert torch.allclose(q.scale, ORACLE[f"{key}/scale"].view_as(q.scale), rtol=1e-5)


# --- what must not matter


GRIDS = st.builds(
    Grid, st.integers(2, 8), st.sampled_from(["row", "tensor", 16, 32, 64]), symmetric=st.booleans()
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(GRIDS, st.integers(32, 80), st.integers(1, 3), st.booleans(), st.integers(0, 10**6))
def test_loss_on_its_own_gram_is_at_most_roundings(grid, out, sixties, act_order, seed):
    w, gram = weight(seed, out, 64 * sixties), grams(seed, 64 * sixties)
    q = gptq_quantize(w, gram, grid, act_order=act_order)
    assert q.g_idx is None and q.scale.equal(quantize(w, grid).scale)
    assert int(q.codes.min()) >= grid.qmin and int(q.codes.max()) <= grid.qmax
    assert output_error(w, q, gram) <= output_error(w, quantize(w, grid), gram)


@settings(max_examples=20, deadline=None)
@given(GRIDS, st.booleans(), st.integers(0, 10**6))
def test_permuted_rows_permute_the_result(grid, act_order, seed):
    w, gram = weight(seed, 48, 64), grams(seed, 64)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(seed))
    a, b = (gptq_quantize(x, gram, grid, act_order=act_order) for x in (w, w[order]))
    assert (a.codes[order] == b.codes).float().mean() > 0.999  # the sums of a row depend a little on where it lies
    assert abs(output_error(w, a, gram) / output_error(w[order], b, gram) - 1) < 1e-3


@pytest.mark.parametrize("factor", [2.0**-20, 2.0**20, 1e-6, 3e7])
@pytest.mark.parametrize("act_order", [False, True])
def test_a_multiple_of_h_changes_nothing(factor, act_order):
    w, gram, grid = weight(0, 48, 64), grams(0, 64), Grid(4, 32)
    a, b = (gptq_quantize(w, g, grid, act_order=act_order) for g in (gram, gram * factor))
    assert (a.codes == b.codes).float().mean() > 0.999
    assert torch.log2(torch.tensor(factor)) % 1 or a.codes.equal(b.codes)


@settings(max_examples=20, deadline=None)
@given(GRIDS, st.booleans(), st.floats(0, 2), st.integers(0, 10**6))
def test_without_correlation_it_is_rounding(grid, act_order, damp, seed):
    w = weight(seed, 40, 128)
    q, nearest = gptq_quantize(w, 7 * torch.eye(128), grid, act_order=act_order, damp=damp), quantize(w, grid)
    assert q.codes.equal(nearest.codes) and q.scale.equal(nearest.scale)
    assert grid.symmetric or q.zero_point.equal(nearest.zero_point)


@pytest.mark.parametrize("block_size", [1, 31, 32, 64, 100, 192, 1000])
@pytest.mark.parametrize("act_order", [False, True])
def test_block_size_changes_nothing_but_rounding(block_size, act_order):
    w, gram, grid = weight(3, 64, 192).double(), grams(3, 192).double(), Grid(3, 64, symmetric=False)
    a, b = (gptq_quantize(w, gram, grid, act_order=act_order, block_size=b) for b in (128, block_size))
    assert a.codes.equal(b.codes)


def test_it_is_algorithm_1():
    """The loop of the paper, unblocked and in float64, on the inverse itself."""
    w, gram, grid = weight(5, 32, 96).double(), grams(5, 96).double(), Grid(4, 32)
    q = gptq_quantize(w, gram, grid, damp=0.05)
    step = quantize(w, grid, scale_dtype=torch.float64).scale.repeat_interleave(32, 1)  # [out, in]
    damped = gram + 0.05 * gram.diagonal().mean() * torch.eye(96, dtype=torch.float64)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    codes, left, scale = torch.empty_like(q.codes), w.clone(), q.scale.double().repeat_interleave(32, 1)
    for j in range(96):
        codes[:, j] = (left[:, j] / scale[:, j]).round().clamp(grid.qmin, grid.qmax)
        error = (left[:, j] - codes[:, j] * step[:, j]) / U[j, j]
        left[:, j:] -= error[:, None] * U[j, j:]
    assert q.codes.equal(codes)


def test_act_order_visits_large_inputs_first():
    w, gram = weight(6, 64, 128), grams(6, 128)
    plain, ordered = (gptq_quantize(w, gram, Grid(3, 32), act_order=a) for a in (False, True))
    assert output_error(w, ordered, gram) < output_error(w, plain, gram)


def test_blocks_of_rows_have_their_own_h():
    w, blocks, grid = weight(7, 60, 64), torch.stack([grams(s, 64) for s in (1, 2, 3)]), Grid(4, 32, symmetric=False)
    q = gptq_quantize(w, blocks, grid, act_order=True)
    apart = [gptq_quantize(part, H, grid, act_order=True) for part, H in zip(w.split(20), blocks, strict=True)]
    assert q.codes.equal(torch.cat([part.codes for part in apart]))
    assert q.zero_point.equal(torch.cat([part.zero_point for part in apart]))
    same = gptq_quantize(w, blocks[:1].expand(3, -1, -1), grid)
    assert same.codes.equal(gptq_quantize(w, blocks[0], grid).codes)
    lost = sum(output_error(p, a, H) * ((p @ H) * p).sum() for p, a, H in zip(w.split(20), apart, blocks, strict=True))
    total = sum(((p @ H) * p).sum() for p, H in zip(w.split(20), blocks, strict=True))
    assert output_error(w, q, blocks) == pytest.approx((lost / total).item(), rel=1e-4)


def test_clip_is_quantizes_clip():
    w, gram, grid = weight(8, 32, 64), grams(8, 64), Grid(4, 32)
    clip = torch.rand((32, 2), generator=torch.Generator().manual_seed(0)) / 2 + 0.5
    for c in (0.8, clip):
        assert gptq_quantize(w, gram, grid, clip=c).scale.equal(quantize(w, grid, clip=c).scale)
    with pytest.raises(ValueError, match="clip must lie in"):
        gptq_quantize(w, gram, grid, clip=0.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_nothing_is_modified(dtype):
    w, gram = weight(9, 32, 64).to(dtype), grams(9, 64)
    before = w.clone(), gram.clone()
    q = gptq_quantize(w, gram, Grid(4, 32), act_order=True)
    work = w if dtype == torch.float64 else w.float()
    assert q.codes.equal(gptq_quantize(work, gram, Grid(4, 32), act_order=True).codes)
    assert w.equal(before[0]) and gram.equal(before[1])


# --- H that is not as it should be


def test_an_input_never_seen_is_rounded():
    w, gram = weight(10, 32, 64), grams(10, 64)
    gram[[3, 40]], gram[:, [3, 40]] = 0, 0
    for act_order in (False, True):
        q = gptq_quantize(w, gram, Grid(4, 32), act_order=act_order)
        assert q.codes[:, [3, 40]].equal(quantize(w, Grid(4, 32)).codes[:, [3, 40]])
        assert output_error(w, q, gram) < output_error(w, quantize(w, Grid(4, 32)), gram)


def test_damping_grows_with_a_warning_that_says_by_how_much():
    w, x = weight(11, 32, 64), torch.randn((8, 64), generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"not positive definite with damping 0 of .*: (1e-0\d|0.0*1) was needed"):
        q, used = gptq_with_damping(w, x.t() @ x - 1e-4 * torch.eye(64), Grid(4, 32), damp=0.0)
    assert 1e-6 <= used <= 0.01
    indefinite = grams(11, 64, heavy=False)
    indefinite -= 0.2 * indefinite.diagonal().mean() * torch.eye(64)
    with pytest.warns(UserWarning, match=r"with damping 0.01 of its mean diagonal: (0.1|1|10) was needed"):
        gptq_quantize(w, indefinite, Grid(4, 32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        q, used = gptq_with_damping(w, x.t() @ x, Grid(4, 32))  # eight tokens: singular, and damping is enough
    assert used == 0.01 and output_error(w, q, x.t() @ x) < output_error(w, quantize(w, Grid(4, 32)), x.t() @ x)


def nan_gram():
    gram = torch.eye(64)
    gram[3, 5] = float("nan")
    return gram


@pytest.mark.parametrize(
    ("gram", "arguments", "error", "words"),
    [
        (torch.eye(63), {}, ValueError, r"gram must be \[64, 64\]"),
        (torch.eye(64).expand(5, 64, 64), {}, ValueError, "5 blocks, which do not divide the 32 rows"),
        (torch.eye(64).long(), {}, TypeError, "gram must be a floating-point tensor"),
        (nan_gram(), {}, ValueError, "gram holds NaN"),
        (torch.zeros(64, 64), {}, ValueError, "gram is zero everywhere"),
        (-torch.eye(64), {}, ValueError, "negative diagonal"),
        (torch.eye(64) + 1e9 * (1 - torch.eye(64)), {}, ValueError, "not positive definite even with"),
        (torch.eye(64), {"damp": -1}, ValueError, "damp must be at least 0"),
        (torch.eye(64), {"damp": float("nan")}, ValueError, "damp must be at least 0"),
        (torch.eye(64), {"block_size": 0}, ValueError, "block_size must be"),
    ],
)
def test_refused(gram, arguments, error, words):
    with pytest.raises(error, match=words):
        gptq_quantize(weight(0, 32, 64), gram, Grid(4, 32), **arguments)


def test_a_grid_that_does_not_divide_and_a_weight_with_nan_are_refused():
    with pytest.raises(ValueError, match="does not divide the 64"):
        gptq_quantize(weight(0, 32, 64), torch.eye(64), Grid(4, 48))
    with pytest.raises(ValueError, match="NaN"):
        gptq_quantize(weight(0, 32, 64) / 0 * 0, torch.eye(64), Grid(4, 32))


@pytest.mark.parametrize("n", [1, 5, 700, 1100])
def test_the_factor_is_that_of_the_inverse(n):
    gram = grams(n, n).double()
    U, _ = inverse_factor(gram, 0.01)
    damped = gram / gram.diagonal().mean() + 0.01 * torch.eye(n, dtype=torch.float64)
    assert U.equal(U.triu()) and bool((U.diagonal() > 0).all())
    assert torch.allclose(U.t() @ U @ damped, torch.eye(n, dtype=torch.float64), atol=1e-8)
