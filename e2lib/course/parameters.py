"""Parameters of notebooks: the parameters cell declares their names and types.

`name = value` has the type of its value, `name: type = value` the type named. A dict whose keys are texts has fields. A
text may be None. Whoever uses a value checks its range.
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
# The first line of a notebook's own parameters cell, and of the cell that papermill injects.
OWN_CELL, INJECTED_CELL = "# Parameters:", "# Parameters\n"
TYPES = {kind.__name__: kind for kind in (bool, int, float, str)}
Kind = type | dict[str, Any]  # also list[int] or dict[int, float]; a dict holds the kinds of fields by name


@dataclass(frozen=True)
class Parameter:
    """The type of a parameter, and its value in the parameters cell."""

    kind: Kind
    default: Any


def read(namespace: Mapping[str, Any]) -> SimpleNamespace:
    """The checked parameters of the notebook that passes its `globals()`, as attributes; `device` is a torch.device.

    ValueError as for `check`, and for a parameter from papermill that the notebook does not have.
    """
    # IPython records in In which cells have run. What other cells assign is no parameter. nbval records no cells, but
    # Python knows their lines.
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
    """The parameters of the notebook in file `path`. ValueError unless it has exactly one parameters cell."""
    tagged = [cell.source for cell in notebook.read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    right = f"one, with {OWN_CELL!r} in its first line, is right"
    if len(tagged) != 1 or not _is_own(tagged[0]):
        raise ValueError(f"{path} has {len(tagged)} cells tagged parameters; {right}")
    try:
        return declared(tagged[0])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def declared(source: str) -> dict[str, Parameter]:
    """The parameters that a cell declares. ValueError for a value that is no literal, and for an unknown type."""
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
    """`values`, completed by the defaults of the other parameters. A dict with fields becomes a SimpleNamespace.

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
    """`value` as a `kind`. An int may stand for a float, and a text of digits for a key that is a number."""
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
    """The key of a dict as a `kind`, if possible, because keys in JSON are texts. Otherwise the key as it is."""
    try:
        return kind(str(key))
    except ValueError:  # such as "all" among numbers
        return key


def device(name: str):
    """The torch.device for auto (CUDA if there is a GPU), cpu, cuda or cuda:N. ValueError for other names."""
    import torch  # here, because running and publishing notebooks need no torch

    if not re.fullmatch(DEVICES, str(name)):
        raise ValueError(f"parameter device={name!r}: must be auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if name.startswith("cuda") and int(name[5:] or 0) >= count:
        raise ValueError(f"parameter device={name!r}: torch sees {count} CUDA devices; use auto or cpu")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")


def work_folder(p: SimpleNamespace, without: Iterable[str] = ()) -> Path:
    """The folder below `p.work` for these parameters, this code and these data; the device makes no difference.

    If `work` is None or no parameter, this is a temporary folder, which is removed when the process ends.

    without: names of parameters that make no difference either. The folder keeps what does not depend on them, such as
        a baseline for several λ. Jobs that share such a folder wait for the first of them.
    """
    if unknown := {*without} - vars(p).keys():
        raise ValueError(f"without names {', '.join(sorted(unknown))}; the parameters are {', '.join(vars(p))}")
    if getattr(p, "work", None) is None:
        folder = tempfile.mkdtemp()
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)
    return Path(p.work).expanduser() / shared(vars(p), os.environ.get(ORIGIN) or notebook.origin(), without)


def shared(values: Mapping[str, Any], origin: str, without: Iterable[str]) -> str:
    """Digest of a notebook's origin and of its checked parameters, except device, work and those in `without`."""
    left_out = {"device", "work", *without}
    return digest([origin, repr({name: value for name, value in values.items() if name not in left_out})])


def sharing(sources: Iterable[str]) -> list[tuple[str, ...]]:
    """The `without` of each call of `work_folder` that has one, in the cells `sources`."""
    from IPython.core.inputtransformer2 import TransformerManager

    cells = (ast.parse(TransformerManager().transform_cell(source)) for source in sources if "work_folder" in source)
    calls = [node for cell in cells for node in ast.walk(cell) if isinstance(node, ast.Call)]
    called = [call for call in calls if ast.unparse(call.func).endswith("work_folder")]
    return [tuple(ast.literal_eval(k.value)) for call in called for k in call.keywords if k.arg == "without"]
