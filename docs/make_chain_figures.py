"""Make docs/images/chain.png: `python docs/make_chain_figures.py`.

The mixture of ten Gaussians fitted to the handwritten digits (d = 64) of `make_likelihood_figures.py`, and
one Gaussian with its mean and covariance, stand in the network's place, in float64: their scores are exact,
so what the bounds lack is the chain's. For the Gaussian nothing is random. Prints the numbers of the left
panel, and the slopes. About two minutes on one CPU core.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
from make_likelihood_figures import mixture
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sdediff
from sdediff import viz
from sdediff.chain import Chain
from sdediff.text import aligned
from solvers.noise import Stream, normal

FOLDER = Path(__file__).resolve().parent / "images"
PROCESS, DIM = sdediff.VP(t_min=1e-3), 64
COLOURS = {"posterior": viz.COLOURS[1], "forward": viz.COLOURS[0], "fitted": viz.COLOURS[2]}
#: Standard deviation of y = x_1/alpha_1 given the data: there the continuous bound follows on the decoder.
STD = float(PROCESS.sigma(PROCESS.t_min) / PROCESS.alpha(PROCESS.t_min))


@dataclass
class Curve:
    """What bounds lack of their limit, by the number of steps."""

    data: str
    variance: str
    steps: tuple[int, ...]
    gaps: list[float] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

    @property
    def slope(self) -> float:
        """Of the last two points."""
        return math.log(self.gaps[-1] / self.gaps[-2]) / math.log(self.steps[-1] / self.steps[-2])


def gaussian_elbo(data: sdediff.reference.Gaussian, x: Tensor) -> Tensor:
    """Mean over y of the ELBO at y, which for a Gaussian is its density: E log N(y; m, C + STD^2)."""
    noised = torch.distributions.MultivariateNormal(
        data.mean, data.cov + STD**2 * torch.eye(DIM, dtype=x.dtype)
    )
    return noised.log_prob(x) - 0.5 * STD**2 * noised.precision_matrix.trace()


def mixture_elbo(data: sdediff.reference.GaussianMixture, x: Tensor) -> Tensor:
    """The ELBO at one y."""
    y = x + STD * normal(9, torch.arange(len(x)), Stream.DATA, 0, (DIM,), x.dtype)
    return data.model(PROCESS).elbo(y, draws=256).log_prob


def measure(
    name: str, data: sdediff.reference.GaussianMixture, x: Tensor, elbo: Tensor, curves: list[Curve]
) -> None:
    """Fill in the curves of one kind of data."""
    model, seen = data.model(PROCESS), data.sample(128, seed=5, dtype=torch.float64)
    entropy = (
        0.5 * DIM * math.log(2 * math.pi * math.e * STD**2)
    )  # of y; the limit is decoder + entropy + elbo
    for steps in curves[0].steps:
        chain = Chain.of(PROCESS, steps)
        for curve in curves:
            variance: str | Tensor = curve.variance
            if variance == "fitted":
                variance = chain.reverse(model).fit_variances(seen)
            r = chain.bound(model, x, variance=variance, terms=1 if name == "Gaussian" else None)
            gap = elbo + entropy + r.transitions.sum(dim=1) + r.prior
            curve.gaps.append(float(gap.mean()))
            curve.errors.append(float(gap.std()) / math.sqrt(len(x)) if name != "Gaussian" else 0.0)


def draw_gaps(panel: Axes, curves: list[Curve]) -> None:
    """Gaps by the number of steps."""
    for curve in curves:
        exact = curve.data == "Gaussian"
        panel.errorbar(
            curve.steps,
            curve.gaps,
            [1.96 * e for e in curve.errors],
            fmt="o-" if exact else "s--",
            ms=4,
            color=COLOURS[curve.variance],
            mfc=COLOURS[curve.variance] if exact else "white",
            label=f"{curve.data}, {curve.variance}",
        )
    ends = torch.tensor([10.0, 3000.0])
    panel.plot(ends, 3e3 / ends, color="#888888", lw=1)
    panel.text(25, 60, "1/T", fontsize=9, color="#606060")
    panel.set(xscale="log", yscale="log", xlabel="steps T of the chain")
    panel.set(
        ylabel="continuous ELBO less the bound, nats", title="What the chain's bound lacks of its limit"
    )
    panel.legend(frameon=False, fontsize=8)


def draw_terms(panel: Axes, data: sdediff.reference.GaussianMixture, x: Tensor) -> None:
    """Transitions by noise level, per unit of log-SNR."""
    model = data.model(PROCESS)
    for steps, colour in ((10, viz.COLOURS[5]), (30, viz.COLOURS[4]), (100, viz.COLOURS[3]), (1000, "black")):
        chain = Chain.of(PROCESS, steps)
        height = chain.bound(model, x).transitions.mean(dim=0) / -chain.lam[1:].diff()
        panel.stairs(height, torch.exp(-chain.lam[1:]), color=colour, label=f"T = {steps}", lw=1.3)
    panel.set(
        xscale="log",
        xlabel="noise level sigma/alpha",
        ylabel="transitions, nats per unit of log(alpha/sigma)",
    )
    panel.set_title("The transitions, forward variance")
    panel.legend(frameon=False, fontsize=9)


def main() -> None:
    """Draw the picture and print its numbers."""
    digits = mixture()
    one = sdediff.reference.Gaussian(digits.mean, digits.cov)
    few, many = (10, 30, 100, 300, 1000), (10, 30, 100, 300, 1000, 3000)
    curves = [Curve("Gaussian", variance, many) for variance in COLOURS]
    x = one.sample(32, seed=1, dtype=torch.float64)
    measure("Gaussian", one, x, gaussian_elbo(one, x), curves)
    random = [Curve("mixture", variance, few) for variance in ("forward", "fitted")]
    x = digits.sample(64, seed=1, dtype=torch.float64)
    measure("mixture", digits, x, mixture_elbo(digits, x), random)
    rows = [("data", "variance", "steps", "gap, nats", "std error")]
    for curve in curves + random:
        for steps, gap, error in zip(curve.steps, curve.gaps, curve.errors, strict=True):
            rows.append((curve.data, curve.variance, str(steps), f"{gap:.4g}", f"{error:.2g}"))
    print(aligned(rows, left=2))
    for curve in curves:
        print(f"slope, {curve.data}, {curve.variance}: {curve.slope:.3f}")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    draw_gaps(left, curves + random)
    draw_terms(right, digits, x)
    viz.save(figure, FOLDER / "chain.png", dpi=130)


if __name__ == "__main__":
    main()
