"""The course that stands on the library: parameters, runs, sweeps, results, claims, widgets, exercises."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Let a command line end with one line instead of a traceback when input is wrong or the user interrupts."""
    try:
        yield
    except (ValueError, FileNotFoundError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on with what is not done")
