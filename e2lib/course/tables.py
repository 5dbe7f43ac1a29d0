"""Names that have moved to `results`."""

from e2lib.course.results import read, report, tidy, wide, write

__all__ = ["read", "report", "tidy", "wide", "write"]
