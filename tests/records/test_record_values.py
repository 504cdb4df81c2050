"""Values survive JSON bit for bit, and what JSON would bend is refused."""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantlib.records.record_values import DTYPES, from_json, to_json


def there_and_back(value):
    return from_json(json.loads(json.dumps(to_json(value), allow_nan=False)))


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
names = st.text().filter(lambda name: not name.startswith("$"))


@given(st.recursive(scalars, lambda inner: st.lists(inner).map(tuple) | st.dictionaries(names, inner)))
def test_readable_values_come_back_equal(value):
    assert there_and_back(value) == value


def test_nan_comes_back_as_nan():
    assert math.isnan(there_and_back(float("nan")))


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (8, 5)])
def test_tensors_come_back_bit_for_bit(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(
        0, 2 if dtype == torch.bool else 256, (*shape, dtype.itemsize), dtype=torch.uint8, generator=generator
    )
    tensor = raw.view(dtype).reshape(shape)  # any bits: NaNs with payloads and subnormals among them
    back = there_and_back(tensor)
    assert back.dtype == dtype and back.shape == tensor.shape
    assert torch.equal(back.reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_the_bytes_are_little_endian_and_base64():
    assert to_json(torch.tensor([[1.0]])) == {"$array": {"dtype": "float32", "shape": [1, 1], "base64": "AACAPw=="}}


@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3).T, np.arange(4, dtype=">f4"), np.float32([[1, 2]])[:, ::-1]]
)
def test_numpy_arrays_come_back_as_tensors(array):
    back = there_and_back(array)
    assert (
        isinstance(back, torch.Tensor)
        and np.array_equal(back.numpy(), array)
        and back.numpy().dtype == array.dtype.newbyteorder("=")
    )


def test_numpy_scalars_are_numbers():
    assert there_and_back({"a": np.float32(0.5), "b": np.int64(3), "c": np.bool_(True)}) == {
        "a": 0.5,
        "b": 3,
        "c": True,
    }


def test_a_dataclass_becomes_its_fields():
    @dataclass(frozen=True)
    class Loss:
        value: float
        nll: torch.Tensor

    back = there_and_back(Loss(29.2, torch.ones(2)))
    assert back["value"] == 29.2 and torch.equal(back["nll"], torch.ones(2))


def test_what_comes_back_cannot_be_changed():
    back = there_and_back({"bits": [8, 4], "deep": {"x": 1}})
    assert back["bits"] == (8, 4)
    with pytest.raises(TypeError):
        back["deep"]["x"] = 2


@pytest.mark.parametrize(
    ("value", "error", "sentence"),
    [
        ({"a": [{4: 1.0}]}, TypeError, r"values\['a'\]\[0\] has the key 4: JSON knows only words as keys, use '4'"),
        ({"$float": 1}, ValueError, r"values has the key '\$float'"),
        ({"a": {1, 2}}, TypeError, r"values\['a'\] is a set"),
        (torch.ones(1, dtype=torch.complex64), TypeError, r"values is an array of complex64"),
        (np.array(["a"]), TypeError, r"values is an array of <U1"),
    ],
)
def test_what_json_would_bend_is_refused(value, error, sentence):
    with pytest.raises(error, match=sentence):
        to_json(value)


@pytest.mark.parametrize(
    "array",
    [
        {"dtype": "float32", "shape": [2], "base64": "AACAPw=="},
        {"dtype": "float31", "shape": [1], "base64": "AACAPw=="},
        {"dtype": "float32", "shape": [1], "base64": "not base64"},
        {"dtype": "float32", "shape": [1]},
    ],
)
def test_an_array_that_does_not_fit_its_description_is_refused(array):
    with pytest.raises(ValueError, match="an array"):
        from_json({"$array": array})
