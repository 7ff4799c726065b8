"""A network that starts as the Gaussian of the data's moments, and learns what they leave out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .mlp import MLP

__all__ = ["TableMLP", "Whitened"]

MOMENTS = ("mean", "basis", "variances", "rest")


class Whitened(nn.Module):
    r"""Wrap a network so that it sees whitened data and adds to the denoiser of a Gaussian.

    With :math:`x = (\alpha z_0 + \sigma\epsilon)/\sqrt{\alpha^2+\sigma^2} = a z_0 + b\epsilon`, data of mean
    :math:`\mu` and covariance :math:`U \mathrm{diag}(l) U^T`, and all fractions taken in the eigenbasis,

    .. math::
        D = \mu + \frac{a l}{v}(x - a\mu) + \frac{b\sqrt l}{\sqrt v}
            F'\!\left(\frac{x - a\mu}{\sqrt v}, t\right), \qquad v = a^2 l + b^2

    which is the EDM preconditioning with a matrix in place of sigma_data. The module returns what makes the
    model's own (``prediction="edm"``) give this D,

    .. math:: net(x, t) = (D - a x)/b
        = b\mu + \frac{a b (l - 1)}{v}(x - a\mu) + \frac{\sqrt l}{\sqrt v} F'(\cdot)

    Input and target of the network F' have unit variance in every direction and at every noise level. As long
    as F' is zero, as at the start, the model is exactly the Gaussian of the data's moments, which
    :meth:`sdediff.DiffusionModel.set_units`, and so :func:`sdediff.fit`, hands over.

    Args:
        network: The network F', or the name of one of :data:`sdediff.networks.REGISTRY`.
        **arguments: Arguments for the network that was named.

    Raises:
        TypeError: If ``network`` is neither a module nor a name, or arguments come with a module.
        ValueError: If there is no network of that name.

    References:
        Karras et al. (2022), arXiv:2206.00364, Eqs. 7 and 8 and table 1, whose scalar sigma_data becomes the
        square root of the covariance.

    Example:
        >>> import sdediff
        >>> net = Whitened("MLP", dim=2, hidden=8)
        >>> model = sdediff.DiffusionModel(net, process=sdediff.VP(), data_shape=(2,))
        >>> model.set_units(torch.randn(100, 2) @ torch.tensor([[1.0, 2.0], [0.0, 0.5]]))
        >>> net(torch.randn(3, 2), torch.zeros(3)).shape
        torch.Size([3, 2])
    """

    #: The prediction of a model that this network can serve.
    needs_prediction = "edm"

    mean: Tensor | None
    basis: Tensor
    variances: Tensor
    rest: Tensor

    def __init__(self, network: nn.Module | str, **arguments: Any) -> None:
        super().__init__()
        from . import REGISTRY

        if isinstance(network, str):
            if network not in REGISTRY:
                raise ValueError(
                    f"Whitened was given network={network!r}: name one of {', '.join(REGISTRY)}."
                )
            network = REGISTRY[network](**arguments)
        elif not isinstance(network, nn.Module) or arguments:
            raise TypeError(
                f"Whitened was given {type(network).__name__} and arguments {sorted(arguments)}: "
                "give a module alone, or the name of one and its arguments."
            )
        self.network = network
        name = type(network).__name__
        if REGISTRY.get(name) is type(network):  # another cannot be rebuilt from a file: no config
            self.config: dict[str, Any] = {**getattr(network, "config", {}), "network": name}
        for moment in MOMENTS:
            self.register_buffer(moment, None)

    def set_moments(self, mean: Tensor, basis: Tensor, variances: Tensor, rest: Tensor) -> None:
        """Take over the mean and covariance ``U diag(variances) U^T + rest (I - U U^T)`` of unit-scale data.

        Args:
            mean: (d,).
            basis: Orthonormal columns U, (d, r), or (0, 0) for the identity.
            variances: (r,).
            rest: Variance off the basis, ().
        """
        like = next(self.network.parameters(), torch.empty(0))
        for name, value in zip(MOMENTS, (mean, basis, variances, rest), strict=True):
            setattr(self, name, value.detach().to(like.device, like.dtype, copy=True))

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        r"""Return the output for which the model's EDM preconditioning gives D, shaped like ``x``.

        Args:
            x: Unit-scale data, (B, \*E).
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: As the network takes it.
            augment: As the network takes it.

        Returns:
            Output, (B, \*E).

        Raises:
            ValueError: If the moments are unknown or of other data; all that the network raises.
        """
        mean = self._known(x)
        a, b = (torch.sigmoid(sign * 8 * t).sqrt().unsqueeze(-1) for sign in (-1, 1))
        with torch.autocast(x.device.type, enabled=False):  # small variances would drown in its rounding
            y = x.flatten(1) - a * mean
            inputs = self._scaled(y, *(v.rsqrt() for v in self._noised(a, b)))
        out = self._learned(inputs.reshape(x.shape), x, t, cond, augment)
        with torch.autocast(x.device.type, enabled=False):
            variances = (self.variances, self.rest)
            noised = tuple(zip(variances, self._noised(a, b), strict=True))
            linear = self._scaled(y, *(a * b * (own - 1) / v for own, v in noised))
            learned = self._scaled(out.flatten(1).to(x.dtype), *((own / v).sqrt() for own, v in noised))
            return (b * mean + linear + learned).reshape(x.shape)

    def _learned(
        self, inputs: Tensor, x: Tensor, t: Tensor, cond: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        """Put out F' of whitened `inputs`, made from x."""
        optional = {} if augment is None else {"augment": augment}
        return self.network(inputs, t, *(() if cond is None else (cond,)), **optional)

    def _known(self, x: Tensor) -> Tensor:
        if self.mean is None:
            raise ValueError(
                "Whitened does not know the data's moments yet: fit the model, call its set_units(x), or "
                "set_moments(mean, basis, variances, rest)."
            )
        if x.ndim < 2 or x[0].numel() != len(self.mean):
            raise ValueError(
                f"Whitened knows moments of data of total size {len(self.mean)} but was given x of shape "
                f"{tuple(x.shape)}: give (B, *E) with E of that size."
            )
        return self.mean

    def _noised(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Variances of ``a z_0 + b eps`` in and off the basis, (B, r) and (B, 1)."""
        return a.square() * self.variances + b.square(), a.square() * self.rest + b.square()

    def _scaled(self, y: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Multiply the coordinates of ``y``, (B, d), in the basis by `inside`, and the rest by `outside`."""
        if not len(self.basis):
            return y * inside
        c = y @ self.basis
        if self.basis.shape[0] == self.basis.shape[1]:
            return (c * inside) @ self.basis.T
        return (c * (inside - outside)) @ self.basis.T + y * outside

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take moments of any shape: they are learnt, not built."""
        for name in MOMENTS:
            if (value := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class TableMLP(Whitened):
    """A residual MLP for tables and vectors that starts as the Gaussian of the data's moments.

    It is ``Whitened(MLP(...))``, with the arguments of :class:`MLP`; waves, if any, are of the columns
    themselves, since a value that recurs does so in its column.

    Args:
        dim: Number of columns, or total size of a row.
        hidden: Width of the residual stream and of each block.
        blocks: Number of residual blocks.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        dropout: Probability in [0, 1) of dropping a hidden value of a block while training.
        time_dim: Number of Fourier features of the noise level and width of its embedding, even.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.
        frequencies: Number of frequencies at which waves of every entry are inputs too; 0 for none.
        highest: The highest of them, in radians per unit of unit-scale data; the lowest is 1.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    Example:
        >>> import sdediff
        >>> x = torch.randn(500, 3) * torch.tensor([1.0, 5.0, 0.1])
        >>> model = sdediff.DiffusionModel(TableMLP(3, hidden=8), process=sdediff.VP(), data_shape=(3,))
        >>> model.set_units(x)
        >>> model.denoise(x[:2], 0.3).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 256,
        blocks: int = 4,
        cond_dim: int = 0,
        num_classes: int = 0,
        dropout: float = 0.0,
        time_dim: int = 128,
        optional_cond: bool = False,
        augment_dim: int = 0,
        frequencies: int = 0,
        highest: float = 300.0,
    ) -> None:
        conditions = (optional_cond, augment_dim)
        arguments = (dim, hidden, blocks, cond_dim, num_classes, dropout, time_dim, *conditions)
        network = MLP(*arguments, frequencies=frequencies, highest=highest)
        super().__init__(network)
        self.config = {name: value for name, value in network.config.items() if name != "values"}

    def _learned(
        self, inputs: Tensor, x: Tensor, t: Tensor, cond: Tensor | None, augment: Tensor | None
    ) -> Tensor:
        return self.network(inputs, t, cond, augment, raw=x)
