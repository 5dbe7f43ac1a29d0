"""The form in which a network runs fastest: memory format and precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from e2lib.datasets.files import check_value
from e2lib.disk import keep_memory


def form(model: nn.Module, precision: str = "auto", gradients: bool = True) -> tuple[torch.memory_format, torch.dtype]:
    """How `model` computes convolutions and matrix products on its device; parameters stay float32.

    On a CPU, convolutions wider than one pixel run in channels_last. `auto` is bfloat16 on a GPU that has it. On a CPU
    that has it, `auto` is bfloat16 for networks with such convolutions and at least a million parameters. There, with
    `gradients`, networks with depthwise convolutions stay in float32: bfloat16 makes their backward pass slower.
    """
    right = precision in ("auto", "float32", "bfloat16")
    check_value(right, "precision", precision, "auto, float32 or bfloat16 (float16 overflows)")
    device, low = next(model.parameters()).device, precision == "bfloat16"
    wide = [m for m in model.modules() if isinstance(m, nn.Conv2d) and max(m.kernel_size) > 1]
    on_cpu = device.type == "cpu"
    if precision == "auto" and has_bfloat16(device):
        slow = gradients and any(m.groups == m.in_channels > 1 for m in wide)
        large = sum(p.numel() for p in model.parameters()) >= 1_000_000  # smaller ones gain nothing on a CPU
        low = not on_cpu or (bool(wide) and not slow and large)
    memory_format = torch.channels_last if wide and on_cpu else torch.preserve_format
    return memory_format, torch.bfloat16 if low else torch.float32


def has_bfloat16(device: torch.device) -> bool:
    """Whether the processor computes in bfloat16 without emulation."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # missing in older releases of torch
    return device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks)


@contextmanager
def formed(model: nn.Module, precision: str = "auto", gradients: bool = True) -> Iterator[Callable[[], torch.autocast]]:
    """Put the parameters of `model` into the memory format of its `form`, and back at the end.

    Yields a function that makes an autocast context. Call the network in it, but run the backward pass outside.
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
            # contiguous() would keep the strides of channels_last for kernels of one pixel, which are in both formats.
            p.data = p.data.clone(memory_format=torch.contiguous_format)
