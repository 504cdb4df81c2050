"""AWQ: enlarge the columns of W whose inputs are large before rounding, and divide the inputs. Start from :func:`awq_scale`.

Multiplying column j of W by s_j and dividing input j by it changes no product. It does change what rounding loses: a
group's step grows only if the enlarged weight becomes its largest, while the error made in column j counts 1/s_j. So
columns with large inputs are enlarged, s = s_X^α, as far as the error of the outputs falls.

Of the text only Gram matrices are needed. With D = W s − Q(W s) the outputs lose tr(D G_s Dᵀ), where G_s = G/(s sᵀ) is
the Gram matrix of the divided inputs: what a ratio costs does not depend on how many tokens were read.

Source: Lin et al. 2024 (arXiv:2306.00978), section 3.2, equations 4 and 5; the ratios i/20, the normalisation of s and
the clip search per group are the authors' code (llm-awq, auto_scale.py and auto_clip.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantlib.methods.gptq import row_blocks, squared_output
from quantlib.methods.scales import Cost, searched_clip
from quantlib.methods.statistics import InputStats
from quantlib.numerics.floats import floats
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize
from quantlib.numerics.rounding import row_chunks, working_dtype

ALPHAS = tuple(i / 20 for i in range(20))  # 0, 0.05, … 0.95
CLIPS = tuple(1 - i / 20 for i in range(10))  # 1, 0.95, … 0.55
FINE_CLIPS = tuple(1 - i / 40 for i in range(24))  # 1, 0.975, … 0.425: twice the time, and better on the lesson model
FAINTEST = 1e-4  # inputs below this share of the largest count as much: s stays within what float16 holds

Family = Callable[[Tensor, Sequence[Tensor], Grid, float], Tensor]  # mean |x| [in], weights, grid, α -> s [in]


@dataclass(frozen=True, eq=False)
class AwqScale:
    """What awq_scale found.

    s       [in], positive: columns of the weights are multiplied by it, inputs divided
    alpha   the ratio that gave it
    losses  float64 [ratios]: the share of the squared outputs that each ratio loses, summed over the weights
    """

    s: Tensor
    alpha: float
    losses: Tensor


def activation_scale(absmean: Tensor, weights: Sequence[Tensor], grid: Grid, alpha: float) -> Tensor:
    """s = s_X^α (equation 5), so that √(max · min) is 1. α = 0 changes nothing; an input that is always 0 has s = 1."""
    floor = FAINTEST * absmean.max()
    return _normalised(absmean.clamp(min=floor) ** alpha, absmean > 0)


def duo_scale(absmean: Tensor, weights: Sequence[Tensor], grid: Grid, alpha: float) -> Tensor:
    """s = s_X^α / s_W^(1 − α), s_W the mean of |w| over its group's largest |w|: "duo scaling" of AutoAWQ.

    At α = 0 it is not the identity: columns of small weights are enlarged.
    """
    total = sum(_share_of_largest(w, grid).sum(0) for w in weights)  # [in]
    s_w = total / sum(len(w) for w in weights)
    floor = FAINTEST * absmean.max()
    s = absmean.clamp(min=floor) ** alpha / (s_w ** (1 - alpha) + 1e-4)
    return _normalised(s.clamp(min=FAINTEST * s.max()), absmean > 0)


def awq_scale(
    weights: Tensor | Sequence[Tensor],
    stats: InputStats | Sequence[InputStats],
    grid: Grid,
    *,
    family: Family = activation_scale,
    alphas: Sequence[float] = ALPHAS,
    shared: Tensor | None = None,
    scale_dtype: torch.dtype = torch.float16,
) -> AwqScale:
    """The s of weights that read the same inputs that loses least of what they put out together.

    weights  floating-point [out, in], or several such: q, k and v; gate and up. Never modified
    stats    of their inputs: one for all, or one for each weight (v through attention)
    family   s of a ratio: activation_scale, or duo_scale
    alphas   the ratios. The identity is tried before them, as the loss of ratio 0 of activation_scale: s is 1 if none
             is better
    shared   int64 [in]: inputs with the same number share an s, as query heads that read the same values must
    scale_dtype  as in quantize

    Raises what quantize raises; ValueError for statistics that do not fit a weight, alphas outside [0, 1] or none, and
    inputs that are all 0.
    """
    if isinstance(weights, Tensor):
        weights = [weights]
    weights = [floats(w, f"weights[{i}]") for i, w in enumerate(weights)]
    known = [stats] * len(weights) if isinstance(stats, InputStats) else list(stats)
    if not weights or len(known) != len(weights):
        raise ValueError(f"stats must be one, or one for each of the {len(weights)} weights, got {len(known)}")
    if not len(alphas) or not all(0 <= alpha <= 1 for alpha in alphas):
        raise ValueError(f"alphas must be ratios from 0 to 1, at least one, got {alphas!r}")
    absmean = known[0].absmean.to(working_dtype(known[0].absmean.dtype))
    if not bool((absmean > 0).any()):
        raise ValueError("stats: every input of these weights was 0, so nothing says which columns matter: skip them")
    if shared is not None:
        absmean = _mean_of_shared(absmean, shared)
    grams = [each.gram for each in known]
    totals = [squared_output(w, gram) or 1.0 for w, gram in zip(weights, grams, strict=True)]

    def loss(s: Tensor) -> float:
        lost = (scaled_loss(w, gram, s, grid, scale_dtype) for w, gram in zip(weights, grams, strict=True))
        return sum(part / total for part, total in zip(lost, totals, strict=True))

    candidates = [family(absmean, weights, grid, alpha) for alpha in alphas]
    losses = [loss(s) for s in candidates]
    best = min(range(len(alphas)), key=losses.__getitem__)
    ones = torch.ones_like(absmean)
    if not any(s.equal(ones) for s in candidates) and loss(ones) <= losses[best]:
        return AwqScale(ones, 0.0, torch.tensor(losses, dtype=torch.float64))
    return AwqScale(candidates[best], float(alphas[best]), torch.tensor(losses, dtype=torch.float64))


def scaled_loss(w: Tensor, gram: Tensor, s: Tensor, grid: Grid, scale_dtype: torch.dtype = torch.float16) -> float:
    """What the outputs lose if W s is rounded and inputs are divided by s: tr(D G_s Dᵀ), D = W s − Q(W s).

    w [out, in], gram [in, in] or [blocks, in, in], s [in] positive. Products in float32 (float64 for float64 w).
    """
    work = working_dtype(w.dtype)
    s = s.to(w.device, work)
    enlarged = w.detach().to(work) * s
    D = quantize(enlarged, grid, scale_dtype=scale_dtype).dequantize(work).sub_(enlarged)
    lost = 0.0
    for rows, G in row_blocks(w, gram):
        G_s = G.to(work) / s / s[:, None]
        for some in row_chunks(D[rows]):
            d = D[rows][some]  # [some, in]
            lost += ((d @ G_s) * d).sum(dtype=torch.float64).item()
    return max(0.0, lost)


def awq_clip(
    w: Tensor,
    stats: InputStats,
    grid: Grid,
    *,
    ratios: Sequence[float] = CLIPS,
    scale_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """The clip, for each scale, whose group loses least of what it adds to the outputs: d G dᵀ over the group's inputs.

    w [out, in] and stats as they are after scaling -> float32 (float64 for float64 w) [out|1, groups], each one of the
    ratios. What groups of a row lose together is left out, as in the authors' search.

    Raises what quantize raises, and for statistics that do not fit w.
    """
    return searched_clip(w, stats.gram, grid, ratios, _by_groups, scale_dtype)


def _by_groups(H: Tensor, groups: int) -> Cost:
    n = H.shape[0] // groups
    blocks = H.view(groups, n, groups, n).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()  # [groups, n, n]

    def cost(errors: Tensor) -> Tensor:
        d = errors.transpose(0, 1)  # [groups, rows, n]
        return ((d @ blocks) * d).sum(-1).t()

    return cost


def protected(w: Tensor, grid: Grid, columns: Tensor, *, scale_dtype: torch.dtype = torch.float16) -> Tensor:
    """w rounded to the grid but for some columns, which stay as they are: [out, in] in the dtype of w (Table 1).

    columns  bool [in], or int64 indices
    """
    w = floats(w, "w")
    kept = quantize(w, grid, scale_dtype=scale_dtype).dequantize(w.dtype)
    kept[:, columns] = w.detach()[:, columns]
    return kept


def _normalised(s: Tensor, seen: Tensor) -> Tensor:
    """s over √(max · min), which only keeps it within what float16 holds; 1 where no input was ever seen."""
    of_seen = s[seen]
    return torch.where(seen, s / (of_seen.max() * of_seen.min()).sqrt(), torch.ones_like(s))


def _share_of_largest(w: Tensor, grid: Grid) -> Tensor:
    """|w| over the largest |w| of its group, [out, in]; 0 in a group of zeros."""
    groups = 1 if grid.group_size == "tensor" else grid.scale_shape(*w.shape)[1]
    x = w.detach().abs().to(working_dtype(w.dtype)).unflatten(1, (groups, -1))  # [out, groups, in/groups]
    return (x / (x.amax(-1, keepdim=True) + 1e-6)).flatten(1)  # [out, in]


def _mean_of_shared(values: Tensor, shared: Tensor) -> Tensor:
    """Each value [in] replaced by the mean of all that have its number."""
    if tuple(shared.shape) != tuple(values.shape):
        raise ValueError(f"shared must be {list(values.shape)}, a number for each input, got {list(shared.shape)}")
    _, place = shared.to(values.device).unique(return_inverse=True)
    total = values.new_zeros(int(place.max()) + 1).index_add_(0, place, values)
    return (total / place.bincount())[place]
