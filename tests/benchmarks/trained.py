"""Trained networks, closed-form mixtures and held-out points that benchmarks share.

Networks are trained when first asked for, with fixed seeds, and kept as safetensors in the folder
SDEDIFF_BENCHMARKS, or `sdediff-benchmarks` among the temporary files. `python tests/benchmarks/trained.py`
trains all of them. Points of `tuning` are for choosing settings, those of `held_out` for what is reported;
neither was trained on.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

import sdediff
from sdediff.data import dequantise, digits
from sdediff.networks import MLP, UNet
from sdediff.reference import GaussianMixture

F64 = torch.float64


@dataclass(frozen=True)
class Points:
    """Rows in data units, float64: for training, for choosing settings, and for what is reported."""

    train: Tensor
    tuning: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Trained:
    """A model, and points that it was not trained on; `mixture` is the truth where there is one."""

    model: sdediff.DiffusionModel
    tuning: Tensor
    held_out: Tensor
    mixture: GaussianMixture | None = None


# -- data ----------------------------------------------------------------------------------------------------


@cache
def digit_points() -> Points:
    """Dequantised 8x8 digits, (n, 1, 8, 8), 17 levels: 1350, 150 and 297 rows."""
    train, tuning, held_out = digits()
    return Points(train.double(), dequantise(tuning.double(), 1), dequantise(held_out.double(), 2))


@cache
def patch_points() -> Points:
    """Grey 8x8 patches of scikit-learn's two photographs, (n, 1, 8, 8), 256 levels.

    The left part of each photograph is for training, the next strip for tuning, the right one is held out.
    """
    from sklearn.datasets import load_sample_images

    pictures = [torch.from_numpy(p.copy()).double().mean(dim=2).round() for p in load_sample_images().images]

    def patches(start: int, stop: int, step: int) -> Tensor:
        parts = [p[:, start:stop].unfold(0, 8, step).unfold(1, 8, step) for p in pictures]
        return torch.cat([p.reshape(-1, 1, 8, 8) for p in parts])

    def some(x: Tensor, seed: int) -> Tensor:
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        return dequantise(x[order[:512]], seed)

    return Points(patches(0, 448, 2), some(patches(448, 528, 8), 1), some(patches(528, 640, 8), 2))


@cache
def table_points() -> Points:
    """The breast cancer table of scikit-learn, 30 columns in no natural order: 369, 100 and 100 rows."""
    from sklearn.datasets import load_breast_cancer

    x = torch.from_numpy(load_breast_cancer().data)
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))]
    return Points(x[:369], x[369:469], x[469:])


# -- networks ------------------------------------------------------------------------------------------------


def folder() -> Path:
    """Where trained networks are kept."""
    default = Path(tempfile.gettempdir()) / "sdediff-benchmarks"
    path = Path(os.environ.get("SDEDIFF_BENCHMARKS", default))
    path.mkdir(parents=True, exist_ok=True)
    return path


def _trained(
    name: str,
    points: Points,
    build: Callable[[], torch.nn.Module],
    shape: tuple[int, ...],
    steps: int,
    augment: Callable[[Tensor, int], Tensor] | None = None,
) -> Trained:
    path = folder() / f"{name}-{steps}.safetensors"
    if not path.exists():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build()
        model = sdediff.DiffusionModel(network, sdediff.VP(), "edm", shape)
        x, begin = points.train.reshape(-1, *shape).float(), time.perf_counter()
        sdediff.fit(model, x, steps=steps, batch_size=128, seed=0, augment=augment, progress=False)
        print(f"trained {name} in {time.perf_counter() - begin:.0f} s", flush=True)
        model.save(path)
    model = sdediff.load(path)
    tuning, held_out = (x.reshape(-1, *shape) for x in (points.tuning, points.held_out))
    return Trained(model.eval(), tuning, held_out)


def digits_mlp() -> Trained:
    """A residual perceptron 512x4 on digits as vectors, d = 64."""
    return _trained("digits-mlp", digit_points(), lambda: MLP(64, 512, 4), (64,), 3000, augment=dequantise)


def digits_unet() -> Trained:
    """A small U-Net with attention on digits as images, d = 64."""
    build = lambda: UNet(1, base=32, multipliers=(1, 2))  # noqa: E731
    return _trained("digits-unet", digit_points(), build, (1, 8, 8), 1500, augment=dequantise)


def patches_mlp() -> Trained:
    """A residual perceptron 512x4 on patches as vectors, d = 64."""
    return _trained("patches-mlp", patch_points(), lambda: MLP(64, 512, 4), (64,), 3000, augment=dequantise)


def table_mlp() -> Trained:
    """A residual perceptron 256x4 on a table of 30 columns."""
    return _trained("table-mlp", table_points(), lambda: MLP(30, 256, 4), (30,), 2000)


# -- mixtures ------------------------------------------------------------------------------------------------


def _mixture(name: str, points: Points, components: int = 10) -> Trained:
    """A mixture fitted to dequantised data scaled to unit variance, and its VP model; points are its own."""
    path = folder() / f"{name}-mixture-{components}.pt"
    if not path.exists():
        from sklearn.mixture import GaussianMixture as Fitted

        x = points.train[torch.randperm(len(points.train), generator=torch.Generator().manual_seed(0))[:8192]]
        x = dequantise(x, 0).flatten(1)
        x = (x - x.mean()) / (x - x.mean(dim=0)).square().mean().sqrt()
        fit = Fitted(components, reg_covar=1e-3, random_state=0, max_iter=50).fit(x.numpy())
        parts = [torch.from_numpy(v) for v in (fit.means_, fit.covariances_, fit.weights_)]
        torch.save(parts, path.with_suffix(f".{os.getpid()}"))
        path.with_suffix(f".{os.getpid()}").replace(path)
    mixture = GaussianMixture(*torch.load(path, weights_only=True))
    tuning, held_out = mixture.sample(512, seed=1), mixture.sample(512, seed=2)
    return Trained(mixture.model(sdediff.VP()), tuning, held_out, mixture)


def digits_mixture() -> Trained:
    """Ten Gaussians with full covariances fitted to digits, d = 64, float64."""
    return _mixture("digits", digit_points())


def patches_mixture() -> Trained:
    """Ten Gaussians with full covariances fitted to patches, d = 64, float64."""
    return _mixture("patches", patch_points())


if __name__ == "__main__":
    for make in (digits_mixture, patches_mixture, table_mlp, digits_mlp, patches_mlp, digits_unet):
        made = make()
        print(f"{make.__name__:16} tuning {len(made.tuning)}, held out {len(made.held_out)}: {made.model}")
