"""Pictures: what is drawn, not how it looks."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff import viz


def test_image_grid_shows_the_images() -> None:
    x = torch.rand(3, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    figure = viz.image_grid({"one": x, "two": x[:1, 0] + 1}, columns=2, title="title")
    shown = figure.axes[0].get_images()
    assert all(np.allclose(s.get_array(), v) for s, v in zip(shown, (x[0], x[1], x[0] + 1), strict=True))
    assert len(shown) == 3  # two columns of the first row, all of the second
    low, high = float(x[:2].min()), max(float(x[:2].max()), float(x[0].max() + 1))
    assert all(s.get_clim() == (low, high) for s in shown)
    assert {text.get_text() for text in figure.axes[0].texts} == {"one", "two", "title"}


def test_trajectories_draw_the_coordinate_along_the_path() -> None:
    path = torch.randn(5, 4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    direction = torch.zeros(8, 8)
    direction[2, 3] = -7.0  # only its direction counts
    levels = [100.0, 10.0, 1.0, 0.1, 0.01]
    paths = {"sde": path, "ode": 2 * path}
    figure = viz.trajectories(paths, levels, direction=direction, frames=3, strips=2, lines=3)
    images = figure.axes[0].get_images()
    plots = [axes for axes in figure.axes if axes.get_lines()]
    assert (len(images), len(plots)) == (2 * 2 * 3, 2)
    for axes, scale in zip(plots, (1, 2), strict=True):
        drawn = np.stack([line.get_ydata() for line in axes.get_lines()], axis=1)
        assert np.allclose(drawn, -scale * path[:, :3, 0, 2, 3])
        assert axes.get_lines()[0].get_xdata().tolist() == levels
    assert np.allclose(images[1].get_array(), path[2, 0, 0])  # the middle frame
    assert images[0].get_clim() == images[-1].get_clim()


def test_default_direction_is_the_first_principal_component() -> None:
    steps = torch.linspace(0, 1, 3, dtype=torch.float64).reshape(3, 1, 1, 1)
    ends = torch.randn(50, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends[:, 1, 1] *= 100
    figure = viz.trajectories({"a": steps * ends}, [3.0, 2.0, 1.0], lines=50, strips=1, frames=2)
    drawn = np.array([line.get_ydata()[-1] for line in figure.axes[-1].get_lines()])
    assert abs(np.corrcoef(drawn, ends[:, 1, 1])[0, 1]) > 0.999


@pytest.mark.parametrize("log", [False, True])
def test_histogram_counts_everything_once(log: bool) -> None:
    groups = {"near": torch.tensor([2.0, 2.1, math.nan]), "far": torch.tensor([100.0])}
    figure = viz.log_prob_histogram(groups, log=log, title="title")
    heights = [sum(bar.get_height() for bar in axes.patches) for axes in figure.axes]
    assert heights == [2, 1]
    assert "1 failed" in figure.axes[0].get_title(loc="left")
    assert figure.axes[1].get_xscale() == ("log" if log else "linear")


def test_scatter_and_density() -> None:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(0))
    figure = viz.scatter_2d({"data": x, "samples": 2 * x}, title="title")
    assert np.allclose(figure.axes[1].collections[0].get_offsets(), 2 * x)
    assert figure.axes[0].get_xlim()[1] >= float(2 * x.abs().max())

    def tilted(points: torch.Tensor) -> torch.Tensor:
        return points[:, 0] - 3 * points[:, 1]

    image = viz.density_2d({"density": tilted}, limit=2.0, resolution=4).axes[0].get_images()[0]
    side = np.array([-1.5, -0.5, 0.5, 1.5])
    assert np.allclose(image.get_array(), np.exp(side[None, :] - 3 * side[:, None]))  # rows are y
    assert image.get_extent() == [-2.0, 2.0, -2.0, 2.0] and image.origin == "lower"


def test_saved_whole_and_readable(tmp_path: Path) -> None:
    figure = viz.image_grid({"a": torch.rand(2, 8, 8)}, columns=2)
    viz.save(figure, tmp_path / "a.png", dpi=50)
    width, height = figure.get_size_inches()
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        assert abs(image.width - 50 * width) <= 1 and abs(image.height - 50 * height) <= 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(FileNotFoundError, match="create it first"):
        viz.save(figure, tmp_path / "missing" / "a.png")


def test_errors_say_what_is_needed() -> None:
    flat = torch.zeros(3, 4)
    with pytest.raises(ValueError, match=r"'a' is \(3, 4\): give grey images"):
        viz.image_grid({"a": flat})
    with pytest.raises(ValueError, match="grey images"):
        viz.image_grid({"a": torch.zeros(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="no rows of images"):
        viz.image_grid({})
    with pytest.raises(ValueError, match=r"'a' is \(2, 3, 8, 8\): give \(5, B, H, W\)"):
        viz.trajectories({"a": torch.zeros(2, 3, 8, 8)}, [5.0, 4.0, 3.0, 2.0, 1.0])
    with pytest.raises(ValueError, match="no paths to show"):
        viz.trajectories({}, [1.0])
    with pytest.raises(ValueError, match="no finite log-likelihood"):
        viz.log_prob_histogram({"a": torch.tensor([math.nan])})
    with pytest.raises(ValueError, match="log=True needs positive values"):
        viz.log_prob_histogram({"a": torch.tensor([-1.0])}, log=True)
    with pytest.raises(ValueError, match=r"'a' is \(3, 4\): give samples of the plane"):
        viz.scatter_2d({"a": flat})
    with pytest.raises(ValueError, match="no samples to show"):
        viz.scatter_2d({})
    with pytest.raises(ValueError, match="no density to show"):
        viz.density_2d({}, limit=1.0)
