"""Networks ``net(x, t, cond=None)`` that a model is built from; none knows of processes, losses or solvers."""

from __future__ import annotations

from torch import nn

from .embeddings import FourierFeatures, NoiseEmbedding
from .mlp import MLP
from .unet import UNet

__all__ = ["MLP", "REGISTRY", "FourierFeatures", "NoiseEmbedding", "UNet"]

#: Network classes by name: ``REGISTRY[type(net).__name__](**net.config)`` rebuilds a network from what a file can hold.
REGISTRY: dict[str, type[nn.Module]] = {"MLP": MLP, "UNet": UNet}
