"""Files that are written whole or not at all, results that are computed once, and memory that tensors reuse."""

import ast
import contextlib
import ctypes
import functools
import hashlib
import json
import os
import secrets
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

# The embedded photographs and weights: inside the library if pip has installed it, beside it in the repository.
DATA = Path(__file__).parent / "data"
if not DATA.is_dir():
    DATA = Path(__file__).parents[1] / "data"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it at the end. If writing fails, the old file stays."""
    # A random name, as processes of several machines may write to one folder.
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Replace the file `path` by `text` in one step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def digest(value: Any, length: int = 16) -> str:
    """Hex digits that identify a JSON value. Arrays and tensors in it count by type, shape and bytes."""

    def text(x):
        if not hasattr(x, "__array__"):
            return str(x)
        array = x.__array__()
        return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"

    return hashlib.sha256(json.dumps(value, sort_keys=True, default=text).encode()).hexdigest()[:length]


def digest_of_files(paths: Iterable[Path]) -> str:
    """`digest` of the names and contents of files."""
    return digest([(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths])


def essence(source: str) -> str:
    """Text that identifies Python code, whatever its docstrings and comments say."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        named = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if named and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return ast.dump(tree)


def once(path: Path, make: Callable[[Path], None], wait: bool = True) -> Path:
    """Return `path`, whose name has a `digest` of the inputs. If it is missing, one process runs make(temporary path).

    Others `wait` for it, or skip it. To share many files, go through all without waiting, then once more with waiting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        try:
            lock = FileLock(path.with_name(f".{path.name}.lock")).acquire(blocking=wait)
        except Timeout:
            return path
        with lock:
            if not path.exists():
                with replacing(path) as part:
                    make(part)
    return path


@functools.cache
def keep_memory() -> None:
    """Tell glibc to keep freed memory for the next tensors; other C libraries are left alone.

    Otherwise the system clears new pages for them, and convolutional networks take 2 to 4 times as long on a CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX of malloc.h
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
