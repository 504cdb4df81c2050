"""load_quantized on folders that are not what they say: refused with a sentence, or the very tensors."""

import json
import pickle
import random
import shutil
import struct

import pytest
import torch
from checkpoint_cases import quantized, state, tensors_of
from families import make
from safetensors.torch import load_file, save_file

import quantlib.models.checkpoints.loading as loading
from quantlib import load_quantized, save_quantized

FORMATS = ("gptq", "gptq_v2 asymmetric", "awq", "compressed-tensors asymmetric", "bitsandbytes")
LAYER = "model.layers.0.mlp.up_proj"
OTHER = "model.layers.0.mlp.gate_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Name -> (folder, what load_quantized makes of it); the first in several files."""
    found = {}
    for case in FORMATS:
        format, model = quantized(make("llama"), case)
        folder = tmp_path_factory.mktemp("whole") / "out"
        save_quantized(model, folder, format, max_shard_bytes=40_000 if case == FORMATS[0] else 2_000_000_000)
        found[case] = folder, state(load_quantized(folder))
    return found


def copied(folders, case, tmp_path):
    shutil.copytree(folders[case][0], tmp_path / "copy")
    return tmp_path / "copy"


def change_config(folder, **changed):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["quantization_config"] |= changed
    path.write_text(json.dumps(config), encoding="utf-8")


def change_tensors(folder, change):
    """Rewrite the one file as another tool would: without what ours notes in it."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def refused(folder, said):
    with pytest.raises(ValueError, match=said) as error:
        load_quantized(folder)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


# --- one by one, with what each is told


def as_version_2(t):
    t[f"{LAYER}.qzeros"] = torch.full_like(t[f"{LAYER}.qzeros"], 0x88888888 - 2**32)


def negative_group(t):
    t[f"{LAYER}.g_idx"][3] = -1


def out_of_order(t):
    t[f"{LAYER}.g_idx"] = t[f"{LAYER}.g_idx"].flip(0).contiguous()


def swapped(t):
    t[f"{LAYER}.scales"], t[f"{LAYER}.qzeros"] = t[f"{LAYER}.qzeros"], t[f"{LAYER}.scales"]


@pytest.mark.parametrize(
    "change, said",
    [
        (as_version_2, "0x88888888.*'gptq_v2'.*'gptq'.*0x77777777"),
        (negative_group, f"{LAYER}: g_idx runs from -1 to 1"),
        (out_of_order, "out of order.*desc_act=false"),
        (swapped, r"qzeros is \[2, 128\] in the file and must be \[2, 16\]"),
        (lambda t: t.pop(f"{LAYER}.scales"), f"lacks {LAYER}.scales"),
        (lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
        (lambda t: t.update(extra=torch.zeros(1)), "holds extra, which the model has no place for"),
        (lambda t: t[f"{LAYER}.scales"].fill_(torch.inf), "not a positive number"),
        (lambda t: t[f"{LAYER}.scales"].fill_(-1), "not a positive number"),
        (
            lambda t: t.update({f"{LAYER}.qweight": t[f"{LAYER}.qweight"][1:].clone()}),
            r"qweight is \[7, 128\].*\[8, 128\]",
        ),
        (lambda t: t.update({f"{LAYER}.scales": t[f"{LAYER}.scales"].float()}), "scales is float32.*float16"),
        (lambda t: t.update({"model.norm.weight": torch.ones(64, dtype=torch.int32)}), "norm.weight is int32"),
    ],
)
def test_a_wrong_tensor(change, said, tmp_path):
    format, model = quantized(make("llama"), "gptq")
    save_quantized(model, tmp_path / "out", format)
    change_tensors(tmp_path / "out", change)
    refused(tmp_path / "out", said)


@pytest.mark.parametrize(
    "case, changed, said",
    [
        ("gptq", {"bits": 8}, "qweight is"),
        ("gptq", {"bits": 3}, "2, 4 or 8"),
        ("gptq", {"bits": True}, "a whole number"),
        ("gptq", {"group_size": 16}, "qzeros is"),
        ("gptq", {"group_size": 0}, "group_size must be"),
        ("gptq", {"group_size": 7}, "does not divide"),
        ("gptq", {"checkpoint_format": "gptq_v2"}, "0x77777777.*'gptq'.*'gptq_v2'.*0x88888888"),
        ("gptq", {"checkpoint_format": "marlin"}, "'gptq' or 'gptq_v2'"),
        ("gptq", {"dynamic": {"+:.*down_proj": {"bits": 8}}}, "settings of its own"),
        ("gptq", {"quant_method": "exl3"}, "'exl3' is not read here"),
        ("gptq_v2 asymmetric", {"sym": True}, "not all 0x88888888"),
        ("awq", {"version": "gemv"}, "GEMM"),
        ("awq", {"zero_point": False}, "zero_point=false"),
        ("awq", {"modules_to_not_convert": [LAYER]}, f"names {LAYER}, and the file holds it quantized"),
        ("compressed-tensors asymmetric", {"format": "marlin-24"}, "pack-quantized"),
        ("compressed-tensors asymmetric", {"config_groups": {}}, "holds 0 groups"),
        ("bitsandbytes", {"load_in_8bit": False, "load_in_4bit": True}, "4 bits are not"),
        ("bitsandbytes", {"llm_int8_threshold": -1.0}, "negative"),
        ("bitsandbytes", {"llm_int8_threshold": float("nan")}, "negative"),
    ],
)
def test_a_config_that_does_not_fit(case, changed, said, folders, tmp_path):
    folder = copied(folders, case, tmp_path)
    change_config(folder, **changed)
    refused(folder, said)


def test_version_1_and_a_zero_that_nobody_can_tell(folders, tmp_path):
    """An asymmetric file of version 1 loads where no stored zero is 15, and is refused where one is."""
    folder = copied(folders, "gptq_v2 asymmetric", tmp_path)
    change_config(folder, checkpoint_format="gptq")
    change_tensors(folder, lambda t: t[f"{LAYER}.qzeros"].fill_(-1))
    refused(folder, "zero point of 0 or of 16")
    change_tensors(folder, lambda t: [t[k].fill_(0x33333333) for k in t if k.endswith("qzeros")])
    assert set(load_quantized(folder).get_submodule(LAYER).quantized().zero_point.unique().tolist()) == {4 - 8}


@pytest.mark.parametrize(
    "path", ["../model-00001-of-00002.safetensors", "/etc/passwd", "a/b.safetensors", "..", "x.bin", 3]
)
def test_an_index_that_points_elsewhere(path, folders, tmp_path):
    folder = copied(folders, FORMATS[0], tmp_path)
    index = folder / "model.safetensors.index.json"
    words = json.loads(index.read_text(encoding="utf-8"))
    words["weight_map"][f"{LAYER}.scales"] = path
    index.write_text(json.dumps(words), encoding="utf-8")
    refused(folder, "not a name of a weight file")


class Bomb:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_a_pickle_under_any_name(folders, tmp_path):
    folder = copied(folders, "awq", tmp_path)
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "no safetensors file")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, "would have to be unpickled")
    (folder / "config.json").write_bytes(pickle.dumps(Bomb()))
    refused(folder, "not JSON")
    refused(tmp_path / "nowhere", "is not a folder")


def test_nothing_is_built_before_everything_is_checked(folders, tmp_path, monkeypatch):
    """The last layer's last tensor is wrong, and no layer was made."""
    folder = copied(folders, "awq", tmp_path)
    change_tensors(folder, lambda t: t["model.layers.1.mlp.down_proj.scales"].fill_(0))

    def built(*args):
        raise AssertionError("a layer was built")

    monkeypatch.setattr(loading.format_of.__globals__["AWQFile"], "layer", staticmethod(built))
    refused(folder, "model.layers.1.mlp.down_proj: a scale")
    with pytest.raises(AssertionError, match="a layer was built"):
        load_quantized(folders["awq"][0])


# --- at random


def truncate(r, folder, file):
    data = file.read_bytes()
    file.write_bytes(data[: r.randrange(len(data))])


def flip_header(r, folder, file):
    data = bytearray(file.read_bytes())
    end = 8 + struct.unpack("<Q", data[:8])[0]
    data[r.randrange(end)] ^= 1 << r.randrange(8)
    file.write_bytes(data)


def flip_data(r, folder, file):
    data = bytearray(file.read_bytes())
    data[r.randrange(8 + struct.unpack("<Q", data[:8])[0], len(data))] ^= 1 << r.randrange(8)
    file.write_bytes(data)


def header_changed(file, change):
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    change({name: entry for name, entry in header.items() if name != "__metadata__"}, header)
    words = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(words)) + words + data[end:])


def swap_names(r, folder, file):
    def change(entries, header):
        a, b = r.sample(sorted(entries), 2)
        header[a], header[b] = header[b], header[a]

    header_changed(file, change)


def reshape(r, folder, file):
    def change(entries, header):
        shape = entries[r.choice(sorted(entries))]["shape"]
        if shape:
            shape[r.randrange(len(shape))] += r.choice([-1, 1, 2**31])

    header_changed(file, change)


def transpose(r, folder, file):
    def change(entries, header):
        entries[r.choice(sorted(entries))]["shape"].reverse()

    header_changed(file, change)


def rename(r, folder, file):
    def change(entries, header):
        old = r.choice(sorted(entries))
        header[r.choice(["", "..", old + ".", old.upper(), "__metadata__.x"])] = header.pop(old)

    header_changed(file, change)


def flip_json(r, folder, file):
    path = r.choice(sorted(folder.glob("*config.json")) + sorted(folder.glob("*.index.json")))
    data = bytearray(path.read_bytes())
    data[r.randrange(len(data))] ^= 1 << r.randrange(7)
    path.write_bytes(data)


def lose(r, folder, file):
    file.unlink()


def pickled(r, folder, file):
    file.write_bytes(pickle.dumps(Bomb(), protocol=r.randrange(6)))


MUTATIONS = (truncate, flip_header, flip_data, swap_names, reshape, transpose, rename, flip_json, lose, pickled)


def mutate(seed, folders, tmp_path):
    """(what was done, whether it was refused); fails where a model came out that is not the one that was saved."""
    r = random.Random(seed)
    case, mutation = FORMATS[seed % len(FORMATS)], MUTATIONS[seed // len(FORMATS) % len(MUTATIONS)]
    folder = copied(folders, case, tmp_path)
    file = r.choice(sorted(folder.glob("*.safetensors")))
    mutation(r, folder, file)
    try:
        found = state(load_quantized(folder))
    except ValueError as error:
        assert "\n" not in str(error) and 10 < len(str(error)) < 600, str(error)
        return mutation, True
    expected = folders[case][1]
    for name, value in expected.items():
        if isinstance(value, torch.Tensor) and name.endswith((".codes", ".scale", ".weight", ".bias")):
            assert found[name].equal(value), (mutation.__name__, case, name)
    return mutation, False


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_mutations_are_refused_or_change_nothing(start, folders, tmp_path):
    outcomes = []
    for seed in range(start, start + 50):
        outcomes.append(mutate(seed, folders, tmp_path / str(seed)))
    assert all(was for mutation, was in outcomes if mutation in (truncate, flip_data, rename, lose, pickled))


def test_what_the_mutations_start_from_is_whole(folders):
    for folder, expected in folders.values():
        assert tensors_of(folder) and len(expected) > 20
