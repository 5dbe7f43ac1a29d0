"""Any network, as `explain`, `Guide`, `Distill` and `evaluate` read it."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from e2lib.attribution.forward import logits_of


class Wrapped(nn.Module):
    """Any network, with what `explain`, `Guide`, `Distill` and `evaluate` read of it; its parameters are shared.

    Args:
        net: a network that takes images (B, 3, H, W).
        depths: {name: path of a module of `net`}, for example {"Final": "layer4"}; ValueError where there is none.
            "Input" is the image as `net` is given it, or the output of a normalising module where a path says so.
        prefix_tokens: tokens before the patch tokens in outputs (B, N, C); 1 for a class token.
        reshape: from a layer's output to (B, C, h, w), where it is neither that nor patch tokens row by row; for
            channels last, `lambda a: a.permute(0, 3, 1, 2)`. It is used at every layer but the input.
        logits: (net, images) -> logits (B, C), where net(images) is not plainly that: a second input, a text encoder,
            a segmentation. Else a tensor, `.logits`, ["logits"] and the first of a tuple are understood.
    """

    def __init__(
        self,
        net: nn.Module,
        depths: Mapping[str, str] | None = None,
        prefix_tokens: int = 0,
        reshape: Callable[[Tensor], Tensor] | None = None,
        logits: Callable[[nn.Module, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        depths, modules = {"Input": ""} | dict(depths or {}), dict(net.named_modules())
        for name, path in depths.items():
            if path not in modules:
                raise ValueError(f"depths: {name!r} is {path!r}; the network has no module at this path")
        self.net, self.depths = net, {name: path and f"net.{path}" for name, path in depths.items()}  # paths from here
        self.prefix_tokens, self.reshape, self.logits = prefix_tokens, reshape, logits

    def forward(self, images: Tensor) -> Tensor:
        return logits_of(self.net(images) if self.logits is None else self.logits(self.net, images))

    def get_submodule(self, target: str) -> nn.Module:
        """The module at a path of the network inside, or of this one."""
        try:
            return super().get_submodule(target)
        except AttributeError:
            return self.net.get_submodule(target)


wrap = Wrapped
