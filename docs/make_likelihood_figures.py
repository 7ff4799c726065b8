"""Make docs/images/likelihood_errors.png: `python docs/make_likelihood_figures.py`.

A mixture of ten Gaussians with full covariances, fitted to the handwritten digits (d = 64), stands in the
network's place, in float64: its score is exact, so every error seen is the evaluation's. Truth is the model's
own log-density by the exact trace at tight settings. Prints the numbers of the left panel and how often the
solver's bound holds. About a minute on one CPU core.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import sdediff
from sdediff import Exact, Hutchinson, viz
from sdediff.text import aligned

FOLDER = Path(__file__).resolve().parent / "images"
POINTS, REPEATS, LAYOUT = 6, 32, (8, 8)
FIXED, FRESH, HADAMARD, EXACT = viz.COLOURS[1], viz.COLOURS[4], viz.COLOURS[0], viz.COLOURS[2]


def mixture() -> sdediff.reference.GaussianMixture:
    """One Gaussian a digit, its covariance shrunk towards a multiple of the identity."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, labels = torch.from_numpy(images), torch.from_numpy(labels)
    x = sdediff.dequantise(x, seed=0)
    x = (x - x.mean()) / (x - x.mean(dim=0)).square().mean().sqrt()
    groups = [x[labels == digit] for digit in range(10)]
    means = torch.stack([g.mean(dim=0) for g in groups])
    covs = torch.stack([0.9 * torch.cov(g.T) + 0.02 * torch.eye(64, dtype=x.dtype) for g in groups])
    return sdediff.reference.GaussianMixture(means, covs, [len(g) / len(x) for g in groups])


@dataclass
class Curve:
    """An estimator at several numbers of probes: cost, true and stated errors, by points."""

    name: str
    colour: str
    cost: list[float]
    spread: list[Tensor]  # root mean square error over repeats, (POINTS,)
    stated: list[Tensor]  # root mean square standard error, (POINTS,)


Found = tuple[float, Tensor, Tensor]  # cost, true and stated errors


def cost(r: sdediff.LogLikelihood) -> float:
    """Evaluations a point: of the network along the path, and vector-Jacobian products."""
    return float((r.nfe + r.divergence_evaluations).double().mean())


def stochastic(model: sdediff.DiffusionModel, x: Tensor, truth: Tensor) -> list[Curve]:
    """What random probes cost and how far they err, by the way they are drawn."""
    coupled: dict[str, Any] = {"coupled": True, "rtol": 1e-5, "atol": 1e-5}
    curves = []
    for name, colour, pattern, probes, options in (
        ("fixed probes,\ncoupled solve", FIXED, "fixed", (1, 2, 4, 8), coupled),
        ("fresh probes\nat each node", FRESH, "fresh", (1, 2, 4, 8), {}),
        ("Hadamard probes\n(default)", HADAMARD, "hadamard", (2, 4, 8, 16), {}),
    ):
        curve = Curve(name, colour, [], [], [])
        for count in probes:
            divergence = Hutchinson(count, pattern=pattern, layout=LAYOUT)  # type: ignore[arg-type]
            many = x.repeat_interleave(REPEATS, dim=0)
            r = model.log_likelihood(many, divergence=divergence, seed=7, **options)
            error = (r.log_prob - truth.repeat_interleave(REPEATS)).view(POINTS, REPEATS)
            curve.cost.append(cost(r))
            curve.spread.append(error.square().mean(dim=1).sqrt())
            curve.stated.append(r.std_error.view(POINTS, REPEATS).square().mean(dim=1).sqrt())
        curves.append(curve)
    return curves


def deterministic(model: sdediff.DiffusionModel, x: Tensor, truth: Tensor) -> list[Found]:
    """Cost, true and stated errors (points,) of the exact trace, from coarse settings to the defaults."""
    found = []
    for nodes, tolerance in ((17, 1e-3), (25, 1e-4), (33, 1e-4), (49, 1e-5), (65, 1e-6)):
        r = model.log_likelihood(x, nodes=nodes, rtol=tolerance, atol=tolerance, divergence=Exact())
        found.append((cost(r), (r.log_prob - truth).abs(), r.solver_error))
    return found


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


def draw_cost(panel: Axes, curves: list[Curve], exact: list[Found]) -> None:
    """Error against cost."""
    for curve in curves:
        spread = [rms(s) for s in curve.spread]
        panel.plot(curve.cost, spread, "o-", color=curve.colour, label=curve.name)
    panel.plot(
        [c for c, _, _ in exact], [rms(e) for _, e, _ in exact], "s-", color=EXACT, label="exact trace"
    )
    panel.set(xscale="log", yscale="log")
    panel.set_xticks([200, 500, 1000, 2000, 5000], ["200", "500", "1000", "2000", "5000"])
    panel.set_xticks([], minor=True)
    panel.set(xlabel="evaluations a point (forward + vector-Jacobian products)")
    panel.set_ylabel("root mean square error, nats")
    panel.set_title("What an error costs")
    panel.legend(frameon=False, fontsize=9)


def draw_stated(panel: Axes, curves: list[Curve], exact: list[Found]) -> None:
    """Stated errors against true ones."""
    ends = (1e-6, 1e2)
    panel.plot(ends, ends, color="#888888", lw=1, zorder=0)
    panel.fill_between(ends, ends, ends[1], color="#e8f0e8", lw=0, zorder=-1)
    for curve in curves:
        known = [k for k, s in enumerate(curve.stated) if bool(torch.isfinite(s).all())]
        true, stated = (torch.cat([v[k] for k in known]) for v in (curve.spread, curve.stated))
        panel.plot(true.numpy(), stated.numpy(), "o", ms=4, color=curve.colour, alpha=0.8)
    true, stated = torch.cat([e for _, e, _ in exact]), torch.cat([s for _, _, s in exact])
    panel.plot(true.numpy(), stated.numpy(), "s", ms=3.5, color=EXACT, alpha=0.6)
    panel.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    panel.set(xlabel="true error, nats", ylabel="stated error, nats", title="What is stated of it")
    panel.text(2e-6, 3, "stated is larger: safe", fontsize=9, color="#406040")
    panel.text(3e-2, 3e-6, "stated is smaller", fontsize=9, color="#804040")


def main() -> None:
    """Draw the picture and print its numbers."""
    data = mixture()
    model = data.model(sdediff.VP())
    x = data.sample(24, seed=1, dtype=torch.float64)
    truth = model.log_prob(x, rtol=1e-8, atol=1e-8, nodes=129, divergence=Exact())
    curves = stochastic(model, x[:POINTS], truth[:POINTS])
    exact = deterministic(model, x, truth)
    rows = [("estimator", "evaluations", "true error", "stated error")]
    for curve in curves:
        for c, spread, stated in zip(curve.cost, curve.spread, curve.stated, strict=True):
            rows.append(
                (curve.name.replace("\n", " "), f"{c:.0f}", f"{rms(spread):.3g}", f"{rms(stated):.3g}")
            )
    rows += [("exact trace", f"{c:.0f}", f"{rms(e):.2g}", f"{rms(s):.2g}") for c, e, s in exact]
    print(aligned(rows, left=1))
    held = torch.cat([e <= s for _, e, s in exact])
    print(f"the solver's bound holds for {held.double().mean():.1%} of {len(held)} exact values")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for panel in (left, right):
        panel.spines[["top", "right"]].set_visible(False)
    draw_cost(left, curves, exact)
    draw_stated(right, curves, exact)
    viz.save(figure, FOLDER / "likelihood_errors.png", dpi=130)


if __name__ == "__main__":
    main()
