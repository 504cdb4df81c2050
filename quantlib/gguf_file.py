"""A GGUF file (llama.cpp's format) read as it lies on the disk: its facts, and its tensors as float32. Start from `read`.

A file is a header of typed key/value pairs, then a table of tensors, then their bytes. Its 4- and 8-bit types are the
grids of lesson 1 with groups of 32 along a row: Q8_0 is symmetric, Q4_1 has a minimum that is a float of its own. The
format's specification is docs/gguf.md of ggml-org/ggml; the gguf package, which the tests compare this with, takes
twice as long for a header as this takes for the whole file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# a value's type → its layout
SCALARS = dict(enumerate(["<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?"])) | {10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
F32, Q4_1, Q8_0 = 0, 3, 8
GROUPS = {F32: (1, 4), Q4_1: (32, 2 + 2 + 16), Q8_0: (32, 2 + 32)}  # type → (weights, bytes) of one group


@dataclass(frozen=True)
class Entry:
    """One line of the table: where in the data, and in what form, a tensor lies."""

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


def read(path: Path) -> tuple[dict[str, Any], Iterator[tuple[str, Tensor]]]:
    """(facts, tensors): the header as a dict, and (name, float32 tensor [out, in] on the CPU) one after another.

    Each tensor owns its memory. Raises ValueError for a file that is not GGUF 3 or has a tensor of another type than
    F32, Q4_1, Q8_0.
    """
    header = _Header(path)
    if header.data[:4] != b"GGUF" or struct.unpack_from("<I", header.data, 4) != (3,):
        raise ValueError(f"path={str(path)!r} is not a GGUF file of version 3: give the model to transformers instead")
    header.position = 8
    tensor_count, fact_count = header.scalar("<Q"), header.scalar("<Q")
    facts = {header.string(): header.value(header.scalar("<I")) for _ in range(fact_count)}
    table = [header.entry() for _ in range(tensor_count)]
    if others := {entry.kind for entry in table} - set(GROUPS):
        raise ValueError(
            f"path={str(path)!r} has tensors of GGML types {others}, not F32, Q4_1 or Q8_0: use transformers"
        )
    alignment = facts.get("general.alignment", 32)
    return facts, _tensors(header.data, table, start=-(-header.position // alignment) * alignment)


def dequantize(blocks: Tensor, kind: int) -> Tensor:
    """uint8 [groups, bytes of one group] → float32 [groups, weights of one group]."""
    if kind == F32:
        return blocks.view(torch.float32)  # [groups, 1]
    scale = blocks[:, :2].clone().view(torch.float16).float()  # [groups, 1]
    if kind == Q8_0:
        return blocks[:, 2:].view(torch.int8) * scale  # [groups, 32]
    minimum = blocks[:, 2:4].clone().view(torch.float16).float()  # [groups, 1]
    pairs = blocks[:, 4:]  # [groups, 16]: weight i in the low half of byte i, weight i + 16 in the high half
    codes = torch.cat([pairs & 15, pairs >> 4], dim=1)  # [groups, 32]
    return codes * scale + minimum


def _tensors(data: bytes, table: list[Entry], start: int) -> Iterator[tuple[str, Tensor]]:
    buffer = np.frombuffer(data, dtype=np.uint8)
    for entry in table:
        weights, size = GROUPS[entry.kind]
        groups = math.prod(entry.shape) // weights
        blocks = buffer[start + entry.offset :][: groups * size].reshape(groups, size)
        blocks = torch.from_numpy(blocks.copy())  # the file's bytes are read-only, and let go of after this
        yield entry.name, dequantize(blocks, entry.kind).reshape(entry.shape)  # [groups, weights] → [out, in]


class _Header:
    """A cursor over the file's bytes."""

    def __init__(self, path: Path):
        self.data = path.read_bytes()
        self.position = 0

    def scalar(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self.data, self.position)
        self.position += struct.calcsize(layout)
        return value

    def string(self) -> str:
        length = self.scalar("<Q")
        text = self.data[self.position : self.position + length].decode("utf-8")
        self.position += length
        return text

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            inner, length = self.scalar("<I"), self.scalar("<Q")
            return [self.value(inner) for _ in range(length)]
        return self.scalar(SCALARS[kind])

    def entry(self) -> Entry:
        """GGUF writes the fastest dimension first, PyTorch last."""
        name = self.string()
        shape = tuple(self.scalar("<Q") for _ in range(self.scalar("<I")))[::-1]
        return Entry(name, shape, self.scalar("<I"), self.scalar("<Q"))
