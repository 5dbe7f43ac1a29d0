"""The form in which a network runs fastest: memory format and precision, chosen for processor and network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from e2lib.disk import keep_memory

SMALL = 1_000_000  # parameters; networks with fewer gain nothing from bfloat16 on a CPU


class Form(NamedTuple):
    """How convolutions and matrix products are computed. Parameters stay float32."""

    memory_format: torch.memory_format
    dtype: torch.dtype


def form(model: nn.Module, precision: str = "auto", gradients: bool = True) -> Form:
    """The form of `model` on the device of its parameters; ValueError for another precision.

    A CPU computes convolutions wider than one pixel in channels_last. `auto` is bfloat16 where the processor has it:
    on a GPU for all; on a CPU for networks of a million parameters or more with such convolutions. Depthwise ones are
    slower backward in bfloat16, so networks that have them keep float32 when `gradients`.
    """
    if precision not in ("auto", "float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}; it must be auto, float32 or bfloat16 (float16 overflows)")
    device, low = next(model.parameters()).device, precision == "bfloat16"
    wide = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    on_cpu = device.type == "cpu"
    if precision == "auto" and has_bfloat16(device):
        slow = gradients and any(m.groups == m.in_channels > 1 for m in wide)
        low = not on_cpu or (bool(wide) and not slow and sum(p.numel() for p in model.parameters()) >= SMALL)
    memory_format = torch.channels_last if wide and on_cpu else torch.preserve_format
    return Form(memory_format, torch.bfloat16 if low else torch.float32)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor itself computes in bfloat16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # older releases of torch have neither
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


@contextmanager
def formed(model: nn.Module, precision: str = "auto", gradients: bool = True) -> Iterator[Callable[[], torch.autocast]]:
    """Within, the parameters of `model` lie in the memory format of its `form`; each lies as before afterwards.

    Gives a function that makes the autocast in which to call the network, but nothing else: not its backward pass.
    """
    keep_memory()
    memory_format, dtype = form(model, precision, gradients)
    device = next(model.parameters()).device.type
    moved = [p for p in model.parameters() if p.ndim == 4 and p.is_contiguous()]
    try:
        for p in moved:
            p.data = p.data.to(memory_format=memory_format)
        yield lambda: torch.autocast(device, torch.bfloat16, enabled=dtype == torch.bfloat16)
    finally:
        for p in moved:
            # contiguous() would keep the strides of channels_last where both formats hold, as for kernels of one pixel
            p.data = p.data.clone(memory_format=torch.contiguous_format)
