"""The miniature notices: what it must hold, it holds, and the same everywhere."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from quantlib import Grid, load_text, quantize
from quantlib.methods.llm_int8 import massive_activations, outlier_features
from quantlib.records.miniature import OUTLIERS, miniature


def weights():
    return [layer.weight for layer in miniature().model.model.layers.modules() if isinstance(layer, nn.Linear)]


@pytest.fixture(scope="module")
def inputs():
    """Layer name -> its input x [tokens, in], on the beginning of the lessons' text."""
    seen, loaded = {}, miniature()
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0].flatten(0, -2)}))
        for name, layer in loaded.model.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    ids = loaded.tokenizer(load_text("wikitext-2", "test")[:512]).input_ids[:256]
    loaded.model(torch.tensor([ids]))
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize(
    "grid",
    [Grid(bits, per, narrow_range=True) for bits in (8, 6, 4, 3) for per in ("tensor", "row", 64)]
    + [Grid(4, 32), Grid(4, 32, symmetric=False), Grid(4, 64, symmetric=False)],
    ids=str,
)
def test_weights_lie_exactly_between_two_codes_of_every_grid_of_the_lessons(grid):
    ties = 0
    for w in weights():
        q = quantize(w, grid)
        scale = q.scale.double().expand(w.shape[0], -1)  # [out, groups]
        steps = w / scale.repeat_interleave(w.shape[1] // scale.shape[1], 1)  # [out, in]
        ties += ((steps - steps.floor() == 0.5) & (steps.floor() % 2 == 0) & (steps.abs() < grid.qmax)).sum()
    assert ties > 100


def test_weights_have_heavy_tails_dead_groups_and_groups_too_small_for_float16():
    for w in weights():
        assert ((w / w.std()) ** 4).mean() > 4  # 3 for a normal distribution
        groups = w.unflatten(1, (-1, 32)).abs().amax(-1)  # [out, groups]
        assert (groups == 0).any() and ((groups > 0) & (groups < 1e-9)).any() and (w[1] == 0).all()


def test_inputs_reach_every_threshold_exactly_and_have_a_sink(inputs):
    x = inputs["model.layers.0.self_attn.q_proj"]
    for threshold in OUTLIERS[2:]:
        assert outlier_features(x, threshold).sum() > (x.abs() > threshold).any(0).sum()
    assert len(massive_activations(x).value)
    assert sum(outlier_features(x, 6.0).any() for x in inputs.values()) > len(inputs) / 2
    assert all(x.dtype == torch.float64 for x in inputs.values())


DIGEST = """
import hashlib
from quantlib.records.miniature import miniature
print(hashlib.sha256(b"".join(p.numpy().tobytes() for p in miniature().model.parameters())).hexdigest())
"""


def test_it_is_the_same_whatever_the_cpu_can_do():
    own = hashlib.sha256(b"".join(p.numpy().tobytes() for p in miniature().model.parameters())).hexdigest()
    environment = {**os.environ, "ATEN_CPU_CAPABILITY": "default"}
    done = subprocess.run([sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == own, done.stderr
