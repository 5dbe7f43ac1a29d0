"""Networks by name, with their weights and depths; any network by `wrap`; a network in two parts."""

from e2lib.models.build import ARCHITECTURES, Head, Model, build, split
from e2lib.models.weights import fingerprint, head_prefixes, save, train_head_only
from e2lib.models.wrap import Wrapped, wrap

__all__ = ["ARCHITECTURES", "Head", "Model", "Wrapped", "build", "fingerprint", "head_prefixes", "save", "split"]
__all__ += ["train_head_only", "wrap"]
