"""AWQ's searches against the field's own, against trying everything, and on inputs that go wrong elsewhere."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from quantlib import Grid, InputStats, awq_clip, awq_scale, quantize
from quantlib.methods.awq import ALPHAS, CLIPS, activation_scale, duo_scale, protected, scaled_loss

# case_small's weight, the Gram matrices of its calibration and evaluation inputs, mean and largest |x| of the former,
# and what AutoAWQ's search made of them: the weight (divided by s again), s, and the loss of each ratio
ORACLE = load_file(Path(__file__).parents[1] / "oracles" / "awq_small.safetensors")
W = ORACLE["W"]
STATS = InputStats(ORACLE["gram_cal"].float(), ORACLE["absmean"], ORACLE["absmax"], 512)
KEYS = sorted(key for key in ORACLE if key.startswith("awq/") and key.count("/") == 1)


def case(key):
    """The grid and the family of candidates; AutoAWQ's symmetric grid has absmax / 7 as its scale."""
    bits, group, symmetric, *duo = key.partition("/")[2].split("_")
    symmetric = symmetric == "sym"
    grid = Grid(int(bits[1:]), int(group[1:]), symmetric=symmetric, narrow_range=symmetric)
    return grid, duo_scale if duo else activation_scale


def loss(weight, gram=ORACLE["gram_eval"], w=W):
    d, w = w.double() - weight.double(), w.double()
    return (((d @ gram.double()) * d).sum() / ((w @ gram.double()) * w).sum()).item()


def rounded(w, s, grid, **options):
    """Q(W s)/s."""
    return quantize(w * s, grid, **options).dequantize() / s


def randn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(seed, tokens=300, columns=64):
    """Correlated inputs with a few large columns."""
    x = randn(seed, tokens, columns) @ randn(seed + 1, columns, columns) / 8
    x[:, :: columns // 4] *= 20
    return x


# --- the field


@pytest.mark.parametrize("key", KEYS)
def test_loss_on_held_out_inputs_is_the_fields(key):
    grid, family = case(key)
    found = awq_scale(W, STATS, grid, family=family, scale_dtype=torch.float32)
    assert loss(rounded(W, found.s, grid, scale_dtype=torch.float32)) <= 1.01 * loss(ORACLE[key])
    in_half = awq_scale(W, STATS, grid, family=family)
    assert loss(rounded(W, in_half.s, grid)) <= 1.01 * loss(ORACLE[key])


@pytest.mark.parametrize("key", KEYS)
def test_the_ratio_s_and_all_losses_are_the_fields(key):
    grid, family = case(key)
    found = awq_scale(W, STATS, grid, family=family, scale_dtype=torch.float32)
    field = ORACLE[f"{key}/losses"].double()
    assert found.alpha == ALPHAS[field.argmin()] and torch.allclose(found.s, ORACLE[f"{key}/s"], rtol=1e-5)
    assert torch.allclose(found.losses / found.losses.min(), field / field.min(), rtol=0.06)  # its inputs are float16


def test_the_oracle_covers_what_it_should():
    assert len(KEYS) == 8 and sum("duo" in key for key in KEYS) == 4
    for key in KEYS:  # and leaves something to gain
        grid, _ = case(key)
        assert loss(ORACLE[key]) < 0.4 * loss(quantize(W, grid).dequantize())


# --- the search


GRIDS = st.builds(
    Grid, st.integers(2, 8), st.sampled_from(["row", "tensor", 16, 32]), symmetric=st.booleans()
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(GRIDS, st.integers(1, 3), st.sampled_from([activation_scale, duo_scale]), st.integers(0, 10**6))
def test_it_returns_the_ratio_that_loses_least_and_never_more_than_rounding(grid, count, family, seed):
    x = inputs(seed)
    weights, stats = [randn(seed + i, 24 + i, 64) for i in range(count)], InputStats.of(x)
    found = awq_scale(weights, stats, grid, family=family)

    def lost(s):  # of the outputs themselves
        parts = [(x @ (rounded(w, s, grid) - w).t()).square().sum() / (x @ w.t()).square().sum() for w in weights]
        return sum(parts).item()

    direct = [lost(family(stats.absmean, weights, grid, alpha)) for alpha in ALPHAS]
    assert found.losses.tolist() == pytest.approx(direct, rel=2e-3)
    assert lost(found.s) <= min(*direct, lost(torch.ones(64))) * 1.002


def test_ratio_zero_is_the_identity_and_duo_scaling_has_none():
    weights, absmean, grid = [randn(0, 24, 64) * torch.linspace(0.1, 2, 64)], torch.rand(64) + 0.1, Grid(4, 32)
    assert activation_scale(absmean, weights, grid, 0.0).equal(torch.ones(64))
    duo = duo_scale(absmean, weights, grid, 0.0)
    assert duo.max() > 1.2 and duo.min() < 0.8
    white = InputStats(torch.eye(64), torch.ones(64), torch.ones(64), 100)
    found = awq_scale(quantize(weights[0], grid).dequantize(), white, grid, family=duo_scale)
    assert found.s.equal(torch.ones(64)) and found.alpha == 0.0  # rounding loses nothing there, duo scaling does
    assert found.losses.min() > 0


@pytest.mark.parametrize("family", [activation_scale, duo_scale])
@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_a_factor_on_the_inputs_changes_nothing(family, factor):
    x, w, grid = inputs(3), randn(3, 32, 64), Grid(3, 32)
    a, b = (awq_scale(w, InputStats.of(x * f), grid, family=family) for f in (1.0, factor))
    assert a.alpha == b.alpha and torch.allclose(a.losses, b.losses, rtol=0.03)  # s is rounded, so a code may differ


def test_dead_inputs_keep_their_scale_and_tiny_ones_stay_within_float16():
    x, w = inputs(4), randn(4, 32, 64)
    x[:, [3, 40]] = 0
    x[:, 5] *= 1e-9
    for family in (activation_scale, duo_scale):
        found = awq_scale(w, InputStats.of(x), Grid(3, 16), family=family)
        assert found.s[[3, 40]].equal(torch.ones(2)) and bool(torch.isfinite(found.s).all())
        assert found.s.min() >= 1e-2 and found.s.max() <= 1e2 and found.alpha > 0
        assert rounded(w, found.s, Grid(3, 16))[:, 3].isfinite().all()


def test_layers_are_judged_together():
    x, grid = inputs(5), Grid(3, 32)
    weights = [randn(5, 32, 64), randn(6, 32, 64) / 50 * activation_scale(x.abs().mean(0), [], grid, 1.0)]
    apart = [awq_scale(w, InputStats.of(x), grid) for w in weights]
    together = awq_scale(weights, InputStats.of(x), grid)
    assert torch.allclose(together.losses, apart[0].losses + apart[1].losses)
    assert together.alpha == ALPHAS[together.losses.argmin()] and len({each.alpha for each in (*apart, together)}) > 1


def test_each_weight_may_have_statistics_of_its_own():
    w, grid = randn(7, 32, 64), Grid(3, 32)
    plain = InputStats.of(inputs(7))
    blocks = InputStats(torch.stack([plain.gram, InputStats.of(inputs(8)).gram]), plain.absmean, plain.absmax, 300)
    found = awq_scale([w, w], [plain, blocks], grid)
    s = activation_scale(plain.absmean, [w], grid, 0.5)
    lost = [scaled_loss(part, gram, s, grid) for part, gram in zip(w.split(16), blocks.gram, strict=True)]
    of_all = [((part @ gram) * part).sum() for part, gram in zip(w.split(16), blocks.gram, strict=True)]
    expected = awq_scale(w, plain, grid).losses[10] + sum(lost) / sum(of_all)
    assert found.losses[10] == pytest.approx(expected.item(), rel=1e-4)


def test_inputs_that_share_an_output_share_their_scale():
    shared = torch.arange(16).view(2, 1, 8).expand(2, 4, 8).flatten()  # two kv heads, four query heads each
    found = awq_scale(randn(9, 32, 64), InputStats.of(inputs(9)), Grid(3, 16), shared=shared)
    assert found.alpha > 0 and len(found.s.unique()) > 8
    heads = found.s.view(2, 4, 8)
    assert heads.equal(heads[:, :1].expand(2, 4, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_nothing_is_modified(dtype):
    w, stats, grid = randn(10, 32, 64).to(dtype), InputStats.of(inputs(10)), Grid(4, 32)
    before = w.clone(), stats.gram.clone(), stats.absmean.clone()
    a, b = awq_scale(w, stats, grid), awq_scale(w.float(), stats, grid)
    assert a.alpha == b.alpha and torch.allclose(a.losses, b.losses, rtol=1e-3)
    awq_clip(w, stats, grid)
    assert w.equal(before[0]) and stats.gram.equal(before[1]) and stats.absmean.equal(before[2])


# --- the clip


def group_loss(w, q, gram):
    """d G dᵀ over the inputs of each group, [out, groups]."""
    d = (q.dequantize(torch.float64) - w.double()).unflatten(1, (q.scale.shape[1], -1))  # [out, groups, n]
    n = d.shape[-1]
    blocks = [gram.double()[g * n : (g + 1) * n, g * n : (g + 1) * n] for g in range(d.shape[1])]
    return torch.stack([((d[:, g] @ block) * d[:, g]).sum(-1) for g, block in enumerate(blocks)], 1)


@settings(max_examples=12, deadline=None)
@given(GRIDS, st.integers(0, 10**6))
def test_each_groups_clip_loses_least_of_all_ratios(grid, seed):
    w, stats = randn(seed, 24, 64), InputStats.of(inputs(seed))
    clip = awq_clip(w, stats, grid)
    costs = torch.stack([group_loss(w, quantize(w, grid, clip=ratio), stats.gram) for ratio in CLIPS])
    got = group_loss(w, quantize(w, grid, clip=clip), stats.gram)
    assert clip.shape == grid.scale_shape(24, 64)
    if grid.group_size == "tensor":
        assert got.sum() <= costs.sum((1, 2)).min() * (1 + 1e-4)
    else:
        assert bool((got <= costs.amin(0) * (1 + 1e-4) + 1e-9 * costs.amax()).all())


def test_the_clip_counts_what_errors_of_a_group_lose_together():
    """Inputs that go together: an error in both counts twice over. The diagonal alone does not see it."""
    w, grid = randn(11, 64, 32), Grid(3, 16)
    x = randn(12, 200, 32)
    x[:, 1::2] = x[:, ::2]
    stats = InputStats.of(x)
    by_diagonal = awq_clip(w, InputStats(torch.diag(stats.gram.diagonal()), stats.absmean, stats.absmax, 200), grid)
    lost = [loss(quantize(w, grid, clip=c).dequantize(), stats.gram, w) for c in (awq_clip(w, stats, grid), by_diagonal)]
    assert lost[0] < 0.98 * lost[1]


# --- columns kept in float


def test_protected_columns_are_the_weights_own():
    w, grid = randn(13, 32, 64), Grid(3, 32)
    kept = protected(w, grid, torch.tensor([5, 9]))
    assert kept[:, [5, 9]].equal(w[:, [5, 9]])
    others = torch.ones(64, dtype=torch.bool)
    others[[5, 9]] = False
    assert kept[:, others].equal(quantize(w, grid).dequantize()[:, others])
    assert protected(w, grid, ~others).equal(kept)


# --- what cannot be searched


@pytest.mark.parametrize(
    ("changed", "error", "words"),
    [
        ({"alphas": ()}, ValueError, "alphas must be ratios from 0 to 1"),
        ({"alphas": (0.5, 1.5)}, ValueError, "alphas must be ratios from 0 to 1"),
        ({"stats": [InputStats.of(inputs(0))] * 2}, ValueError, "one for each of the 1 weights, got 2"),
        ({"stats": InputStats.of(torch.zeros(9, 64))}, ValueError, "every input of these weights was 0"),
        ({"stats": InputStats.of(inputs(0, columns=32))}, ValueError, r"gram must be \[64, 64\]"),
        ({"grid": Grid(4, 48)}, ValueError, "does not divide the 64"),
        ({"weights": randn(0, 8, 64) / 0}, ValueError, "NaN or infinite"),
        ({"shared": torch.arange(5)}, ValueError, r"shared must be \[64\]"),
    ],
)
def test_refused(changed, error, words):
    arguments = {"weights": randn(0, 8, 64), "stats": InputStats.of(inputs(0)), "grid": Grid(4, 32)}
    with pytest.raises(error, match=words):
        awq_scale(**{**arguments, **changed})
