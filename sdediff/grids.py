"""Grids of few steps fitted to a model, and their files."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from solvers import FittedGrid, Solver
from solvers.grid_search import fit_grid as fit_problem_grid

from . import files
from .model import DiffusionModel, solving
from .prior import Prior
from .run import Run, draw_prior

_KIND = "sdediff grid"


@solving
def fit_grid(
    model: DiffusionModel,
    steps: int,
    solver: str | Solver = "dpm++2m",
    *,
    samples: int = 256,
    cond: Any = None,
    seed: int = 0,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    candidates: int = 64,
    evaluations: int = 12_000,
    tolerance: float | None = None,
) -> FittedGrid:
    """Fit a grid of few steps to a model and a solver.

    Teacher trajectories start from draws of the prior; see :func:`solvers.grid_search.fit_grid` for the
    method. The grid goes wherever `grid=` stands, for this model's process and interval.

    Args:
        model: The model.
        steps: Steps of the grid.
        solver: The ODE solver it is for, or its name.
        samples: Trajectories it is fitted to; more where few of them are far harder than the rest.
        cond: Conditions, (samples, ...), or one for all.
        seed: Of the trajectories' start.
        t_span: (t_min, t_max) in place of the process's.
        prior: In place of the model's.
        candidates: See :func:`solvers.grid_search.fit_grid`; likewise the next two.
        evaluations: About the most evaluations of the descent; 0 leaves it out.
        tolerance: Of the teacher.

    Returns:
        The grid; `error` and `default_error` are those of the solver in the model's units, on the fitted
        trajectories.

    Raises:
        TypeError: If the solver has no grid, or draws noise.
        ValueError: If a number does not fit.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> grid = fit_grid(model, steps=5, solver="ddim", samples=64)
        >>> grid.error < 0.9 * grid.default_error
        True
    """
    run = Run.of(model, solver, t_span=t_span, eta=0.0, seed=seed, prior=prior)
    z = draw_prior(model, run, torch.arange(samples))
    problem = model.problem(0.0, model.expand_condition(cond, samples, z.device))
    return fit_problem_grid(
        problem,
        z,
        steps,
        run.solver,
        t=run.span,
        candidates=candidates,
        evaluations=evaluations,
        tolerance=tolerance,
    )


def save_grid(grid: FittedGrid, path: str | os.PathLike[str]) -> None:
    """Write a fitted grid to a JSON file, whole or not at all.

    Args:
        grid: The grid.
        path: The file.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    content = {"kind": _KIND, "version": files.VERSION, "steps": len(grid) - 1} | asdict(grid)
    files.write_text(path, json.dumps(content, indent=2) + "\n")


def load_grid(path: str | os.PathLike[str]) -> FittedGrid:
    """Read a file of :func:`save_grid`.

    Args:
        path: The file.

    Returns:
        The grid.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no grid, or of a later version.

    Example:
        >>> import pathlib, tempfile, sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> grid = fit_grid(model, steps=3, solver="ddim", samples=16, candidates=8)
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "grid.json"
        >>> save_grid(grid, file)
        >>> load_grid(file) == grid
        True
    """
    name = os.fspath(path)
    if not Path(name).is_file():
        raise FileNotFoundError(f"there is no file {name}: give one written by sdediff.save_grid")
    try:
        content = json.loads(Path(name).read_text(encoding="utf-8"))
        if content.pop("kind") != _KIND:
            raise KeyError("kind")
        version, _ = content.pop("version"), content.pop("steps")
        if version <= files.VERSION:
            lists: dict[str, Any] = {
                key: tuple(map(float, content.pop(key))) for key in ("times", "alpha", "sigma")
            }
            return FittedGrid(**lists, **content)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{name} is damaged or holds no grid: give a file of sdediff.save_grid") from error
    raise ValueError(
        f"{name} has format version {version} and this sdediff reads up to {files.VERSION}: update sdediff"
    )
