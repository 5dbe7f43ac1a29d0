"""Several processes that train or measure together, started by torchrun."""

import torch.distributed as dist


def processes() -> tuple[int, int]:
    """This process's number, and how many train together (`torchrun`); (0, 1) for one alone."""
    together = dist.is_available() and dist.is_initialized()
    return (dist.get_rank(), dist.get_world_size()) if together else (0, 1)
