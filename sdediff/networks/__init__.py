"""Networks ``net(x, t, cond=None)`` for a model to be built from; they know no process, loss or solver."""

from __future__ import annotations

from torch import nn

from .embeddings import FourierFeatures, NoiseEmbedding
from .mlp import MLP
from .unet import UNet
from .variance import WithVariance
from .whitened import TableMLP, Whitened

__all__ = [
    "MLP",
    "REGISTRY",
    "FourierFeatures",
    "NoiseEmbedding",
    "TableMLP",
    "UNet",
    "Whitened",
    "WithVariance",
]

#: Network classes by name: ``REGISTRY[name](**net.config)`` rebuilds what a file names.
REGISTRY: dict[str, type[nn.Module]] = {
    "MLP": MLP,
    "TableMLP": TableMLP,
    "UNet": UNet,
    "Whitened": Whitened,
    "WithVariance": WithVariance,
}
