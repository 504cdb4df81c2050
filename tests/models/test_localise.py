"""A planted fault is found, whichever it is and wherever; a healthy model raises no alarm; wrong input is refused."""

import copy

import pytest
import torch

from quantlib import GPTQ, RTN, Grid, LLMInt8, find_faulty_layer, quantize_model
from quantlib.layers.weight_only import QuantizedLinear
from quantlib.models.linears import dequantized
from quantlib.numerics.quantize import QuantizedTensor
from tests.tiny import save_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A random model whose weights have heavier tails than a bell, and text."""
    model, _ = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in model.model.layers.modules():
            if isinstance(layer, torch.nn.Linear):
                layer.weight.mul_(torch.rand(layer.weight.shape, generator=generator) + 0.5)
    return model.requires_grad_(False), torch.randint(16, (8, 32), generator=generator)


def swapped_rows(q, draw):
    one, other = draw(q.shape[0], 2)
    order = torch.arange(q.shape[0])
    order[[one, other]] = order[[other, one]]
    return q.codes[order], q.scale[order]


def wrong_scale(q, draw):
    scale = q.scale.clone()
    scale[draw(q.shape[0], 1)[0], draw(scale.shape[1], 1)[0]] *= 2
    return q.codes, scale


def transposed_block(q, draw):
    codes, row, column = q.codes.clone(), draw(q.shape[0] // 8, 1)[0] * 8, draw(q.shape[1] // 8, 1)[0] * 8
    block = codes[row : row + 8, column : column + 8].t().clone()
    codes[row : row + 8, column : column + 8] = block
    return codes, q.scale


def zeroed_group(q, draw):
    codes, row, group = q.codes.clone(), draw(q.shape[0], 1)[0], draw(q.scale.shape[1], 1)[0]
    wide = q.shape[1] // q.scale.shape[1]
    codes[row, group * wide : (group + 1) * wide] = 0
    return codes, q.scale


FAULTS = swapped_rows, wrong_scale, transposed_block, zeroed_group


def planted(model, fault, seed):
    """A copy with one fault, and the layer that has it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(below, count):
        return torch.randperm(below, generator=generator)[:count].tolist()

    model = copy.deepcopy(model)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantizedLinear)]
    name, layer = layers[draw(len(layers), 1)[0]]
    q = layer.quantized()
    codes, scale = fault(q, draw)
    model.set_submodule(name, type(layer).from_quantized(QuantizedTensor(codes, scale, q.zero_point, q.g_idx, q.grid)))
    return model, name


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found_in_20_of_20_layers(tiny, fault):
    reference, windows = tiny
    healthy, _ = quantize_model(reference, RTN(Grid(4, 16)))
    for seed in range(20):
        model, name = planted(healthy, fault, seed)
        found = find_faulty_layer(model, reference, windows)
        assert [layer.name for layer in found.faulty] == [name], f"seed {seed}: {found}"
        assert found.name == name and name in str(found)


@pytest.mark.parametrize("method", [
    RTN(Grid(8)), RTN(Grid(4, 16)), RTN(Grid(4, 16, symmetric=False)), RTN(Grid(3, 16)), GPTQ(Grid(4, 16)), LLMInt8(6.0),
    GPTQ(Grid(3, 16), act_order=False), GPTQ(Grid(4, 16), act_order=True),
], ids=str)  # fmt: skip
def test_a_healthy_model_raises_no_alarm(tiny, method):
    reference, windows = tiny
    model, _ = quantize_model(reference, method, windows if isinstance(method, GPTQ) else None)
    for each in (model, dequantized(model)):
        found = find_faulty_layer(each, reference, windows)
        assert not found.faulty and found.name is None, found


def test_rounding_to_nearest_is_what_the_grid_explains(tiny):
    reference, windows = tiny
    model, _ = quantize_model(reference, RTN(Grid(4, 16)))
    times = [layer.times for layer in find_faulty_layer(model, reference, windows).layers]
    assert len(times) == 14 and all(0.5 < t < 3**0.5 for t in times)


@pytest.mark.parametrize("fault", FAULTS)
def test_floats_that_were_rounded_elsewhere_are_judged_by_their_kin(tiny, fault):
    reference, windows = tiny
    model, name = planted(quantize_model(reference, RTN(Grid(8, 16)))[0], fault, 0)
    assert find_faulty_layer(dequantized(model), reference, windows).name == name


def test_exact_copies_and_a_cast_are_no_fault_and_models_stay_as_they_were(tiny):
    reference, windows = tiny
    before = {name: p.clone() for name, p in reference.named_parameters()}
    assert not find_faulty_layer(copy.deepcopy(reference), reference, windows).faulty
    assert not find_faulty_layer(copy.deepcopy(reference).bfloat16(), reference, windows).faulty
    assert all(p.equal(before[name]) for name, p in reference.named_parameters())


def test_what_cannot_be_compared_is_refused_by_name(tiny):
    reference, windows = tiny
    model, _ = quantize_model(reference, RTN(Grid(8)))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got str"):
        find_faulty_layer("smol-int4", reference, windows)
    with pytest.raises(ValueError, match="reference has no float linear layer"):
        find_faulty_layer(model, model, windows)
    with pytest.raises(ValueError, match="down_proj is a linear layer of the reference and a Identity in model"):
        find_faulty_layer(_with(model, "model.layers.1.mlp.down_proj", torch.nn.Identity()), reference, windows)
    with pytest.raises(ValueError, match=r"q_proj is \[32, 16\] in model and \[32, 32\] in reference"):
        find_faulty_layer(_with(model, "model.layers.0.self_attn.q_proj", torch.nn.Linear(16, 32)), reference, windows)
    broken = copy.deepcopy(reference)
    broken.model.layers[0].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(ValueError, match="up_proj holds NaN or infinite weights in model: that is the fault"):
        find_faulty_layer(broken, reference, windows)
    other = copy.deepcopy(model)
    other.model.norm.weight.data.mul_(2)
    with pytest.raises(ValueError, match="model.norm.weight is another in model .* folded float model"):
        find_faulty_layer(other, reference, windows)
    with pytest.raises(ValueError, match="windows"):
        find_faulty_layer(model, reference, torch.zeros(0, 8, dtype=torch.long))


def _with(model, name, module):
    model = copy.deepcopy(model)
    model.set_submodule(name, module)
    return model
