"""One contract for every solver: each name of the registry, and solvers made of solvers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VE, VP, GaussianProcess, RectifiedFlow
from solvers.problems import expand
from solvers.runge_kutta import DOPRI5, HEUN

F32, F64 = torch.float32, torch.float64
RALSTON = solvers.Tableau(2, (0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))

MADE: dict[str, Callable[[], solvers.Solver]] = {
    "pc(ddim, langevin x2)": lambda: solvers.PredictorCorrector(solvers.DDIM(), solvers.Langevin(0.1, 2)),
    "pc(heun, langevin)": lambda: solvers.PredictorCorrector(solvers.Heun(), solvers.Langevin()),
    "step-doubling(heun)": lambda: solvers.StepDoubling(solvers.Heun()),
    "step-doubling(ddim)": lambda: solvers.StepDoubling(solvers.DDIM()),
    "runge-kutta(ralston)": lambda: solvers.RungeKutta(RALSTON),
    "runge-kutta(dopri5)": lambda: solvers.RungeKutta(DOPRI5),
    "adaptive-runge-kutta(heun)": lambda: solvers.AdaptiveRungeKutta(HEUN),
}
NAMES = [*solvers.available(), *MADE]
every_solver = pytest.mark.parametrize("name", NAMES)


def kind(name: str) -> tuple[object, ...]:
    """What a foreign method's wrapper goes by; one of ours is of a kind of its own."""
    solver = solvers.get(name)
    said = (solver.adaptive, solver.stochastic, solver.equal_steps, solver.batch_coupled, solver.default_eta)
    spec = getattr(solver, "spec", None)  # of diffusers' schedulers
    return (name.split("/")[0], *said, getattr(spec, "table", None), getattr(spec, "frame", None))


#: Ours, and one foreign method of every kind, the last: for what only a wrapper's code decides.
KINDS = [*{kind(name): name for name in solvers.available()}.values(), *MADE]
every_kind = pytest.mark.parametrize("name", KINDS)
every_dtype = pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))


def make(name: str) -> solvers.Solver:
    return MADE[name]() if name in MADE else solvers.get(name)


@cache
def schedule(process: GaussianProcess, t: float) -> tuple[float, float]:
    """Alpha and the noise's variance."""
    return float(process.alpha(t)), float(process.sigma(t)) ** 2


class Denoiser:
    """E[x_0 | x_t] of independent entries, +-1 with a Gaussian blur; notes the times it is asked for."""

    def __init__(self, process: GaussianProcess, blur: float = 0.5) -> None:
        self.process, self.variance = process, blur**2
        self.calls, self.low, self.high = 0, math.inf, -math.inf

    def __call__(self, t: float | Tensor, x: Tensor) -> Tensor:
        if isinstance(t, Tensor):
            assert t.dtype == F64, "times come in float64"
            assert t.shape in ((), (len(x),))
            low, high = (float(s) for s in t.aminmax())
            alpha, var = self.process.alpha(t), self.process.sigma(t) ** 2
            alpha, var = (expand(c.to(x.dtype), x) for c in (alpha, var))
        else:
            low = high = float(t)
            alpha, var = schedule(self.process, low)
        self.calls += 1
        self.low, self.high = min(self.low, low), max(self.high, high)
        total = alpha**2 * self.variance + var
        return (alpha * self.variance * x + var * torch.tanh(alpha * x / total)) / total


def problem(process: GaussianProcess, eta: float, scale: float = 0.8) -> tuple[solvers.SemiLinear, Denoiser]:
    """The test problem; `scale` is not the data's own, so that an adaptive solver has something to do."""
    spy = Denoiser(process)
    return solvers.SemiLinear(process, spy, eta, scale=scale), spy


def states(shape: tuple[int, ...], dtype: torch.dtype = F64) -> Tensor:
    """Four rows that differ."""
    z = solvers.noise.normal(7, torch.arange(4), solvers.Stream.PRIOR, 0, shape, F64)
    return (z * torch.tensor([0.3, 1.0, 1.5, 3.0], dtype=F64).reshape(-1, *(1,) * len(shape))).to(dtype)


def options(solver: solvers.Solver, dtype: torch.dtype = F64, steps: int = 6) -> dict[str, float]:
    if not solver.adaptive:  # implicit steps must be short for their iterations to converge
        return {
            "steps": (60 if steps == 6 else 200) if solver.equal_steps and solver.batch_coupled else steps
        }
    if solver.stochastic and solver.default_eta:  # strong order 1 costs a decade of steps for one of error
        return dict.fromkeys(("rtol", "atol"), 3e-2)
    return dict.fromkeys(("rtol", "atol"), 1e-3 if solver.order < 3 else 1e-4)


def is_deterministic(name: str) -> bool:
    """Whether the same state always leads to the same result, at the default eta."""
    solver = make(name)
    return solver.default_eta == 0 and not solver.noisy


VP_ = VP(t_min=1e-2)


@every_dtype
@every_solver
def test_result_has_the_states_shape_and_statistics_of_every_sample(name: str, dtype: torch.dtype) -> None:
    solver = make(name)
    for shape in ((1,), (2, 5)) if dtype == F64 else ((1, 4, 3),):
        task, spy = problem(VP_, solver.default_eta)
        x = states(shape, dtype)
        before = x.clone()
        sol = solvers.solve(task, x, solver=solver, **options(solver, dtype))
        assert torch.equal(x, before), "the initial state was written to"
        assert (sol.x.shape, sol.x.dtype, sol.x.device) == (x.shape, dtype, x.device)
        assert bool(torch.isfinite(sol.x).all()) and bool((sol.x != x).all())
        for value in (sol.nfe, sol.accepted, sol.rejected, sol.status):
            assert value.shape == (4,) and value.dtype == torch.int64
        assert sol.t.shape == (4,) and sol.t.dtype == F64
        assert sol.t.tolist() == [VP_.t_min] * 4, "the end is reached exactly"
        assert bool(sol.ok.all()) and sol.path is None and sol.error is None
        assert spy.calls == int(sol.nfe.max())
        if solver.adaptive:
            assert bool((sol.accepted >= 2).all())
        else:
            again = (
                2 if isinstance(solver, solvers.Restart) else 0
            )  # its one interval is one step here, twice
            expected = options(solver)["steps"] + again
            assert sol.accepted.tolist() == [expected] * 4 and sol.rejected.tolist() == [0] * 4


@every_kind
def test_batch_coupled_is_true_exactly_where_rows_depend_on_each_other(name: str) -> None:
    solver = make(name)
    task, _ = problem(VP_, solver.default_eta)
    x = states((3,))
    names = torch.tensor([5, 0, 17, 3])
    run = lambda rows: solvers.solve(task, x[rows], solver=solver, indices=names[rows], **options(solver)).x  # noqa: E731
    whole = run(torch.arange(4))
    difference = max(
        float((run(rows) - whole[rows]).abs().max()) for rows in map(torch.tensor, ([0], [2, 1]))
    )
    assert (difference > 1e-10) == solver.batch_coupled, f"rows alone differ by {difference:.1e}"


@every_kind
def test_seed_decides_everything(name: str) -> None:
    solver = make(name)
    task, _ = problem(VP_, solver.default_eta)
    run = lambda seed: solvers.solve(task, states((3,)), solver=make(name), seed=seed, **options(solver)).x  # noqa: E731
    first, other = run(4), run(5)
    same = torch.equal(first, other)
    assert same == is_deterministic(name)
    if not same:
        assert torch.equal(first, run(4))
        assert bool((first != other).all()), "some noise did not change with the seed"


@every_solver
def test_time_runs_both_ways_where_nothing_is_random(name: str) -> None:
    solver = make(name)
    x = states((3,)) * 0.3 + 0.5
    if solver.default_eta:
        task, _ = problem(VP_, solver.default_eta)
        with pytest.raises(ValueError, match="from noise to data"):
            solvers.solve(task, x, t=(VP_.t_min, 0.5), solver=solver, **options(solver))
    if solver.noisy:
        return
    task, _ = problem(VP_, 0.0)
    first_order = not solver.adaptive and (solver.order < 2 or name == "torchsde/srk")
    many = options(solver, steps=150 if first_order else 60)
    if solver.adaptive:
        many = dict.fromkeys(many, min(*many.values(), 1e-4))
    up = solvers.solve(task, x, t=(0.1, 0.6), solver=solver, **many)
    down = solvers.solve(task, up.x, t=(0.6, 0.1), solver=solver, **many)
    assert up.t.tolist() == [0.6] * 4 and down.t.tolist() == [0.1] * 4
    assert float((up.x - x).abs().max()) > 0.1
    torch.testing.assert_close(
        down.x, x, rtol=0, atol=2e-2 if first_order or name.endswith("fehlberg2") else 2e-3
    )


TIMES = [
    pytest.param(name, process, dtype, id=f"{name}-{type(process).__name__}")
    for process, dtype, names in (
        (RectifiedFlow(), F32, KINDS),
        # Of the registry's, in double precision: test_no_solver_leaves_the_interval.
        (VP(t_min=1e-3), F64, MADE),
        (VE(t_min=0.013, sigma_max=5.0), F64, MADE),
    )
    for name in names
]


@pytest.mark.parametrize(("name", "process", "dtype"), TIMES)
def test_no_time_outside_the_interval_is_asked_for(
    name: str, process: GaussianProcess, dtype: torch.dtype
) -> None:
    solver = make(name)
    task, spy = problem(process, solver.default_eta)
    x = states((1,), dtype) * process.prior_std
    spans = [(process.t_max, process.t_min), (0.7 * process.t_max, 0.1 * process.t_max)]
    if solver.default_eta == 0 and not solver.noisy:
        spans += [span[::-1] for span in spans]
    for start, end in spans:
        spy.low, spy.high = math.inf, -math.inf
        sol = solvers.solve(task, x, t=(start, end), solver=solver, **options(solver, dtype, steps=7))
        assert bool(sol.ok.all())
        assert spy.low >= min(start, end) and spy.high <= max(start, end), (
            f"outside by {min(start, end) - spy.low:.1e}, {spy.high - max(start, end):.1e}"
        )


@every_kind
def test_no_time_outside_is_asked_of_a_slow_ode(name: str) -> None:
    """A drift so small that a first step could be of any length, times in float32."""
    solver = make(name)
    if solver.needs_linear_part:
        return
    seen: list[float] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        seen.extend(t.reshape(-1).tolist())
        return 1e-3 * torch.cos(x)

    for dtype in (F64, F32):
        for start, end in ((0.3, 0.7), (0.7, 0.1)):
            seen.clear()
            sol = solvers.solve(
                solvers.ODE(drift), states((2,), dtype), (start, end), solver, **options(solver, dtype)
            )
            low, high = (float(torch.tensor(s, dtype=dtype)) for s in sorted((start, end)))
            assert bool(sol.ok.all())
            assert min(seen) >= low and max(seen) <= high


@every_kind
def test_saved_states_are_those_of_shorter_solves(name: str) -> None:
    solver = make(name)
    task, _ = problem(VP_, solver.default_eta)
    x, grid = states((2, 2)), VP_.default_grid(5)
    if solver.equal_steps:
        grid = solvers.uniform_grid(VP_, 5)
    times = grid if not solver.adaptive else torch.tensor([1.0, 0.6, 0.05, VP_.t_min])
    times = times.double()
    times[-1] = VP_.t_min
    how = (
        {"grid": grid}
        if not solver.adaptive
        else dict.fromkeys(("rtol", "atol"), 1e-5 if solver.order > 2 else 1e-4)
    )
    close = 1e-13 if not solver.adaptive else 1e-3 if solver.order > 2 else 4e-2
    if solver.adaptive and solver.stochastic:  # solves of other intervals follow one path if it is given
        path = solvers.BrownianPath(solvers.Noise.like(x, 0), (1.0, VP_.t_min))
        how, close = {"rtol": 1e-2, "atol": 1e-2, "brownian": path}, 0.2
    sol = solvers.solve(task, x, solver=solver, save_at=times, **how)
    assert sol.path is not None and sol.path.shape == (len(times), *x.shape) and sol.path.dtype == F64
    torch.testing.assert_close(sol.path[0], x, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(sol.path[-1], sol.x, rtol=1e-14, atol=1e-14)
    if not solver.adaptive:
        assert torch.equal(solvers.solve(task, x, solver=solver, **how).x, sol.x), "saving changed the result"
    for k in range(1, len(times) - 1):
        if solver.adaptive:
            shorter = solvers.solve(task, x, (1.0, float(times[k])), solver, **how).x
            torch.testing.assert_close(sol.path[k], shorter, rtol=0, atol=close)
        elif not name.startswith("torchsde/"):  # its clock t(u) is a curve through all of the grid
            shorter = solvers.solve(task, x, solver=solver, grid=grid[: k + 1]).x
            torch.testing.assert_close(sol.path[k], shorter, rtol=1e-13, atol=1e-13)
    some = solvers.solve(task, x, solver=solver, save_at=times[1:3], **how)
    assert some.path is not None
    torch.testing.assert_close(some.path, sol.path[1:3], rtol=0, atol=close)


@every_solver
def test_options_of_the_other_kind_are_refused(name: str) -> None:
    solver = make(name)
    task, _ = problem(VP_, solver.default_eta)
    x = states((1,))
    if solver.adaptive:
        for wrong in ({"steps": 5}, {"grid": [1.0, 0.5, 0.1]}, {"grid": "uniform"}):
            with pytest.raises(TypeError, match="takes rtol= and atol="):
                solvers.solve(task, x, solver=solver, **wrong)
    else:
        for wrong in ({"rtol": 1e-3}, {"atol": 1e-3}):
            with pytest.raises(TypeError, match="takes steps= or grid="):
                solvers.solve(task, x, solver=solver, **wrong)
        with pytest.raises(TypeError, match="both given"):
            solvers.solve(task, x, solver=solver, steps=3, grid=[1.0, 0.5])


TASKS: dict[str, solvers.ODE | solvers.SDE | solvers.SemiLinear] = {
    "ode": solvers.ODE(lambda t, x: -x),
    "reverse sde": problem(VP_, 1.0)[0],
    "flow": problem(VP_, 0.0)[0],
    "additive": solvers.SDE(lambda t, x: -x, lambda t, x: 0.1 + 0 * x, "additive"),
    "diagonal": solvers.SDE(lambda t, x: -x, lambda t, x: 0.1 + 0 * x, "diagonal"),
}


@cache
def solves(name: str, task: str) -> bool:
    solver = make(name)
    return bool(solvers.solve(TASKS[task], states((2,)), (0.9, 0.4), solver, **options(solver)).ok.all())


@every_solver
def test_the_impossible_is_refused_with_a_name_that_can(name: str) -> None:
    solver = make(name)
    own = solver.stochastic and not solver.needs_linear_part
    able = {
        "ode": not solver.needs_linear_part,
        "reverse sde": solver.stochastic and name != "pc(heun, langevin)",
        "flow": True,
        **{kind: own and kind in solver.noises for kind in ("additive", "diagonal")},
    }
    for task, can in able.items():
        if can:
            assert solves(name, task)
            continue
        with pytest.raises(TypeError) as caught:
            solves(name, task)
        offered = [other for other in solvers.available() if f'"{other}"' in str(caught.value)]
        assert offered, caught.value
        for other in offered:
            if other == "heun" and task != "ode":
                continue  # offered for ODEs, beside one for SDEs
            assert solves(other, task), f"{other} was offered"


@every_kind
def test_nothing_global_changes(name: str) -> None:
    solver = make(name)
    task, _ = problem(VP_, solver.default_eta)

    def snapshot() -> tuple[object, ...]:
        return (
            torch.get_rng_state().tolist(), repr(np.random.get_state(legacy=False)), random.getstate(),
            torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads(), str(np.geterr()),
        )  # fmt: skip

    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            before = snapshot()
            solvers.solve(task, states((2,)), solver=solver, **options(solver))
            assert snapshot() == before


@every_solver
def test_what_a_solver_says_of_itself(name: str) -> None:
    solver = make(name)
    assert solver.order >= 0 and solver.default_steps >= 1 and solver.default_eta >= 0
    orders = solver.orders
    assert solver.stochastic or (solver.default_eta == 0 and orders.strong is None and orders.weak is None)
    assert solver.name and "object at 0x" not in repr(solver)
    assert (type(solver).__doc__ or "").strip()
    if solver.adaptive:
        with pytest.raises(ValueError, match="positive tolerances"):
            solvers.solve(problem(VP_, 0.0)[0], states((1,)), solver=solver, rtol=-1.0)
