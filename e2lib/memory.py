"""The memory of large tensors, which glibc is to keep."""

import ctypes
import functools
import sys

MMAP_MAX, TRIM_THRESHOLD = -4, -1  # of glibc's malloc.h


@functools.cache
def keep_memory() -> None:
    """Tell glibc to keep what large tensors free, for the next ones; nothing happens with another C library.

    Otherwise glibc asks the system for new blocks, whose pages are cleared one by one: on a CPU, convolutional networks
    then run 2 to 4 times as long.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, 2**31 - 1)
