"""`python -m quantlib inspect FOLDER`: what a quantized folder holds, and what is suspicious in it."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantlib.commands.opening import ending_well, folder_bytes, size

if TYPE_CHECKING:
    from quantlib.layers.weight_only import QuantizedLinear

EXAMPLES = """\
example:
  python -m quantlib inspect small-int4
"""
AT_THE_END = 0.2  # of the codes: on a grid that ends at the largest weight it is a few in a hundred


def main(arguments: Sequence[str] | None = None) -> int:
    """Print it; 0, also where something is suspicious; 1 with a sentence if it cannot be loaded; 130 for Ctrl-C."""
    p = argparse.ArgumentParser(
        description="What is in a quantized FOLDER (GPTQ, AWQ, compressed-tensors, bitsandbytes INT8): checked as "
        "loading checks it, bits per weight with scales and zero points, and anything suspicious.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("folder", metavar="FOLDER", type=Path)
    options = p.parse_args(arguments)
    return ending_well(lambda: _run(options.folder))


def _run(folder: Path) -> int:
    from quantlib.models.checkpoints.loading import load_quantized
    from quantlib.models.checkpoints.saving import quantized_layers

    model = load_quantized(folder)
    layers = quantized_layers(model)
    weights = sum(layer.out_features * layer.in_features for layer in layers.values())
    stored = sum(layer.quantized().nbytes for layer in layers.values())
    method = getattr(model.config, "quantization_config", {})
    method = method.get("quant_method") if isinstance(method, dict) else getattr(method, "quant_method", None)
    print(f"{folder}: {type(model).__name__}" + (f", {method}" if method else ""))
    for (kind, grid), count in Counter((type(l).__name__, l.grid) for l in layers.values()).most_common():
        print(f"  {count} × {kind}, {words_of(grid)}")
    floats = list(model.parameters())  # quantized weights are none
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in floats}))
    print(
        f"  {weights:,} weights in {size(stored)}, {8 * stored / weights:.2f} bits each; "
        f"{sum(p.numel() for p in floats):,} parameters in floating point, "
        f"{size(sum(p.nbytes for p in floats))} ({dtypes})"
    )
    print(f"  {size(folder_bytes(folder))} on disk")
    found = [said for name, layer in layers.items() for said in suspicious(name, layer)]
    print("nothing suspicious" if not found else "suspicious:")
    for said in found[:20]:
        print(f"  {said}")
    if len(found) > 20:
        print(f"  and {len(found) - 20} more")
    return 0


def words_of(grid) -> str:
    """A grid as a person says it."""
    share = {"row": "a scale a row", "tensor": "one scale"}.get(grid.group_size, f"a scale per {grid.group_size}")
    return f"{grid.bits} bits, {share}, {'symmetric' if grid.symmetric else 'asymmetric'}"


def suspicious(name: str, layer: QuantizedLinear) -> Iterator[str]:
    """What a healthy layer does not have, a sentence each."""
    q = layer.quantized()
    codes, grid = q.codes, q.grid
    if bool((q.scale == 0).any()):
        yield f"{name}: {int((q.scale == 0).sum())} scales are 0, their weights are all 0"
    elif float(q.scale.abs().max()) < 1e-5:
        yield f"{name}: scales up to {float(q.scale.abs().max()):.1e}, where float16 has few digits"
    groups = q.scale.shape[1] if q.scale.ndim == 2 else 1
    zero = 0 if q.zero_point is None else q.zero_point.int()[..., None]  # [out, groups, 1]
    centred = codes.int().unflatten(1, (groups, -1)) - zero
    if dead := int((centred == 0).all(-1).all(-1).sum()):
        yield f"{name}: {dead} rows are all 0"
    ends = float(((codes == grid.qmin) | (codes == grid.qmax)).float().mean())
    if grid.bits > 3 and ends > AT_THE_END:
        yield f"{name}: {100 * ends:.0f} % of the codes lie at the ends of the grid"
    used = len(codes.unique())
    if codes.numel() > 64 * 2**grid.bits and used <= 2 ** (grid.bits - 1):
        yield f"{name}: {used} of {2**grid.bits} codes are used: it may hold fewer bits than it says"
