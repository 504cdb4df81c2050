"""quantlib.gguf_file against files that the gguf package writes, and blocks that it dequantizes."""

import gguf
import numpy as np
import pytest
import torch

from quantlib import gguf_file


@pytest.fixture
def path(tmp_path):
    return tmp_path / "small.gguf"


def write(path, tensors, **facts):
    writer = gguf.GGUFWriter(path, "llama")
    for name, (add, value) in facts.items():
        getattr(writer, add)(name, value)
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", [gguf.GGMLQuantizationType.Q4_1, gguf.GGMLQuantizationType.Q8_0])
def test_blocks_mean_what_ggml_means(path, kind):
    weights = np.random.default_rng(0).normal(size=(6, 96)).astype(np.float32)
    weights[2] = 0  # a row of zeros
    codes = gguf.quants.quantize(weights, kind)
    write(path, {"small": (np.ones(5, np.float32), None), "w": (codes, kind), "after": (weights, None)})
    tensors = dict(gguf_file.read(path)[1])
    assert list(tensors) == ["small", "w", "after"]
    np.testing.assert_array_equal(tensors["w"].numpy(), gguf.quants.dequantize(codes, kind))
    np.testing.assert_array_equal(tensors["after"].numpy(), weights)
    np.testing.assert_array_equal(tensors["small"].numpy(), np.ones(5))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_facts_of_every_type(path):
    facts = {
        "a.bool": ("add_bool", True),
        "a.uint8": ("add_uint8", 200),
        "an.int8": ("add_int8", -100),
        "a.uint16": ("add_uint16", 60000),
        "an.int16": ("add_int16", -30000),
        "a.uint32": ("add_uint32", 4_000_000_000),
        "an.int32": ("add_int32", -2_000_000_000),
        "a.uint64": ("add_uint64", 2**63),
        "an.int64": ("add_int64", -(2**62)),
        "a.float32": ("add_float32", 0.5),
        "a.float64": ("add_float64", 0.1),
        "a.string": ("add_string", "ein Ärger"),
        "an.array": ("add_array", ["one", "", "Ġthree"]),
    }
    write(path, {"w": (np.ones(3, np.float32), None)}, **facts)
    read = gguf_file.read(path)[0]
    assert {name: read[name] for name in facts} == {name: value for name, (_, value) in facts.items()}
    assert read["general.architecture"] == "llama"


def test_tensors_own_their_memory_and_can_be_written_to(path):
    write(path, {"w": (np.ones(3, np.float32), None)})
    ((_, tensor),) = gguf_file.read(path)[1]
    tensor += 1
    ((_, again),) = gguf_file.read(path)[1]
    assert again.tolist() == [1, 1, 1]


def test_what_it_cannot_read_is_refused(path):
    write(path, {"w": (np.ones(32, np.float16), None)})
    with pytest.raises(ValueError, match=r"has tensors of GGML types \{1\}, not F32, Q4_1 or Q8_0"):
        gguf_file.read(path)
    path.write_bytes(b"PK\3\4" + bytes(60))
    with pytest.raises(ValueError, match="is not a GGUF file of version 3"):
        gguf_file.read(path)
