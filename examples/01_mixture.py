"""Learn a two-dimensional mixture and check everything against its closed form.

The exact score is known at every noise level here, and so is the density. First the likelihood engine alone
is checked, with the exact score in the network's place; then a network is trained and compared: its score by
noise level, its held-out log-density, the integral of its density. Writes mixture.png.
"""

from __future__ import annotations

import time

import torch
from matplotlib.figure import Figure

import sdediff

DATA = sdediff.reference.GaussianMixture(
    means=[[-1.5, 0.5], [1.2, 1.0], [0.6, -1.4]],
    covs=[[[0.10, 0.05], [0.05, 0.20]], [[0.3, -0.1], [-0.1, 0.1]], [[0.05, 0.0], [0.0, 0.3]]],
    weights=[0.30, 0.45, 0.25],
)
PROCESS = sdediff.VP()


def check_engine() -> None:
    """Log-density by the probability flow with the exact score, against the formula."""
    x = DATA.sample(256, seed=1, dtype=torch.float64)
    exact = DATA.log_prob(None, x, None)
    r = DATA.model(PROCESS).log_likelihood(x)
    print(f"exact score: largest error of log p    {float((r.log_prob - exact).abs().max()):.1e} nats")
    print(f"             largest error it estimates {float(r.solver_error.max()):.1e} nats")


def train() -> sdediff.DiffusionModel:
    """A small network, a few seconds."""
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=2, hidden=64, blocks=3)
    # No scaling: x_t = alpha x_0 + sigma eps then holds in the data's own units, and scores compare directly.
    model = sdediff.DiffusionModel(net, PROCESS, prediction="edm", data_shape=(2,), scale_mode="none")
    start = time.perf_counter()
    sdediff.fit(model, DATA.sample(20_000, seed=0), steps=700, progress=False)
    print(f"training:    700 steps in {time.perf_counter() - start:.1f} s")
    return model


def print_score_error(model: sdediff.DiffusionModel) -> None:
    """Root mean square error of the learned score, relative to the exact one, by noise level."""
    x0 = DATA.sample(4096, seed=2)
    print("score error by noise level sigma/alpha (relative root mean square):")
    for level in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        t = PROCESS.time(-torch.tensor(level, dtype=torch.float64).log())
        x_t, _ = PROCESS.perturb(x0, t, seed=3)
        exact = DATA.score(PROCESS, x_t, t)
        error = (model.score(x_t, t) - exact).square().mean() / exact.square().mean()
        print(f"  {level:5.2f}   {float(error.sqrt()):.3f}")


def grid(n: int = 48, half_width: float = 4.0) -> tuple[torch.Tensor, float]:
    """The n x n midpoints of a square, (n * n, 2), and the area of a cell."""
    axis = (torch.arange(n) + 0.5) / n * 2 * half_width - half_width
    return torch.cartesian_prod(axis, axis), (2 * half_width / n) ** 2


def main() -> None:
    """Run the checks in order."""
    check_engine()
    model = train()
    with torch.no_grad():
        print_score_error(model)
    held_out = DATA.sample(2000, seed=4)
    model_nll = -model.log_prob(held_out, rtol=1e-4, atol=1e-4).mean()
    exact_nll = -DATA.log_prob(None, held_out, None).mean()
    print(f"held-out:    {model_nll:.3f} nats a point; the true density scores {exact_nll:.3f}")
    points, area = grid()
    density = model.log_prob(points, rtol=1e-4, atol=1e-4).exp()
    print(f"integral:    {float(density.sum() * area):.4f} over a square that holds all but 1e-6 of the mass")
    draw(model, points, density)


def draw(model: sdediff.DiffusionModel, points: torch.Tensor, density: torch.Tensor) -> None:
    """The true density, the model's, and samples of the model."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = figure.subplots(1, 3, sharex=True, sharey=True)
    side = int(len(points) ** 0.5)
    truth = DATA.log_prob(None, points, None).exp()
    for panel, title, p in ((panels[0], "true density", truth), (panels[1], "density of the model", density)):
        image = p.reshape(side, side).T.numpy()
        panel.imshow(image, origin="lower", extent=(-4, 4, -4, 4), vmin=0, vmax=float(truth.max()))
        panel.set_title(title)
    panels[2].scatter(*model.sample(2000, seed=0).T.numpy(), s=2)
    panels[2].set(title="samples of the model", aspect="equal")
    figure.savefig("mixture.png", dpi=120)


if __name__ == "__main__":
    main()
