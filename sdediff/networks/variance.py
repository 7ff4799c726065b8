"""A network with a second output: how uncertain a step of the discrete chain is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["WithVariance"]

Described = nn.Module | Mapping[str, Any]


class WithVariance(nn.Module):
    r"""A network and a smaller one, the head, that says the variance of each entry of a reverse step.

    The head's output v, one number an entry, places the logarithm of the variance between the two extremes of
    the chain, :math:`\log \tilde\beta` at -1 and :math:`\log \beta` at 1:

    .. math:: \log\Sigma = \tfrac{1+v}2 \log\beta_k + \tfrac{1-v}2 \log\tilde\beta_k

    As a network this is the first one alone, so its model can be sampled and scored like any other, and a
    head may be given to a network that is already trained.

    Args:
        network: The network; or a description, as in ``config``.
        head: Any network with the same call, such as a small ``MLP`` or ``UNet``: these start at 0, the
            middle.

    Raises:
        TypeError: If one of them is neither a module nor a description.

    References:
        Nichol & Dhariwal (2021), arXiv:2102.09672, Eq. 15, whose v is (1 + v)/2 here.

    Example:
        >>> import torch
        >>> from sdediff.networks import MLP
        >>> net = WithVariance(MLP(dim=2), MLP(dim=2, hidden=32, blocks=1))
        >>> net.variance(torch.randn(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(self, network: Described, head: Described) -> None:
        super().__init__()
        self.network, self.head = _module(network, "network"), _module(head, "head")
        if hasattr(self.network, "needs_prediction"):
            self.needs_prediction = self.network.needs_prediction
        described = {"network": _describe(self.network), "head": _describe(self.head)}
        if all(part is not None for part in described.values()):
            self.config = described

    def forward(self, x: Tensor, t: Tensor, *arguments: Tensor | None, **optional: Tensor) -> Tensor:
        """Return the network's output, like ``x``; arguments are handed on to it."""
        return self.network(x, t, *arguments, **optional)

    def variance(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Return v, like ``x``.

        Args:
            x: Unit-scale data, (B, \*E).
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: As the network takes it.
        """
        return self.head(x, t, *(() if cond is None else (cond,)))

    def set_units(self, *units: Tensor) -> None:
        """Hand the model's units on to parts that take them."""
        self._hand_on("set_units", units)

    def set_moments(self, *moments: Tensor) -> None:
        """Hand the data's moments on to parts that take them."""
        self._hand_on("set_moments", moments)

    def _hand_on(self, method: str, values: tuple[Tensor, ...]) -> None:
        for part in (self.network, self.head):
            take = getattr(part, method, None)
            if callable(take):
                take(*values)


def _module(part: Described, what: str) -> nn.Module:
    """A module as it is, or built from its description."""
    from . import REGISTRY

    if isinstance(part, Mapping) and part.get("name") in REGISTRY:
        return REGISTRY[part["name"]](**part["args"])
    if not isinstance(part, nn.Module):
        raise TypeError(
            f"WithVariance was given {what}={part!r}: give a torch.nn.Module, such as "
            "sdediff.networks.MLP(dim=2)."
        )
    return part


def _describe(part: nn.Module) -> dict[str, Any] | None:
    """Name and arguments of a network that a file can rebuild, or None."""
    from . import REGISTRY

    name, config = type(part).__name__, getattr(part, "config", None)
    return {"name": name, "args": config} if REGISTRY.get(name) is type(part) and config is not None else None
