"""Names that have moved: parameters to `parameters`, notebooks as files to `notebook`, jobs to `run`, `publish`."""

from e2lib.course import plainly
from e2lib.course.notebook import EXERCISE, WIDGET, code_cells, is_bar, own_cells, read, source_hash
from e2lib.course.parameters import device, work_folder
from e2lib.course.parameters import read as parameters
from e2lib.course.results import NUMBERS, record
from e2lib.course.run import FILES
from e2lib.disk import digest as _digest
from e2lib.disk import write

__all__ = ["EXERCISE", "FILES", "NUMBERS", "WIDGET", "code_cells", "device", "digest", "is_bar", "own_cells"]
__all__ += ["parameters", "plainly", "read", "record", "source_hash", "work_folder", "write"]


def digest(value) -> str:
    """Twelve hex digits that tell a JSON value from others."""
    return _digest(value, 12)
