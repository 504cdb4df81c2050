"""The Triton kernels compiled for GPUs that are not here: they must compile, fit, and spill nothing.

The interpreter accepts code that the compiler rejects, and knows nothing of registers.
"""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest
import torch
from side_by_side import asked, processes

pytestmark = pytest.mark.skipif(
    find_spec("triton") is None, reason="the triton package, and its compiler, exist for Linux only"
)

if find_spec("triton") is not None:
    from quantlib.kernels.gpu import triton_w4a16, triton_w8a8, triton_w8a16
    from quantlib.kernels.gpu.aot import SHARED_LIMITS, resources
    from quantlib.kernels.gpu.triton_w4a16 import UNPACK_BFLOAT16, UNPACK_FLOAT16

    SHAPES = {"w8a16": triton_w8a16.CONFIGS, "w4a16": triton_w4a16.CONFIGS, "w8a8": triton_w8a8.CONFIGS}
    ALL = [(name, config) for name, configs in SHAPES.items() for config in configs if config.split == 1]
else:
    ALL = []

SIZES = "M N K GROUP GROUPS row_bytes group_bytes scale_columns scale_stride blocks_per_split".split()


def compiled(name, config, sm, dtype, *, size="i32:16", **constants):
    """A kernel of the course compiled as its launcher would; sizes that are multiples of 16, but for M."""
    kernel, types, defaults = {
        "w8a16": (
            triton_w8a16.w8a16_kernel,
            {"x_ptr": f"*{dtype}", "codes_ptr": "*i8", "scale_ptr": "*fp16", "zero_point_ptr": "*i8"},
            {"ONE_GROUP": False, "HAS_ZERO_POINT": False},
        ),
        "w4a16": (
            triton_w4a16.w4a16_kernel,
            {"x_ptr": f"*{dtype}", "codes_ptr": "*u8", "scale_ptr": "*fp16", "zero_point_ptr": "*u8"},
            {"ONE_GROUP": False, "HAS_ZERO_POINT": False, "FAST": dtype != "fp32"},
        ),
        "w8a8": (
            triton_w8a8.w8a8_kernel,
            {"x_ptr": "*i8", "codes_ptr": "*i8", "row_scale_ptr": "*fp32", "column_scale_ptr": "*fp16"},
            {"SCALED": True},
        ),
    }[name]
    numbers = {n: size for n in SIZES if n in kernel.arg_names} | {"M": "i32"}
    return resources(kernel, config, {**types, "out_ptr": f"*{dtype}", **numbers}, {**defaults, **constants}, sm)


def asynchronous(found):
    """Loads that go to shared memory while the program computes."""
    return sum(count for name, count in found.instructions.items() if name.startswith("LDGSTS"))


def tensor_core(found):
    return sum(count for name, count in found.instructions.items() if "MMA" in name)


def dtype_on(name, config, sm):
    """By turns, so that each config meets each dtype on one of the two."""
    return ("fp16", "bf16")[(ALL.index((name, config)) + sm // 10) % 2]


@pytest.fixture(scope="module")
def compilations(request):
    """(name, config, sm) -> a future of what the compiler made of it; the compiler takes one core."""
    with processes() as pool:
        keys = [(each["name"], each["config"], each["sm"]) for each in asked(request)]
        yield {key: pool.submit(compiled, *key, dtype_on(*key)) for key in keys}


@pytest.mark.parametrize("sm", (80, 90))
@pytest.mark.parametrize(("name", "config"), ALL, ids=lambda v: v if isinstance(v, str) else None)
def test_every_config_fits_and_spills_nothing(compilations, name, config, sm):
    found = compilations[name, config, sm].result()
    assert found.spilled == 0
    assert found.registers <= 255
    assert found.registers * 32 * config.warps <= 65536, "the registers of a processor hold one program"
    assert found.shared <= SHARED_LIMITS[sm]
    assert tensor_core(found) > 0
    assert asynchronous(found) > 0


VARIANTS = {
    "w8a16": ({"ONE_GROUP": True}, {"HAS_ZERO_POINT": True}, {"ONE_GROUP": True, "HAS_ZERO_POINT": True}),
    "w4a16": (
        {"ONE_GROUP": True},
        {"HAS_ZERO_POINT": True},
        {"ONE_GROUP": True, "HAS_ZERO_POINT": True},
        {"HAS_ZERO_POINT": True, "size": "i32"},
        {"FAST": False},
    ),
    "w8a8": ({"SCALED": False}, {"size": "i32"}),
}


@pytest.mark.parametrize(("name", "variant"), [(n, v) for n, variants in VARIANTS.items() for v in variants], ids=str)
def test_every_branch_compiles(name, variant):
    config = next(config for each, config in ALL if each == name and config.warps == 4)
    for sm, dtype in ((80, "bf16"), (90, "fp16")):
        found = compiled(name, config, sm, dtype, **variant)
        # sizes that are no multiple of 16, which no model has, are loaded byte by byte: right, but short of registers
        assert found.spilled == 0 or variant.get("size") == "i32"
        assert tensor_core(found) > 0


@pytest.mark.parametrize("name", ("w8a16", "w4a16"))
def test_float32_is_not_rounded_to_tf32(name):
    found = compiled(name, triton_w8a16.CONFIGS[0], 80, "fp32")
    assert tensor_core(found) == 0
    assert found.instructions["FFMA"] > 0


def test_unpack_needs_no_conversions():
    """By shifts and I2F each code costs a conversion, of which a processor does a quarter as many as additions."""
    config = next(config for config in triton_w4a16.CONFIGS if config.warps == 4)
    for dtype in ("fp16", "bf16"):
        fast = compiled("w4a16", config, 80, dtype)
        portable = compiled("w4a16", config, 80, dtype, FAST=False)
        conversions = [
            sum(n for name, n in found.instructions.items() if re.match(r"I2F(?!\.RP)", name))
            for found in (fast, portable)
        ]
        assert conversions[0] == 0
        assert sum(fast.instructions.values()) < sum(portable.instructions.values())


# --- the inline assembly, read by a small machine, since the interpreter cannot


def run_ptx(text, word):
    """The four registers that UNPACK makes of one of four bytes. Knows exactly the instructions it uses."""
    registers = {"$4": word}

    def value(name):
        return registers[name] if name in registers else int(name, 0)

    lines = [line.strip().rstrip(";") for line in text.strip().strip("{}").splitlines()]
    for line in filter(None, lines):
        if line[0] in "{}" or line.startswith(".reg"):
            continue
        operation, rest = line.split(None, 1)
        target, *sources = [part.strip() for part in rest.split(",")]
        a = [value(s) for s in sources]
        if operation == "mov.b32":
            result = a[0]
        elif operation == "and.b32":
            result = a[0] & a[1]
        elif operation == "shr.b32":
            result = a[0] >> a[1]
        elif operation == "prmt.b32":
            pool = a[0].to_bytes(4, "little") + a[1].to_bytes(4, "little")
            result = int.from_bytes(bytes(pool[a[2] >> 4 * i & 7] for i in range(4)), "little")
        elif operation in ("fma.rn.f16x2", "fma.rn.bf16x2"):
            dtype = torch.float16 if "bf" not in operation else torch.bfloat16
            x, y, z = (floats(w, dtype).double() for w in a)
            result = (x * y + z).to(dtype).view(torch.int16).tolist()
            result = (result[0] & 0xFFFF) | (result[1] & 0xFFFF) << 16
        else:
            raise AssertionError(f"an instruction that this machine does not know: {line}")
        registers[target] = result
    return [registers[f"${i}"] for i in range(4)]


def floats(word, dtype):
    return torch.tensor([word & 0xFFFF, word >> 16], dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", ("fp16", "bf16"))
def test_unpack_gives_every_code(dtype):
    text = (UNPACK_FLOAT16 if dtype == "fp16" else UNPACK_BFLOAT16).value
    torch_dtype = torch.float16 if dtype == "fp16" else torch.bfloat16
    for start in range(0, 256):
        data = [(start + 67 * i) % 256 for i in range(4)]  # each byte comes by in each of the four places
        halves = torch.cat([floats(w, torch_dtype) for w in run_ptx(text, int.from_bytes(bytes(data), "little"))])
        assert halves.tolist() == [(b & 15) - 8 for b in data] + [(b >> 4) - 8 for b in data]
