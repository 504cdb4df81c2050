"""The choice of a kernel in words. Start from :func:`quantlib.kernels.explain`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from quantlib.kernels.candidates import Kernel, rows_bucket
from quantlib.kernels.choose import Choice, choice_for, place_of
from quantlib.kernels.packed import PackedWeight
from quantlib.kernels.probes import faults_of


def describe(p: PackedWeight, rows: int, dtype: torch.dtype, kernels: Callable) -> str:
    """One line for the product, then one for each kernel: its time, what is wrong with it here, or why it cannot."""
    generator = torch.Generator().manual_seed(0)
    integer = dtype == torch.int8
    x = torch.randn((rows, p.in_features), generator=generator)
    x = x.mul_(32).clamp_(-127, 127).to(torch.int8) if integer else x.to(dtype)
    x = x.to(p.scale.device)
    able = kernels(x.device, integer)
    return "\n".join([_product(p, rows, x), *_candidates(choice_for(able, x, p), able, place_of(x.device))])


def _product(p: PackedWeight, rows: int, x: torch.Tensor) -> str:
    group = {"row": "one scale a row", "tensor": "one scale"}.get(p.grid.group_size, f"groups of {p.grid.group_size}")
    threads = f", {torch.get_num_threads()} threads" if x.device.type == "cpu" else ""
    kind = f"{'a row' if rows == 1 else f'{rows} rows'} of {str(x.dtype).removeprefix('torch.')}"
    return (
        f"{kind} × [{p.out_features}, {p.in_features}], {p.grid.bits} bits, {group},\n"
        f"on {_device(x.device)}{threads}, measured for rows up to {rows_bucket(rows)}:"
    )


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({torch.backends.cpu.get_cpu_capability()})" if device.type == "cpu" else device.type


def _candidates(choice: Choice, kernels: Sequence[Kernel], place: str) -> list[str]:
    width = max(map(len, [choice.kernel.name, *choice.seconds, *choice.refused, *choice.wrong]))
    lines = []
    if choice.pinned:
        lines.append(f"  {choice.kernel.name:{width}}  chosen, because QUANTLIB_KERNEL names it")
    elif not choice.seconds:
        why = "no other answers right" if choice.wrong else "no other can"
        lines.append(f"  {choice.kernel.name:{width}}  chosen, because {why}")
    for name, seconds in sorted(choice.seconds.items(), key=lambda item: item[1]):
        chosen = "  chosen: the fastest" if name == choice.kernel.name else ""
        lines.append(f"  {name:{width}}  {1e3 * seconds:8.3f} ms{chosen}")
    # one that cannot take this layout may be why the weight is not in the layout that it takes
    elsewhere = {k.name: faults[0] for k in kernels if k.name in choice.refused and (faults := faults_of(k))}
    wrong = choice.wrong | elsewhere
    lines += [f"  {name:{width}}  wrong on this {place}: {fault}" for name, fault in wrong.items()]
    lines += [f"  {name:{width}}  cannot: {reason}" for name, reason in choice.refused.items() if name not in wrong]
    return lines
