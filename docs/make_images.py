"""Make docs/images/overview.png, the picture at the top of the README: `python docs/make_images.py`.

The upper row uses an exact score; the lower row trains a small network on a two-armed spiral whose density is
known. About two minutes on one CPU core. Prints every number that the picture shows.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import sdediff
import solvers

FOLDER = Path(__file__).resolve().parent / "images"
PROCESS = sdediff.VP()
INK, ODE_COLOUR, SDE_COLOUR = "#20304a", "#ffffff", "#ff9f40"


def spiral(arms: int = 2, knots: int = 28, std: float = 0.09) -> sdediff.reference.GaussianMixture:
    """A spiral made of round Gaussians, so that its density and score are known."""
    means = []
    for arm in range(arms):
        for i in range(knots):
            u = math.sqrt((i + 2) / (knots + 1))
            angle = 3.6 * math.pi * u / 2 + 2 * math.pi * arm / arms
            means.append([1.9 * u * math.cos(angle), 1.9 * u * math.sin(angle)])
    return sdediff.reference.GaussianMixture(means, std**2)


def draw_flow(panel: Axes, left: Axes, right: Axes) -> None:
    """The density of noised data in one dimension, with paths of both kinds under the exact score."""
    data = sdediff.reference.GaussianMixture([[-1.5], [0.2], [1.5]], [0.02, 0.03, 0.06], [0.3, 0.25, 0.45])
    problem = data.model(PROCESS).problem  # problem(eta): what a solver sees
    times = torch.linspace(PROCESS.t_max, 2e-3, 400, dtype=torch.float64)
    x = torch.linspace(-3.2, 3.2, 500, dtype=torch.float64)
    density = torch.stack([data.log_prob(PROCESS, x[:, None], float(t)).exp() for t in times.flip(0)], dim=1)
    panel.imshow(
        density.clamp(max=0.9).numpy(), origin="lower", extent=(0, 1, -3.2, 3.2), aspect="auto", cmap="magma"
    )
    z = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
    z = (math.sqrt(2) * torch.erfinv(2 * z - 1))[:, None]
    flow = solvers.solve(problem(0.0), z, (1.0, 2e-3), "dopri5", save_at=times)
    assert flow.path is not None
    panel.plot(times.numpy(), flow.path[:, :, 0].numpy(), color=ODE_COLOUR, lw=0.8, alpha=0.85)
    grid = torch.linspace(1.0, 2e-3, 401, dtype=torch.float64)
    noisy = solvers.solve(problem(1.0), z[6:20:6], None, "euler-maruyama", grid=grid, save_at=grid, seed=0)
    assert noisy.path is not None
    panel.plot(grid.numpy(), noisy.path[:, :, 0].numpy(), color=SDE_COLOUR, lw=0.9)
    panel.set(xlim=(0, 1), ylim=(-3.2, 3.2), yticks=[])
    panel.set_xlabel("←  sampling" + 40 * " " + "time t" + 40 * " " + "likelihood  →")
    panel.set_title(
        "density of the noised data, probability-flow paths (white), paths of the reverse SDE (orange)"
    )
    for side, t, title in ((left, None, "data"), (right, 1.0, "noise")):
        p = data.log_prob(None if t is None else PROCESS, x[:, None], t).exp()
        side.fill_betweenx(x.numpy(), p.numpy(), color=INK, lw=0)
        side.set(ylim=(-3.2, 3.2), xlim=(0, None), xticks=[], yticks=[], title=title)
        side.set_frame_on(False)
    left.invert_xaxis()


def train(data: sdediff.reference.GaussianMixture) -> sdediff.DiffusionModel:
    """The network of the lower row."""
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=128, blocks=4)
    model = sdediff.DiffusionModel(net, PROCESS, prediction="edm", data_shape=(2,), scale_mode="none")
    start = time.perf_counter()
    sdediff.fit(model, data.sample(50_000, seed=0), steps=4000, batch_size=512, progress=False)
    print(f"trained 4000 steps in {time.perf_counter() - start:.0f} s on {torch.get_num_threads()} thread(s)")
    return model


def draw_model(panels: list[Axes], data: sdediff.reference.GaussianMixture) -> None:
    """Data, learned score, samples and log-density of a trained model."""
    model = train(data)
    size, side = 2.5, 120
    axis = (torch.arange(side) + 0.5) / side * 2 * size - size
    points = torch.cartesian_prod(axis, axis)

    panels[0].scatter(*data.sample(4000, seed=1).T.numpy(), s=1.5, color=INK, lw=0)
    panels[0].set_title("data")

    t = PROCESS.time(-torch.tensor(0.3, dtype=torch.float64).log())
    noised = data.log_prob(PROCESS, points, t).reshape(side, side).T.exp()
    coarse = torch.linspace(-2.2, 2.2, 19)
    at = torch.cartesian_prod(coarse, coarse)
    with torch.no_grad():
        arrows = model.score(at, t)
    arrows = arrows / (2 + arrows.norm(dim=1, keepdim=True))  # long ones shortened, to be seen
    panels[1].imshow(noised.numpy(), origin="lower", extent=(-size, size) * 2, cmap="BuPu")
    panels[1].quiver(*at.T.numpy(), *arrows.T.numpy(), color=INK, width=0.004, scale=22)
    panels[1].set_title("learned score, σ/α = 0.3")

    x, log_prob = model.sample(4000, "dopri5", seed=0, return_log_prob=True)
    panels[2].scatter(*x.T.numpy(), s=1.5, c=log_prob.numpy(), cmap="viridis", vmin=-4, vmax=0, lw=0)
    panels[2].set_title("samples, coloured by log p")

    grid = model.log_prob(points, rtol=1e-4, atol=1e-4)
    image = panels[3].imshow(
        grid.reshape(side, side).T.numpy(),
        origin="lower",
        extent=(-size, size) * 2,
        vmin=-8,
        vmax=0,
        cmap="viridis",
    )
    panels[3].figure.colorbar(image, ax=panels[3], shrink=0.8, label="nats")
    held_out = data.sample(4000, seed=2)
    exact, learned = data.log_prob(None, held_out, None), model.log_prob(held_out)
    panels[3].set_title(f"log p; held-out {learned.mean():.2f} (exact {exact.mean():.2f})")
    print(f"held-out log p, nats a point: model {learned.mean():.4f}, exact {exact.mean():.4f}")
    mass = float(grid.exp().sum()) * (2 * size / side) ** 2
    print(f"integral of the model's density over the square: {mass:.4f}")
    for panel in panels:
        panel.set(xlim=(-size, size), ylim=(-size, size), xticks=[], yticks=[], aspect="equal")


def main() -> None:
    """Draw the picture."""
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    left, middle, right = upper.subplots(1, 3, gridspec_kw={"width_ratios": (1, 14, 1)})
    draw_flow(middle, left, right)
    draw_model(list(lower.subplots(1, 4)), spiral())
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / "overview.png", dpi=130)


if __name__ == "__main__":
    main()
