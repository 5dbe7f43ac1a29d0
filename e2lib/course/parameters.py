"""Parameters of notebooks: the parameters cell says which there are, and their types.

`name = value` has the type of its value, `name: type = value` the one named; a dict with texts for keys has fields.
A text may be None. Whoever uses a value checks its range.
"""

import ast
import atexit
import difflib
import linecache
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin

from e2lib.course import notebook
from e2lib.disk import digest

DEVICES = r"auto|cpu|cuda(:\d+)?"
ORIGIN = "E2LIB_ORIGIN"  # environment variable: `notebook.origin` of the notebook that `run.execute` runs
# A notebook's own parameters cell goes on after the colon; the cell that papermill injects begins with the bare word.
OWN_CELL, INJECTED_CELL = "# Parameters:", "# Parameters\n"
TYPES = {kind.__name__: kind for kind in (bool, int, float, str)}
Kind = type | dict[str, Any]  # list[int] and dict[int, float] as well; a dict: the kinds of fields by name


@dataclass(frozen=True)
class Parameter:
    """What a parameters cell says of one parameter."""

    kind: Kind
    default: Any


def read(namespace: Mapping[str, Any]) -> SimpleNamespace:
    """The checked parameters, as attributes, of the notebook that passes its `globals()`; `device` is a torch.device.

    ValueError as for `check`, and for parameters of papermill that the notebook does not know.
    """
    # IPython records the cells run so far in In; what other cells have assigned since is no parameter. nbval runs
    # cells unrecorded, but Python knows their lines.
    run = [source + "\n" for source in namespace.get("In", [])]
    if not any(map(_is_own, run)):
        run = ["".join(entry[2]) for entry in linecache.cache.values() if len(entry) == 4]
    if not (own := [source for source in run if _is_own(source)]):
        raise ValueError(f"no parameter is set: first run the cell whose first line has {OWN_CELL!r}")
    schema = declared(own[-1])
    injected = "".join(source for source in run if source.startswith(INJECTED_CELL))
    values = check(schema, {name: namespace[name] for name in (*schema, *re.findall(r"(?m)^(\w+) =", injected))})
    if "device" in values:
        values["device"] = device(values["device"])
    return SimpleNamespace(**values)


def _is_own(source: str) -> bool:
    return OWN_CELL in source.partition("\n")[0]


def of(path: Path) -> dict[str, Parameter]:
    """The parameters of the notebook in file `path`; ValueError where it has not exactly one parameters cell."""
    tagged = [cell.source for cell in notebook.read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    right = f"one, with {OWN_CELL!r} in its first line, is right"
    if len(tagged) != 1 or not _is_own(tagged[0]):
        raise ValueError(f"{path} has {len(tagged)} cells tagged parameters; {right}")
    try:
        return declared(tagged[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def declared(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares; ValueError for a value that is no literal, or a type that is not known."""
    found = {}
    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                kind, default = None, ast.literal_eval(value)
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation, value=ast.expr() as value):
                kind, default = _kind(annotation), ast.literal_eval(value)
            case _:
                raise ValueError(f"parameters cell: {ast.unparse(node)!r} is not like name = value")
        found[name] = Parameter(kind or _kind_of(default), default)
    return found


def _kind(node: ast.expr) -> Kind:
    """The type that an annotation names."""
    match node:
        case ast.Name(id=name) if name in TYPES:
            return TYPES[name]
        case ast.Subscript(value=ast.Name(id="list"), slice=of):
            return list[_kind(of)]
        case ast.Subscript(value=ast.Name(id="dict"), slice=ast.Tuple(elts=[key, of])):
            return dict[_kind(key), _kind(of)]
    raise ValueError(f"type {ast.unparse(node)!r} is not made of {', '.join(TYPES)}, list[…] and dict[…, …]")


def _kind_of(value: Any) -> Kind:
    """The type of a default."""
    match value:
        case dict() if all(isinstance(key, str) for key in value):
            return {name: _kind_of(of) for name, of in value.items()}
        case dict():
            key, of = next(iter(value.items()))
            return dict[type(key), _kind_of(of)]
        case [first, *_]:
            return list[_kind_of(first)]
    return str if value is None else type(value)


def check(schema: Mapping[str, Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, and the defaults of parameters that are not among them; a dict with fields as SimpleNamespace.

    ValueError has a line for each unknown name, missing field and wrong type.
    """
    kinds = {name: parameter.kind for name, parameter in schema.items()}
    return _fields("", kinds, {name: parameter.default for name, parameter in schema.items()} | dict(values))


def _fields(prefix: str, kinds: Mapping[str, Kind], values: Mapping[str, Any]) -> dict[str, Any]:
    known = ", ".join(prefix + name for name in kinds)
    found, wrong = {}, []
    for name in (str(name) for name in values if name not in kinds):
        close = difflib.get_close_matches(name, kinds, n=1)
        hint = f"did you mean {prefix + close[0]!r}? " if close else ""
        wrong.append(f"unknown parameter {prefix + name!r}: {hint}Here are {known}")
    for name, kind in kinds.items():
        try:
            if name not in values:
                raise ValueError(f"parameter {prefix + name} is missing; here are {known}")
            found[name] = _conform(prefix + name, values[name], kind)
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        raise ValueError("\n".join(wrong))
    return found


def _conform(name: str, value: Any, kind: Kind) -> Any:
    """`value` as a `kind`: an int may stand for a float, and a text of digits for a key that is a number."""
    if isinstance(kind, dict):
        if isinstance(value, dict):
            return SimpleNamespace(**_fields(f"{name}.", kind, value))
        raise ValueError(f"parameter {name}={value!r}: must be a dict of {', '.join(kind)}")
    origin, args = get_origin(kind), get_args(kind)
    if origin is list and isinstance(value, list) and value:
        return [_conform(name, item, args[0]) for item in value]
    if origin is dict and isinstance(value, dict) and value:
        found = {as_key(key, args[0]): _conform(f"{name}.{key}", item, args[1]) for key, item in value.items()}
        if len(found) == len(value):
            return found
        raise ValueError(f"parameter {name} has a key twice: {', '.join(map(str, value))}")
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind or (value is None and kind is str):
        return value
    wanted = f"{kind} that is not empty" if origin else kind.__name__
    raise ValueError(f"parameter {name}={value!r}: must be {wanted}")


def as_key(key: Any, kind: type) -> Any:
    """A key of a dict as a `kind`, where it can be one: JSON has no numbers for keys."""
    try:
        return kind(str(key))
    except ValueError:  # such as "all" among numbers
        return key


def device(name: str):
    """The torch.device of auto (CUDA where there is one), cpu, cuda or cuda:N; ValueError for others."""
    import torch  # here: running and publishing notebooks needs no torch

    if not re.fullmatch(DEVICES, str(name)):
        raise ValueError(f"parameter device={name!r}: must be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if name.startswith("cuda") and int(name[5:] or 0) >= count:
        raise ValueError(f"parameter device={name!r}: torch sees {count} CUDA devices; use auto or cpu")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def work_folder(p: SimpleNamespace, without: Iterable[str] = ()) -> Path:
    """The folder below `p.work` that belongs to these parameters, but for the device, and to the code and data.

    Where `work` is None, or no parameter, a temporary folder, which is removed when the process ends.

    without: names of parameters that make no difference either. What does not depend on them, such as a baseline that
        is guided with several λ, is kept there for all of them. Jobs that share such a folder wait for the first one.
    """
    if unknown := {*without} - vars(p).keys():
        raise ValueError(f"without names {', '.join(sorted(unknown))}; the parameters are {', '.join(vars(p))}")
    if getattr(p, "work", None) is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path(p.work).expanduser() / shared(vars(p), os.environ.get(ORIGIN) or notebook.origin(), without)


def shared(values: Mapping[str, Any], origin: str, without: Iterable[str]) -> str:
    """Digest of checked parameters, without some and without device and work, and of their notebook's origin."""
    left_out = {"device", "work", *without}
    return digest([origin, repr({name: value for name, value in values.items() if name not in left_out})])


def sharing(sources: Iterable[str]) -> list[tuple[str, ...]]:
    """For each call of `work_folder` in the cells `sources` that has `without`: what it says."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = (ast.parse(TransformerManager().transform_cell(source)) for source in sources if "work_folder" in source)
    calls = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Call)]
    called = [call for call in calls if ast.unparse(call.func).endswith("work_folder")]
    return [tuple(ast.literal_eval(k.value)) for call in called for k in call.keywords if k.arg == "without"]
