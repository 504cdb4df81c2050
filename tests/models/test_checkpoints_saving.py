"""save_quantized: refused rather than written wrong, and a folder whole or not at all, whenever the process ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoint_cases import layers, same, state
from families import make
from quantized_cases import act_ordered
from torch import nn

from quantlib import RTN, Grid, LLMInt8, load_quantized, quantize, quantize_model, save_quantized
from quantlib.layers.mixed import MixedInt8Linear
from quantlib.layers.weight_only import Int4Linear, Int8Linear
from quantlib.models.checkpoints.folder import new_folder
from quantlib.models.checkpoints.formats import format_for


def rtn(grid, family="llama", **options):
    return quantize_model(make(family), RTN(grid), **options)[0]


def act_order_model(grid=None):
    model = rtn(grid or Grid(4, 32))
    layer = model.model.layers[0].mlp.up_proj
    q = act_ordered(layer.quantized(), torch.Generator().manual_seed(0))
    model.model.layers[0].mlp.up_proj = Int4Linear(q)
    return model


@pytest.mark.parametrize(
    "format, grid, said",
    [
        ("gptq", Grid(4, 32, symmetric=False), "no form for a zero point of 0.*format='gptq_v2'"),
        ("gptq", Grid(3, 32), "2 or 4 or 8 bits, got 3"),
        ("gptq", Grid(4, "tensor"), 'group_size="row"'),
        ("gptq_v2", Grid(5, 32), "2 or 4 or 8 bits, got 5"),
        ("awq", Grid(8, 32), "4 bits, got 8"),
        ("compressed-tensors", Grid(2, 32), "4 or 8 bits, got 2"),
        ("compressed-tensors", Grid(4, "tensor"), "a whole matrix"),
        ("bitsandbytes", Grid(8, "row", narrow_range=True), "multiplies floats by its codes.*LLMInt8"),
        ("exl3", Grid(4, 32), "format must be one of 'gptq', .*got 'exl3'"),
    ],
)
def test_grids_that_a_format_cannot_hold(format, grid, said, tmp_path):
    model = rtn(grid)
    with pytest.raises(ValueError, match=said):
        save_quantized(model, tmp_path / "out", format)
    assert not list(tmp_path.iterdir())


def layer(out, columns, grid):
    return (Int8Linear if grid.bits > 4 else Int4Linear)(quantize(torch.randn(out, columns), grid))


@pytest.mark.parametrize(
    "format, out, columns, grid, said",
    [
        ("gptq", 12, 64, Grid(4, 32), "layer: .*outputs in multiples of 8, got 12"),
        ("gptq", 16, 12, Grid(4, "row"), "layer: .*inputs in multiples of 8, got 12"),
        ("gptq", 8, 64, Grid(2, 32), "outputs in multiples of 16"),
        ("awq", 12, 64, Grid(4, 32), "outputs in multiples of 8, got 12"),
    ],
)
def test_shapes_that_a_format_cannot_hold(format, out, columns, grid, said):
    with pytest.raises(ValueError, match=said):
        format_for(format, {"layer": layer(out, columns, grid)})


@pytest.mark.parametrize("out, columns", [(12, 12), (1, 9), (5, 33)])
def test_shapes_that_only_compressed_tensors_pads(out, columns):
    for symmetric in (True, False):
        one = layer(out, columns, Grid(4, "row", symmetric=symmetric))
        chosen = format_for("compressed-tensors", {"layer": one})
        back = chosen.decode(chosen.encode(one.quantized()), out, columns)
        assert back.codes.equal(one.quantized().codes) and back.dequantize().equal(one.quantized().dequantize())


def test_layers_that_differ():
    a, b = layer(16, 64, Grid(4, 32)), layer(16, 64, Grid(4, 16))
    with pytest.raises(ValueError, match="a is on .* and b on .*: format='awq' holds one grid"):
        format_for("awq", {"a": a, "b": b})
    one, other = (MixedInt8Linear.from_float(nn.Linear(16, 16), threshold) for threshold in (6.0, 3.0))
    with pytest.raises(ValueError, match="differ in their threshold"):
        format_for("bitsandbytes", {"a": one, "b": other})
    for keeps, said in ((True, "keeps a float weight"), (False, "0.0 for none")):
        mixed = MixedInt8Linear.from_float(nn.Linear(16, 16), 6.0 if keeps else 0.0, keep_float=keeps)
        with pytest.raises(ValueError, match=said):
            format_for("bitsandbytes", {"a": mixed})
    with pytest.raises(ValueError, match=r"multiplies integers.*format='bitsandbytes'"):
        format_for("gptq", {"a": one})
    wide = Int4Linear(quantize(torch.randn(16, 64), Grid(4, 32), scale_dtype=torch.float32))
    with pytest.raises(ValueError, match="scale_dtype=torch.float16"):
        format_for("gptq", {"a": wide}).encode(wide.quantized())


def test_act_order_goes_where_it_is_read(tmp_path):
    model = act_order_model()
    save_quantized(model, tmp_path / "gptq", "gptq")
    new = load_quantized(tmp_path / "gptq")
    assert same(state(model), state(new)) and layers(new)["model.layers.0.mlp.up_proj"].quantized().g_idx is not None
    for format in ("awq", "compressed-tensors"):
        with pytest.raises(ValueError, match=r"up_proj has a g_idx .*use format='gptq'|save it with format='gptq'"):
            save_quantized(model, tmp_path / "no", format)


def test_what_is_no_quantized_language_model(tmp_path):
    for model, said in ((make("llama"), "no quantized layer"), (rtn(Grid(4, 32)).model, "got LlamaModel")):
        with pytest.raises(ValueError, match=said):
            save_quantized(model, tmp_path / "out", "gptq")
    with pytest.raises(ValueError, match="meta"):
        save_quantized(rtn(Grid(4, 32)).to("meta"), tmp_path / "out", "gptq")
    with pytest.raises(ValueError, match="Conv1D"):
        save_quantized(quantize_model(make("gpt2"), LLMInt8())[0], tmp_path / "out", "bitsandbytes")
    assert not list(tmp_path.iterdir())


# --- whole or not at all


def test_the_target_is_new_and_its_parent_there(tmp_path):
    model = rtn(Grid(4, 32))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(ValueError, match="exists already"):
            save_quantized(model, tmp_path / name, "gptq")
    with pytest.raises(ValueError, match="make it first"):
        save_quantized(model, tmp_path / "missing" / "out", "gptq")
    assert (tmp_path / "file").read_text() == "mine" and len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_exception_leaves_nothing(error, tmp_path):
    with pytest.raises(error), new_folder(tmp_path / "out") as work:
        (work / "half").write_text("half")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_that_others_may_read(tmp_path):
    save_quantized(rtn(Grid(4, 32)), tmp_path / "out", "gptq")
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o777 & ~mask
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "out").iterdir()} == {0o666 & ~mask}


KILLED = """
import os, random, signal, sys, time
sys.path[:0] = [sys.argv[2]]
from families import make
from quantlib import RTN, Grid, quantize_model, save_quantized

def save(name):
    save_quantized(model, f"{sys.argv[1]}/{name}", "gptq", max_shard_bytes=20_000)

model = quantize_model(make("llama"), RTN(Grid(4, 32)))[0]
save("first")
start = time.perf_counter()
save("second")
took, r = time.perf_counter() - start, random.Random(0)
for number in range(20):
    if not (child := os.fork()):
        save(number)
        os._exit(0)
    time.sleep(r.random() * 1.2 * took)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_killed_at_any_moment(tmp_path):
    """kill -9 at twenty random moments of a save: no folder under the name, or the whole one."""
    words = [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)]
    subprocess.run(words, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=300)
    whole = state(rtn(Grid(4, 32)))
    there = [folder for folder in tmp_path.iterdir() if not folder.name.startswith(".")]
    assert len(there) < 22 and len(list(tmp_path.iterdir())) > len(there)
    for folder in there:
        assert same(whole, state(load_quantized(folder)))
