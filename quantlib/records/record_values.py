"""What an experiment gives, as JSON and back, bit for bit. Start from :func:`to_json` and :func:`from_json`.

Numbers and words stay readable. An array becomes {"$array": {"dtype", "shape", "base64"}} of its bytes, little-endian
as on every CPU of the lessons, so that the loss of 8,184 tokens takes 44 kB and comes back exact; NaN and infinities,
which JSON lacks, become {"$float": "nan"}.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

DTYPES = {str(d).removeprefix("torch."): d for d in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)}  # fmt: skip


def to_json(value: object, where: str = "values") -> object:
    """A value as what json.dumps takes.

    Takes None, bool, int, float, str, tensors and NumPy arrays of any shape and the usual dtypes, dataclasses, and
    mappings and sequences of these. `where` names the value in errors: TypeError for anything else and for a key
    that is not a str (JSON would turn 4 into "4"), ValueError for a key that starts with "$".
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, np.generic):
        return to_json(value.item(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": str(value)}
    if isinstance(value, np.ndarray):
        return {"$array": _array_to_json(_tensor_from_numpy(value, where), where)}
    if isinstance(value, Tensor):
        return {"$array": _array_to_json(value, where)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name), f"{where}.{f.name}") for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {_key(key, where): to_json(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise TypeError(
        f"{where} is a {type(value).__name__}: record numbers, words, arrays, dataclasses, and lists and dicts of these"
    )


def from_json(value: object) -> object:
    """What to_json was given, frozen: dicts as read-only mappings, lists as tuples, arrays as CPU tensors.

    Raises ValueError if an array's bytes do not fit its dtype and shape.
    """
    if isinstance(value, dict):
        if value.keys() == {"$float"}:
            return float(value["$float"])
        if value.keys() == {"$array"}:
            return _array_from_json(value["$array"])
        return MappingProxyType({key: from_json(item) for key, item in value.items()})
    if isinstance(value, list):
        return tuple(from_json(item) for item in value)
    return value


def _key(key: object, where: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{where} has the key {key!r}: JSON knows only words as keys, use {str(key)!r}")
    if key.startswith("$"):
        raise ValueError(f"{where} has the key {key!r}: names with $ are the record's own, use another")
    return key


def _tensor_from_numpy(array: np.ndarray, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except TypeError:
        raise TypeError(f"{where} is an array of {array.dtype}: record numbers or booleans") from None


def _array_to_json(tensor: Tensor, where: str) -> dict[str, object]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"{where} is a tensor of {dtype}: convert it to one of {', '.join(DTYPES)}")
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # [elements * bytes each]
    return {"dtype": dtype, "shape": list(tensor.shape), "base64": base64.b64encode(raw.numpy()).decode("ascii")}


def _array_from_json(array: dict[str, object]) -> Tensor:
    try:
        dtype, shape = DTYPES[array["dtype"]], torch.Size(array["shape"])
        raw = base64.b64decode(array["base64"], validate=True)
    except (KeyError, TypeError, binascii.Error) as error:
        raise ValueError(f"an array is not described by dtype, shape and base64: {error!r}") from None
    if len(raw) != shape.numel() * dtype.itemsize:
        raise ValueError(f"an array of {array['dtype']} {list(shape)} does not take {len(raw)} bytes, which are there")
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)
