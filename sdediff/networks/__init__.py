"""Networks ``net(x, t, cond=None)`` for a model to be built from; they know no process, loss or solver."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .dit import DiT
from .embeddings import BlurredWaves, FourierFeatures, NoiseEmbedding
from .levels import Levels
from .mlp import MLP
from .presets import ADM, DDPMpp, NCSNpp, SizedDiT
from .small import SmallImageNet
from .unet import UNet
from .variance import WithVariance
from .whitened import TableMLP, Whitened

__all__ = [
    "ADM",
    "MLP",
    "REGISTRY",
    "BlurredWaves",
    "DDPMpp",
    "DiT",
    "FourierFeatures",
    "Levels",
    "NCSNpp",
    "NoiseEmbedding",
    "SizedDiT",
    "SmallImageNet",
    "TableMLP",
    "UNet",
    "Whitened",
    "WithVariance",
]

#: Networks by name: ``REGISTRY[type(net).__name__](**net.config)`` rebuilds what a file names. Functions are
#: settings of a class and return it.
REGISTRY: dict[str, Callable[..., nn.Module]] = {
    "Levels": Levels,
    "MLP": MLP,
    "TableMLP": TableMLP,
    "UNet": UNet,
    "DDPMpp": DDPMpp,
    "NCSNpp": NCSNpp,
    "ADM": ADM,
    "DiT": DiT,
    "SizedDiT": SizedDiT,
    "SmallImageNet": SmallImageNet,
    "Whitened": Whitened,
    "WithVariance": WithVariance,
}
