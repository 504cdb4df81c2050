"""What an answer to each exercise has to leave behind, and its check: for the notebooks without solutions.

One cell for each exercise, in the pages' order: `# %% its label`, then a line `#: name: what it is` for each name that
an answer leaves; then, for exercises that later cells build on, what is given, up to a line `# check`; then the check.
The tests run every check behind the page's own solution, so it binds only names that begin with an underscore.
"""

# %% ex-groups
#: round_to_groups: round_to_groups(w, bits, size=32), which returns the rounded weights in the shape of w
_grouped = round_to_groups(w, 4)
assert _grouped.shape == w.shape, "round_to_groups has to return the shape of w"
_gain = decibels(w, w - _grouped) - decibels(w, w - round_to_groups(w, 4, w.shape[1]))
assert abs(_gain - 3.2) < 0.1, f"groups of 32 gain 3.2 dB over a scale per row, yours {_gain:.1f}"

# %% ex-byte
#: unpack_row: unpack_row(data, scale), which returns 64 floats
from quantlib import pack

q = quantize(sample, grid)
data = pack(q.codes, bits=4)[0]                    # uint8 [32]
# check
_restored = unpack_row(data, q.scale.float().item())
assert torch.equal(_restored, q.dequantize()[0]), "unpack_row gives other floats than q.dequantize()[0]"

# %% ex-budget
#: candidates: a dictionary, from words for a grid to the Grid
#: found: from the same words to its losses on the stories, as on_stories gives them
#: best: the words of the grid with the lowest mean loss
_bits = [quantize(torch.empty(288, 288, device="meta"), _grid).bits_per_weight for _grid in candidates.values()]
assert len(_bits) > 1 and max(_bits) <= 4.5 and candidates.keys() == found.keys(), "compare grids of at most 4.5 bits a weight"
assert best == min(found, key=lambda words: found[words].double().mean()), "another grid in found has a lower loss"
assert paired_bootstrap(live, found[best]).verdict == "lower", "one grid of the budget is better than symmetric groups of 32"

# %% ex-ridge
#: ideal: ideal(rows), the largest gain of int4 over bfloat16 that the limits allow
assert abs(ideal(1) - w16.nbytes / q4.nbytes) < 1e-9, "with one row the gain is the ratio of the bytes"
assert abs(ideal(1000) - 1) < 0.01, "with a thousand rows both layers wait for arithmetic, and nothing is gained"

# %% ex-zero
#: affine: a quantized weight with zero points, quantize(w, Grid(8, "row", symmetric=False))
#: asymmetric: asymmetric(x, q), the product with x touching nothing but codes
_x = torch.randn(3, 4096, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
_exact = _x @ affine.dequantize(torch.float64).t()
assert torch.allclose(asymmetric(_x, affine), _exact), "asymmetric(x, affine) is not x times the dequantized weight"

# %% ex-amdahl
#: gain_of_large: how many times as fast a token of the large model is with int4
assert 1 < gain_of_large < 2 * w.numel() / q4.nbytes, "the gain lies between 1 and the ratio of the bytes"
check_speed(3.4 < gain_of_large < 3.88, "nearly the ratio of the bytes")

# %% ex-first
#: with_first: the relative error of tokens 2 to 256 with token 1 in the call
#: without: their error without it
check = claims(loaded)
at = massive[0][0] if loaded.is_lesson_model else middle
down = layers[at].mlp.down_proj
x, w = input_of(down), down.weight.detach()
# check
check(with_first > 0.9 and without < 0.2, "the first token ruins the others: with it nearly all is error, without it little")

# %% ex-seven
#: add: what has to be added to the codes for the product to be exact
assert (sums_16(sevens + add, b) - add * b.int().sum(1) == sevens.int() @ b.int().t()).all(), f"with {add} added sums still saturate"

# %% ex-keep
#: kept_by_share: kept_by_share(x, w), which returns the product and how many columns were kept
_x, _w = input_of(down), down.weight.detach()
_y, _kept = kept_by_share(_x, _w)
check(_kept < llm_int8(_x, _w)[1], "fewer columns are kept than with any token")
check(relative(_y[1:], (_x @ _w.t())[1:]) < 0.05, "and the other tokens hardly notice")

# %% ex-two
#: loss: loss(codes, gram), what the row (0.4, 0.4) loses with these codes, a tensor of one row
for _rho in (0.0, 0.2, 0.3, 0.9):
    _gram = torch.tensor([[1, _rho], [_rho, 1]]).double()
    _ones = torch.ones(1, 2, dtype=torch.double)
    _chosen = gptq(0.4 * _ones, _gram, _ones, torch.arange(2), damp=0.0)
    assert abs(loss(0 * _ones, _gram) - 0.32 * (1 + _rho)) < 1e-6, "two zeros lose 0.32 (1 + rho)"
    assert loss(_chosen, _gram) <= loss(0 * _ones, _gram) + 1e-6, "GPTQ's codes lose no more than two zeros"

# %% ex-dead
#: silent: H of a text in which input 5 is zero
#: given: the same with a 1 on its diagonal
assert not silent[5].any() and not silent[:, 5].any(), "an input of zeros has a row and a column of zeros in H"
assert given[5, 5] == 1 and ((given != silent).sum() == 1), "given differs from silent by that 1 alone"
_codes = gptq(w, given, scale, natural, damp=0.0)
assert (_codes[:, 5] == nearest.codes[:, 5]).all(), "its column is rounded to nearest"

# %% ex-sink
#: by_hand: for each c, 0 among them: (share of the first token's value that is off, share lost of what is read)
check(any(_off < 0.2 * by_hand[0][0] and _lost < 0.0125 * table["GPTQ, through attention"][1] for _off, _lost in by_hand.values()),
      "some c brings the first token's value back, and what is read is as good as through attention")

# %% ex-kept
#: with_floats: bits per weight with one per cent of the columns in float16
#: group: the size of groups that costs as much
assert abs(3 + 16 / group - with_floats) < 1e-3, "groups of that size do not cost as much"
assert abs(with_floats - 3.254) < 0.001, "99 of 100 columns cost 3.125 bits a weight, one costs 16"

# %% ex-stops
#: stepped: for s = 1, 2, 3 and 6 the step of the grid
assert stepped[3] == stepped[2] == stepped[1], "the step stays while the second weight is no larger than the first"
assert abs(stepped[6] / stepped[1] - 2) < 1e-9, "at twice that s it has doubled"

# %% ex-both
#: left: for the sum of both, "stories" and "articles": the share of rounding's error that GPTQ leaves there
assert left["stories"] < 0.8 and left["articles"] < 0.5, "the sum is nearly as good on each as the text itself"

# %% ex-7-items
#: paired: how many questions, the same for both
#: apart: how many on each side, if they are not the same
_share = torch.stack([flipped(WAYS[3], _task) for _task in TASKS]).mean().item()
assert abs(1.96 * (_share / paired) ** 0.5 - 0.01) < 0.0005, "1.96 standard errors of so many questions are not one point"
assert 4 < apart / paired < 12, "of other questions it takes several times as many"

# %% ex-7-cache
#: base: the bytes that a token reads, weights in four bits and keys and values in 16
#: half_cache: the bytes of keys and values in 8.5 bits
#: full_cache: in 16 bits
#: three: the bytes of the weights in three bits
assert abs(half_cache / full_cache - 8.5 / 16) < 1e-6, "8.5 of 16 bits"
assert 1.6 < base / (base - full_cache + half_cache) < 1.72, "what a smaller cache gains"
assert 1.01 < base / (three + full_cache) < 1.04, "what three bits gain"

# %% ex-7-words
#: by_word: for "float" and "int4 64, rounded" the perplexity per word
assert by_word["float"] > 1.5 * row["float"].perplexity, "per word it is larger than per token"
assert by_word["int4 64, rounded"] / by_word["float"] > 1.5, "and so is the ratio"

# %% ex-8-word
#: in_order: the eight codes of the word, as GPTQ packs them: a tensor of whole numbers
#: shuffled: the eight that a reader of AWQ's order finds in it
assert in_order.tolist() == [(0x7A90F638 >> 4 * _i & 15) - 8 for _i in range(8)], "from the low end, less 8"
assert sorted(shuffled.tolist()) == sorted(in_order.tolist()) and not shuffled.equal(in_order), "the same codes elsewhere"

# %% ex-8-tp
#: takes: for groups of 128 and of 32 the n that Marlin takes `down` with, in a list
assert takes.keys() == {128, 32} and takes[128] == takes[32], "it is the tile, not the group"
assert all(11008 // _n % 128 == 0 for _n in takes[128]) and max(takes[128]) < 4, "a fourth of 11,008 is no whole number of tiles"

# %% ex-8-silent
#: as_rounded: as_rounded(model, original), the share of the model's codes that rounding would have given
#: by_text: the small model, quantized by GPTQ on sixteen stories
assert as_rounded(rounded, small.model) > 0.999, "of the rounded model all codes are the nearest"
assert as_rounded(by_text, small.model) < 0.9, "of GPTQ's they are not"

# %% ex-9-chain
#: chain: for 0.97 and 0.95 the share of answers of 50 tokens that are right
assert all(abs(chain[_rate] - _rate**50) < 1e-9 for _rate in (0.97, 0.95)), "fifty independent tokens have to be right"

# %% ex-9-coarse
#: q3: the small model in three bits, groups of 32, rounded
#: coarse: what find_faulty_layer says of it
assert q3 is not small.model and not coarse.faulty, "every layer does what its grid explains"
assert max(_layer.times for _layer in coarse.layers) > 0, "the localiser has to have looked at its layers"

# %% ex-9-ask
#: asked: the share of tokens at which the float model is asked
#: still: the share of tokens that differ from the float model's all the same
_of = along["4 bits"]["float's"]
assert abs(asked - (_of["margin"] < 1).float().mean().item()) < 1e-6, "those whose margin is thinner than a nat"
assert still < 0.2 * (1 - _of["same"].float().mean().item()), "what is asked again is right"
