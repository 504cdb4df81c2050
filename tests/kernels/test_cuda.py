"""On a real GPU: every kernel that is not found wrong there answers within its dtype's bound, and layers use them."""

import copy

import pytest
import torch
from quantized_cases import act_ordered

from quantlib import Grid, Int4Linear, Int8Linear, MixedInt8Linear, explain, quantize
from quantlib.kernels import forget, int8_matmul, kernels_of, linear, pack_weight, usable
from quantlib.kernels.packed import cannot_hold
from quantlib.kernels.reference import int8_matmul_reference, linear_reference, rounding_bound
from quantlib.measure.graphs import graphed
from quantlib.methods.llm_int8 import matmul_mixed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
CUDA = torch.device("cuda")
GRIDS = (
    Grid(8, "row", narrow_range=True),
    Grid(8, 64, symmetric=False),
    Grid(4, 128),
    Grid(4, 64, symmetric=False),
    Grid(3, "row"),
    Grid(4, "tensor"),
)
SHAPES = ((128, 256), (200, 384), (64, 1024))


@pytest.fixture(scope="module", autouse=True)
def fresh():
    forget()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_kernel_is_right_or_known_to_be_wrong(grid, dtype):
    generator = torch.Generator().manual_seed(1)
    ran = set()
    for shape in SHAPES:
        q = quantize(torch.randn(shape, generator=generator), grid)
        q = act_ordered(q, generator) if shape[0] == 200 else q
        for layout in ("rows", "tinygemm"):
            if cannot_hold(layout, q, CUDA):
                continue
            packed = pack_weight(q, CUDA, layout)
            for rows in (1, 5, 33):
                x = torch.randn((rows, shape[1]), generator=generator).to(dtype)
                expected, bound = linear_reference(x, q), rounding_bound(x, q, dtype)
                ordered = (x if packed.order is None else x[:, packed.order.long().cpu()]).to(CUDA).contiguous()
                for kernel in kernels_of(CUDA):
                    if (reason := usable(kernel, packed, ordered)) is None:
                        y = kernel.run(ordered, packed).double().cpu()
                        assert bool(((y - expected).abs() <= bound).all()), (kernel.name, shape, rows)
                        ran.add(kernel.name)
                    else:
                        assert "wrong" not in reason, f"{kernel.name}: {reason}"
    assert ran - {"naive"}, "a GPU has a better way"


@pytest.mark.parametrize("rows", [1, 16, 17, 40])
def test_integer_products_are_exact(rows):
    generator = torch.Generator().manual_seed(rows)
    for out, columns in ((64, 128), (37, 131), (24, 4099)):
        codes = torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)
        q = quantize(torch.randn((out, columns), generator=generator), Grid(8, "row"))
        packed = pack_weight(q, CUDA)
        expected = int8_matmul_reference(codes, q).float()
        for kernel in kernels_of(CUDA, integer=True):
            reason = usable(kernel, packed, codes.to(CUDA))
            assert reason is None or "wrong" not in reason, f"{kernel.name}: {reason}"
            if reason is None:
                assert kernel.run(codes.to(CUDA), packed).cpu().equal(expected), kernel.name
        assert int8_matmul(codes.to(CUDA), packed).cpu().equal(expected)


def test_layers_move_there_and_back():
    w = torch.randn(128, 256)
    for layer in (Int8Linear.from_quantized(quantize(w, Grid(8))), Int4Linear.from_quantized(quantize(w, Grid(4, 64)))):
        there = copy.deepcopy(layer).cuda()
        x = torch.randn(3, 5, 256).bfloat16()
        y, expected = there(x.cuda()).cpu(), linear_reference(x, layer.quantized())
        assert bool(((y - expected).abs() <= rounding_bound(x, layer.quantized(), x.dtype)).all())
        assert "chosen" in explain(there, 3) and torch.cuda.get_device_name() in explain(there, 3)
        assert there.cpu().quantized().codes.equal(layer.quantized().codes)


@pytest.mark.parametrize("keep_float", [False, True])
@pytest.mark.parametrize("threshold", [None, 6.0])
def test_mixed_layers(threshold, keep_float):
    torch.manual_seed(0)
    plain = torch.nn.Linear(256, 128)
    x = torch.randn(9, 256)
    x[:, 7] *= 30
    layer = MixedInt8Linear.from_float(plain, threshold, keep_float=keep_float)
    kept = plain.weight.detach() if keep_float else None
    expected = matmul_mixed(x, layer.quantized(), threshold, kept) + plain.bias.double()
    y = layer.cuda()(x.cuda()).cpu()
    assert (y - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_torch_compile_and_gradients(bits):
    packed = pack_weight(quantize(torch.randn(64, 128), Grid(bits, 64 if bits == 4 else "row")), CUDA)
    x = torch.randn(4, 128, device=CUDA, requires_grad=True)
    y = torch.compile(linear, fullgraph=True)(x, packed)
    assert torch.allclose(y, linear(x.detach(), packed), rtol=1e-4, atol=1e-4)
    y.sum().backward()
    assert x.grad.shape == x.shape and bool(torch.isfinite(x.grad).all())


def test_a_graph_replays_the_same_product():
    packed = pack_weight(quantize(torch.randn(128, 256), Grid(8)), CUDA)
    x = torch.randn(1, 256, device=CUDA).bfloat16()
    replay = graphed(lambda: linear(x, packed))
    x.copy_(torch.randn(1, 256, device=CUDA))
    assert torch.allclose(replay(), linear(x, packed))
