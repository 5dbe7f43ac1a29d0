"""Gradients of a network's parameters against finite differences, in float64."""

import torch


def parameter_gradient(model, loss, direction):
    """The derivative of `loss` along `direction` in the space of the parameters, by autograd."""
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return sum((g * d).sum().item() for g, d in zip(gradients, direction, strict=True) if g is not None)


def finite_difference(model, value, direction, step):
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for p, d in zip(model.parameters(), direction, strict=True):
                p.add_(d, alpha=sign * step)
            ends.append(value())
        for p, d in zip(model.parameters(), direction, strict=True):
            p.add_(d, alpha=step)
    return (ends[0] - ends[1]) / (2 * step)


def random_direction(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(p.shape, dtype=torch.double, generator=generator) * p.detach().abs().mean()
        for p in model.parameters()
    ]


def assert_exact(model, value, create_graph):
    """The gradient of the scalar `create_graph()` equals finite differences of `value()`.

    Rectifiers make maps piecewise smooth: the smallest step that crosses no kink is the one to compare with.
    """
    direction, tried = random_direction(model), []
    exact = parameter_gradient(model, create_graph(), direction)
    assert abs(exact) > 0
    for step in (1e-5, 1e-6, 1e-7, 1e-8):
        tried.append(finite_difference(model, lambda: value().item(), direction, step))
        if abs(tried[-1] - exact) < 1e-3 * abs(exact):
            return
    raise AssertionError((exact, tried))
