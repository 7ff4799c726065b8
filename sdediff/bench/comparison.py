"""Run solvers on a model and measure them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sdediff.grids import fit_grid
from sdediff.metrics import energy_distance
from sdediff.processes import GaussianProcess
from sdediff.text import machine
from solvers import Solution, Solver

from .entry import Entry, told
from .report import Report, Row
from .target import Target, rms

#: Solvers that are compared when none are named: ODE, then SDE.
DEFAULT_SOLVERS = (
    "ddim",
    "dpm++2m",
    "dpm++3m",
    "unipc-3",
    "gaussian-multistep",
    "heun",
    "dopri5",
    "euler-maruyama",
    "ancestral",
    "dpm++2m-sde",
    "sa-solver",
    "er-sde",
)
MEASURES = ("auto", "distance", "strong")


def compare(
    model: Any,
    solvers: Sequence[str | Solver | Entry] = DEFAULT_SOLVERS,
    nfe: Sequence[int] = (5, 10, 20, 50, 100),
    tolerances: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    *,
    process: GaussianProcess | None = None,
    measure: str = "auto",
    samples: int = 1000,
    seed: int = 0,
    repeats: int = 3,
    seconds: float = 20.0,
    title: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    r"""Run solvers on a model and measure error and cost.

    Every run starts from the same draws of the prior. Solvers of the probability flow are measured sample by
    sample: the root mean square difference, per entry and in data units, to where the exact flow takes the
    same draw (its closed form, where the reference has one; else a tight solve in float64, whose own error is
    told). Stochastic ones are measured by law: the energy distance of their samples to four times as many
    exact ones, beside its noise floor, that of exact sets of a run's size; or, with measure="strong", sample
    by sample against a solve with many steps along the same Brownian path.

    Seconds are medians of `repeats` runs of each solver, taken in rounds, so that whatever else the machine
    does falls on all alike.

    Args:
        model: A model, a closed form of `sdediff.reference`, or the name of one: "eight-gaussians", "rings",
            "mixture-8", "product-16".
        solvers: Names, with options after colons ("ddim:eta=1", "dpm++3m:grid=fitted"), solvers, or entries.
        nfe: Evaluations a sample; a fixed-grid solver takes the most steps that stay within each, counted
            on a network that returns zero. What a run really takes is its row's `nfe`: for implicit solvers,
            which iterate, it may be more. A number below that of one step makes a row that says so.
        tolerances: rtol = atol of adaptive solvers.
        process: The process of a closed form; VP by default.
        measure: "auto" as above; "distance" measures all solvers by law; "strong" the stochastic ones along
            a shared path (solvers with noise of their own cannot).
        samples: Samples of each run.
        seed: Seed of the prior's draws and of the noise.
        repeats: Timed runs of each; 0 takes the time of the only run.
        seconds: No further round of timing begins after so long.
        title: What the model is called.
        progress: Called with the number of finished runs and of all, timed ones included.

    Returns:
        The report. A run that fails is a row with a `failure`; the others go on.

    Raises:
        TypeError: If `model` or a solver is none.
        ValueError: If a name is unknown, or a number does not fit.

    Example:
        >>> report = compare("eight-gaussians", ["ddim", "heun"], nfe=(10, 20), samples=64, repeats=0)
        >>> [(row.solver, row.nfe) for row in report.rows]
        [('ddim', 10.0), ('ddim', 20.0), ('heun', 10.0), ('heun', 20.0)]
    """
    if measure not in MEASURES:
        raise ValueError(f"measure={measure!r} is not known: give one of {', '.join(MEASURES)}")
    if samples < 2 or not nfe or min(nfe) < 1 or repeats < 0:
        raise ValueError(
            f"samples={samples}, nfe={tuple(nfe)}, repeats={repeats}: give 2 samples or more, positive nfe, "
            "repeats of 0 or more"
        )
    target = Target.of(model, process, samples, seed, title)
    began = time.perf_counter()
    runs = [
        _Run(target, entry, setting, options, measure, failure)
        for entry in map(Entry.of, solvers)
        for setting, options, failure in entry.settings(nfe, tolerances)
    ]
    total = len(runs) * (1 + repeats)
    tell = progress or (lambda done, of: None)
    for done, run in enumerate(runs, 1):
        run.measure()
        tell(done, total)
    _time(runs, repeats, seconds, lambda done: tell(len(runs) + done, total))
    return _report(target, runs, measure, time.perf_counter() - began)


def _time(runs: list[_Run], repeats: int, seconds: float, tell: Callable[[int], None]) -> None:
    began = time.perf_counter()
    for turn in range(repeats):
        if turn and time.perf_counter() - began > seconds:
            break
        for k, run in enumerate(runs):
            run.again()
            tell(turn * len(runs) + k + 1)


@dataclass
class _Run:
    """One solver with one setting."""

    target: Target
    entry: Entry
    setting: str
    options: dict[str, Any]
    how: str
    failure: str = ""
    solution: Solution | None = None
    error: float | None = None
    distance: float | None = None
    first: float = 0.0

    def __post_init__(self) -> None:
        self.times: list[float] = []

    @property
    def measures_error(self) -> bool:
        """Sample by sample rather than by law."""
        if self.entry.follows_the_flow:
            return self.how != "distance"
        return self.how == "strong" and not self.entry.solver.noisy

    def measure(self) -> None:
        """Run it, and compare its samples with the truth."""
        if self.failure:
            return
        try:
            self._measure()
        except Exception as error:  # whatever it is: the other runs must not be lost
            self.failure = told(error)

    def _measure(self) -> None:
        x = self._sample()
        self.first = self.times.pop()
        ok = torch.isfinite(x.flatten(1)).all(dim=1)
        if not bool(ok.all()):
            self.failure = f"{int((~ok).sum())} of {len(x)} samples failed"
        elif self.measures_error:
            self.error = rms(x, self._truth())
        else:
            self.distance = float(energy_distance(x.cpu(), self.target.law))

    def again(self) -> None:
        """Run it for its time alone."""
        if self.solution is None:
            return
        try:
            self._sample()
        except Exception as error:
            self.failure = self.failure or told(error)

    def _truth(self) -> Tensor:
        if self.entry.follows_the_flow:
            return self.target.flow[0]
        return self.target.strong(self.entry.eta)

    def _sample(self) -> Tensor:
        options = self.options
        if options.get("grid") == "fitted":
            steps = options.get("steps")
            if steps is None:
                raise TypeError(
                    f"a grid is fitted to a number of steps, and {self.entry.solver.name} chooses its own: "
                    "leave grid=fitted out"
                )
            grid = fit_grid(self.target.model, steps, self.entry.solver, seed=self.target.seed + 1)
            self.options = options = {k: v for k, v in options.items() if k != "steps"} | {"grid": grid}
        if self.how == "strong" and self.measures_error and not self.entry.follows_the_flow:
            options = options | {"brownian": self.target.path}
        began = time.perf_counter()
        x, solution = self.target.model.sample(
            self.target.samples,
            self.entry.solver,
            seed=self.target.seed,
            dtype=self.target.dtype,
            on_failure="ignore",
            return_solution=True,
            **options,
        )
        self.times.append(time.perf_counter() - began)
        self.solution = solution
        return x

    def row(self) -> Row:
        nfe = None if self.solution is None else self.solution.nfe.double()
        return Row(
            solver=self.entry.label,
            kind="ODE" if self.entry.follows_the_flow else "SDE",
            setting=self.setting,
            nfe=None if nfe is None else float(nfe.mean()),
            nfe_max=None if nfe is None else int(nfe.max()),
            seconds=None if nfe is None else median(self.times or [self.first]),
            error=self.error,
            distance=self.distance,
            failure=self.failure,
        )


def _report(target: Target, runs: list[_Run], measure: str, seconds: float) -> Report:
    flows = any(run.error is not None and run.entry.follows_the_flow for run in runs)
    by_law = any(run.distance is not None for run in runs)
    return Report(
        title=target.title,
        rows=[run.row() for run in runs],
        samples=target.samples,
        dim=target.model.dim,
        process=repr(target.model.process),
        measure=measure,
        truth=target.flow[2] if flows else None,
        truth_error=target.flow[1] if flows else None,
        floor=target.floor if by_law else None,
        seed=target.seed,
        dtype=str(target.dtype).removeprefix("torch."),
        repeats=min((len(run.times) for run in runs if run.solution is not None), default=0),
        ran_on=machine() | {"seconds": round(seconds, 1)},
    )
