"""sizes.py against parameter counts that the models' authors publish, and against packed bytes of a real module."""

import pytest
from torch import nn

from quantlib.models.sizes import REAL_MODELS, footprint, model_shape
from quantlib.numerics.grid import Grid
from quantlib.numerics.quantize import quantize

PARAMETERS = {
    "Llama-2-7B": 6_738_415_616, "Llama-2-70B": 68_976_648_192, "Llama-3.1-8B": 8_030_261_248,
    "Qwen2.5-0.5B": 494_032_768, "SmolLM2-135M": 134_515_008,
}  # fmt: skip


@pytest.mark.parametrize("name", REAL_MODELS)
def test_parameter_counts_are_the_published_ones(name):
    assert model_shape(REAL_MODELS[name]).parameters == PARAMETERS[name]


def test_llama_2_7b():
    shape = model_shape(REAL_MODELS["Llama-2-7B"])
    assert footprint(shape, Grid(4, 128)).full == 13_476_831_232
    four = footprint(shape, Grid(4, 128, symmetric=False))
    assert (
        four.bits_per_weight == 4.15625 and round(four.total / 1e9, 2) == 3.89 and round(four.times_smaller, 2) == 3.47
    )
    assert round(footprint(shape, Grid(8)).total / 1e9, 2) == 7.00


def test_a_real_module_weighs_what_its_quantized_tensors_do():
    tied = nn.Linear(64, 100, bias=False)
    model = nn.ModuleDict(dict(embed=nn.Embedding(100, 64), a=nn.Linear(64, 32), b=nn.Linear(32, 64), lm_head=tied))
    model["lm_head"].weight = model["embed"].weight
    shape, grid = model_shape(model), Grid(4, 16, symmetric=False)
    result = footprint(shape, grid)
    packed = sum(quantize(model[name].weight, grid).nbytes for name in "ab")
    assert result.codes + result.scales == packed
    assert result.kept == 2 * (6400 + 32 + 64) and shape.parameters == 6400 + 2 * 2048 + 96
    assert model_shape(model, skip=()).quantizable == 6400 + 2 * 2048  # the head counted, its tie not kept twice


def test_a_group_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="group_size 128 does not divide the 576 columns"):
        footprint(model_shape(REAL_MODELS["SmolLM2-135M"]), Grid(4, 128))
    with pytest.raises(ValueError, match="no-such-model"):
        model_shape(dict(model_type="no-such-model"))
