"""A residual multilayer perceptron for vectors, tables and small flattened signals."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import BlurredWaves, NoiseEmbedding, fraction, whole

__all__ = ["MLP"]


class MLP(nn.Module):
    r"""Residual multilayer perceptron whose blocks are scaled and shifted by the noise level.

    .. math::
        h_0 = W_{in} x + b_{in} + W_\phi\,\phi(x, t), \qquad
        h_{k+1} = h_k + V_k\, \mathrm{silu}(scale_k \odot (W_k h_k + b_k) + shift_k) + c_k, \qquad
        net(x, t) = W_{out} h_K + b_{out}

    where the waves :math:`\phi` of :class:`BlurredWaves` are there if asked for, by ``frequencies``. A
    perceptron learns smooth functions first; with waves it learns details of size ``1 / highest`` standard
    deviations as well: spikes, edges, values that recur. They suit a few dimensions and enough rows.

    There is no normalisation layer: inputs are unit-scale already, and their size is part of what a score
    depends on. The output layer starts at zero, and hence so does the network.

    Args:
        dim: Total size of one row, the product of its event shape; rows are flattened and given back so.
        hidden: Width of the residual stream and of each block.
        blocks: Number of residual blocks.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        dropout: Probability in [0, 1) of dropping a hidden value of a block while training.
        time_dim: Number of Fourier features of the noise level and width of its embedding, even.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.
        values: Numbers put out for every entry; with more than 1 they are the output's second axis.
        frequencies: Number of frequencies at which waves of every entry are inputs too; 0 for none.
        highest: The highest of them, in radians per unit of unit-scale data; the lowest is 1.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    References:
        He et al. (2016), arXiv:1603.05027, for the sum without an activation after it; Perez et al. (2018),
        arXiv:1709.07871, for scale and shift; Tancik et al. (2020), arXiv:2006.10739, for waves as inputs.

    Example:
        >>> net = MLP(dim=64, hidden=32, blocks=2)
        >>> net(torch.randn(5, 1, 8, 8), torch.zeros(5)).shape
        torch.Size([5, 1, 8, 8])
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
        values: int = 1,
        frequencies: int = 0,
        highest: float = 300.0,
    ) -> None:
        super().__init__()
        self.config = {
            "dim": whole("MLP", "dim", dim, 1),
            "hidden": whole("MLP", "hidden", hidden, 1),
            "blocks": whole("MLP", "blocks", blocks, 1),
            "dropout": fraction("MLP", "dropout", dropout),
            "time_dim": whole("MLP", "time_dim", time_dim, 2),
        }
        self.dim, self.dropout, self.values = dim, dropout, whole("MLP", "values", values, 1)
        conditions = (cond_dim, num_classes, optional_cond, augment_dim)
        self.embedding = NoiseEmbedding([hidden] * blocks, time_dim, time_dim, *conditions, owner="MLP")
        self.config |= self.embedding.config | {
            "values": self.values,
            "frequencies": whole("MLP", "frequencies", frequencies, 0),
            "highest": float(highest),
        }
        self.input = nn.Linear(dim, hidden)
        self.waves = BlurredWaves(frequencies, highest=highest) if frequencies else None
        self.details = nn.Linear(2 * frequencies * dim, hidden, bias=False) if frequencies else None
        if self.details is not None:
            nn.init.normal_(self.details.weight, std=(frequencies * dim) ** -0.5)  # a sum of variance 1
        self.first = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(blocks))
        for weight in self.first.parameters():
            # Variance 1 / hidden: with a third of that, as by default, activations start almost linear, and
            # a score in two dimensions is learned markedly more slowly.
            if weight.ndim == 2:
                nn.init.kaiming_uniform_(weight, nonlinearity="linear")
        self.output = nn.Linear(hidden, values * dim)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
        raw: Tensor | None = None,
    ) -> Tensor:
        r"""Return the network's output, shaped like ``x``.

        Args:
            x: Unit-scale data, (B, \*E) with E of total size ``dim``.
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: None, (B, cond_dim) floating point, or (B,) integer labels, as built.
            augment: None, or labels of an augmentation, (B, augment_dim).
            raw: What the waves are of, like ``x``, where ``x`` has been transformed; when left out, ``x``.

        Returns:
            Output, (B, \*E), or (B, values, \*E).

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if x.ndim < 2 or math.prod(x.shape[1:]) != self.dim:
            raise ValueError(
                f"MLP(dim={self.dim}) was given x of shape {tuple(x.shape)}: "
                f"give (B, *E) with E of total size {self.dim}."
            )
        self.embedding.check_inputs(x, t, cond, augment)
        h = self.input(x.reshape(x.shape[0], self.dim))
        if self.waves is not None and self.details is not None:
            h = h + self.details(self.waves((x if raw is None else raw).reshape(x.shape[0], self.dim), t))
        modulations = self.embedding(t, cond, augment)
        for first, second, (scale, shift) in zip(self.first, self.second, modulations, strict=True):
            update = F.silu(torch.addcmul(shift, scale, first(h)))
            if self.dropout and self.training:
                update = F.dropout(update, self.dropout)
            h = h + second(update)
        out = self.output(h)
        return out.reshape(x.shape if self.values == 1 else (len(x), self.values, *x.shape[1:]))
