"""What goes wrong in a solve, for every solver of the registry: it is told, and it spares the rest."""

from __future__ import annotations

import math
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdediff
import solvers
from sdediff.processes import EDM, VE, VP, Cosine, GaussianProcess, RectifiedFlow, SubVP
from solvers import ODE, SemiLinear, Status, solve
from solvers.problems import expand

F64 = torch.float64
PROCESS = VP(t_min=1e-2)
NAMES = solvers.available()
every_solver = pytest.mark.parametrize("name", NAMES)
#: Ours, and foreign methods that differ in what their wrapper does: for what only it decides.
FOREIGN = (
    "scipy/RK45", "scipy/LSODA", "torchdiffeq/dopri5", "torchdiffeq/rk4", "torchdiffeq/fixed_adams",
    "torchsde/srk", "torchsde/reversible_heun", "torchode/dopri5", "diffusers/DDPM", "diffusers/HeunDiscrete",
    "diffusers/KDPM2AncestralDiscrete", "diffusers/SASolver", "diffusers/IPNDM", "diffusers/EDMEuler",
)  # fmt: skip
KINDS = [name for name in NAMES if "/" not in name or name in FOREIGN]
every_kind = pytest.mark.parametrize("name", KINDS)
HAS_MAX_NFE = [n for n in NAMES if hasattr(solvers.get(n), "max_nfe") and solvers.get(n).adaptive]
HAS_MIN_STEP = [n for n in NAMES if hasattr(solvers.get(n), "min_step")]


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def flag(*values: bool) -> Tensor:
    return torch.tensor(values)


def how(solver: solvers.Solver, steps: int = 6) -> dict[str, Any]:
    if not solver.adaptive:
        return {"steps": steps}
    if solver.stochastic:  # strong order 1 costs a decade of steps for one of error
        return dict.fromkeys(("rtol", "atol"), 3e-2)
    return dict.fromkeys(("rtol", "atol"), 1e-3 if solver.order < 3 else 1e-4)


@cache
def schedule(process: GaussianProcess, t: float) -> tuple[float, float]:
    """Alpha and the noise's variance."""
    return float(process.alpha(t)), float(process.sigma(t)) ** 2


class Network:
    """Blurred signs; `bad` rows get `spoil` instead once t is below `after`; notes its times."""

    def __init__(
        self, process: GaussianProcess = PROCESS, spoil: float = math.nan, after: float = math.inf
    ) -> None:
        self.process, self.spoil, self.after = process, spoil, after
        self.times: list[float] = []

    def __call__(self, t: float | Tensor, x: Tensor, bad: Tensor | None = None) -> Tensor:
        if isinstance(t, Tensor):
            self.times += t.reshape(-1).tolist()
            alpha, var = self.process.alpha(t.double()), self.process.sigma(t.double()) ** 2
            alpha, var = (expand(c.to(x.dtype), x) for c in (alpha, var))
        else:
            self.times.append(float(t))
            alpha, var = schedule(self.process, float(t))
        total = 0.25 * alpha**2 + var
        value = (0.25 * alpha * x + var * torch.tanh(alpha * x / total)) / total
        if bad is None:
            return value
        return torch.where(expand(bad & (t < self.after), x), self.spoil * x, value)


def task(name: str, network: Network, *bad: bool) -> SemiLinear:
    eta = solvers.get(name).default_eta
    return SemiLinear(network.process, network, eta, per_sample=(flag(*bad),) if bad else ())


# -- one sample fails ------------------------------------------------------------------------------------


SPOILT = {"nan": (math.nan, 0.5), "nan at once": (math.nan, math.inf), "infinite": (math.inf, 0.5),
          "explodes": (1e250, 0.5)}  # fmt: skip


def spoilt() -> list[Any]:
    """NaN midway for every solver; all four for the adaptive ones, one more in turn for the others."""
    nan, *others = SPOILT
    return [
        pytest.param(name, *SPOILT[kind], id=f"{name}-{kind}")
        for k, name in enumerate(NAMES)
        for kind in (nan, *(others if solvers.get(name).adaptive else [others[k % len(others)]]))
    ]


@pytest.mark.parametrize(("name", "spoil", "after"), spoilt())
def test_a_failing_sample_is_named_and_spares_its_neighbours(name: str, spoil: float, after: float) -> None:
    """Its status says so; where samples do not share steps the others are as alone, statistics and all."""
    few = {"max_steps": 150} if name.startswith("torchode/") else {}  # it tries a failing row to the last
    solver, network = solvers.get(name, **few), Network(spoil=spoil, after=after)
    x, names = rows(0.3, -1.2, 0.8), torch.tensor([4, 2, 9])
    sol = solve(task(name, network, False, True, False), x, solver=solver, indices=names, **how(solver))
    assert sol.x.shape == x.shape and not bool(sol.ok[1]), "the failing row is told"
    message = sol.describe_failure()
    if solver.batch_coupled:  # where samples share their steps, one may fail all; none may hang or raise
        assert f"of 3 samples failed, the first at row {0 if not sol.ok[0] else 1}" in message
        return
    assert sol.ok.tolist() == [True, False, True]
    assert message.startswith("1 of 3 samples failed, the first at row 1, t = ")
    keep = torch.tensor([0, 2])
    alone = solve(
        task(name, network, False, False), x[keep], solver=solver, indices=names[keep], **how(solver)
    )
    torch.testing.assert_close(sol.x[keep], alone.x, rtol=1e-10, atol=1e-10)
    shared = () if name.startswith("torchode/") else ("nfe",)  # its evaluations are those of the batch
    for field in ("t", "accepted", "rejected", "status", *shared):
        assert torch.equal(getattr(sol, field)[keep], getattr(alone, field)), field


@pytest.mark.parametrize("name", [n for n in NAMES if solvers.get(n).adaptive])
def test_adaptive_solvers_keep_what_was_reached(name: str) -> None:
    """Rows that are bad from t = 0.5 on stop there, with a finite state."""
    solver = solvers.get(name)
    sol = solve(task(name, Network(after=0.5), True, True), rows(0.3, -1.2), solver=solver, **how(solver))
    assert not bool(sol.ok.any()) and bool(torch.isfinite(sol.x).all())
    assert bool((sol.t >= 0.45).all()), sol.t
    # Implicit methods of SciPy, and dopri8 of torchdiffeq, give up where a first trial step meets NaN;
    # torchode keeps the start.
    assert bool((sol.t < 1.0).all()) or name.startswith(
        ("scipy/BDF", "scipy/Radau", "torchdiffeq/dopri8", "torchode/")
    )


@pytest.mark.parametrize("name", HAS_MAX_NFE)
def test_max_nfe_keeps_the_partial_result(name: str) -> None:
    """A budget that one sample of two exceeds: it stops with what it has, and is named."""
    solver = solvers.get(name, max_nfe=40)
    tight = dict.fromkeys(("rtol", "atol"), 1e-3 if solver.stochastic else 1e-8)
    sol = solve(task(name, Network()), rows(0.3, -1.2), solver=solver, **tight)
    assert sol.status.tolist() == [int(Status.MAX_NFE)] * 2
    assert bool((sol.nfe <= 40 + 14).all()), "one step more at most"
    assert bool((sol.t < 1.0).all()) and bool((sol.t > PROCESS.t_min).all())
    assert bool(torch.isfinite(sol.x).all())
    message = sol.describe_failure()
    assert "2 of 2 samples failed, the first at row 0" in message and "raise max_nfe" in message


@pytest.mark.parametrize("name", HAS_MIN_STEP)
def test_steps_below_the_least_end_a_sample(name: str) -> None:
    solver = solvers.get(name, min_step=0.2)
    tight = dict.fromkeys(("rtol", "atol"), 1e-9)
    sol = solve(task(name, Network()), rows(0.3, -1.2), solver=solver, **tight)
    assert sol.status.tolist() == [int(Status.STEP_TOO_SMALL)] * 2 and bool(torch.isfinite(sol.x).all())
    assert "below min_step" in sol.describe_failure()


def test_a_models_sample_names_the_row_that_failed() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(x.abs().sum(1, keepdim=True) > 1e9, math.nan, -x * math.nan)

    model = sdediff.from_callable(network, process=PROCESS, prediction="score", data_shape=(2,))
    with pytest.raises(solvers.SolverError, match="4 of 4 samples failed, the first at row 0") as caught:
        model.sample(4, solver="ddim", steps=3, on_failure="raise")
    assert caught.value.solution.status.tolist() == [int(Status.NON_FINITE)] * 4


# -- no solver leaves its interval -----------------------------------------------------------------------

PROCESSES = (VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow())


@every_solver
def test_no_solver_leaves_the_interval(name: str) -> None:
    """Every process, whole and part, and every named grid; the network asserts it by its times."""
    solver = solvers.get(name)
    for process in PROCESSES if name in KINDS else PROCESSES[:1]:
        network = Network(process)
        problem = task(name, network)
        x = process.prior_std * rows(0.4, -1.1)
        a, b = process.t_max, process.t_min
        whole, part = (a, b), (a - 0.3 * (a - b), b + 0.1 * (a - b))
        runs: list[tuple[tuple[float, float], str | None]] = [(whole, None)]
        if isinstance(process, VP):
            runs += [(part, None)]
            if solver.default_eta == 0 and not solver.noisy:
                runs += [(whole[::-1], None), (part[::-1], None)]
        if not (solver.adaptive or solver.equal_steps):
            runs += [(whole, grid) for grid in solvers.GRIDS] if isinstance(process, VP) else []
            runs += [(part, "uniform")]
        for span, grid in runs:
            network.times.clear()
            sol = solve(problem, x, span, solver, **how(solver, 4) | ({"grid": grid} if grid else {}))
            assert min(network.times) >= min(span) and max(network.times) <= max(span), (process, grid, span)
            if not (solver.equal_steps or grid == "uniform" or span[0] < span[1]):
                # Four uniform steps may be unstable near the data.
                assert bool(sol.ok.all()), (process, grid, span)


@pytest.mark.parametrize("process", (Cosine(), RectifiedFlow()), ids=lambda p: type(p).__name__)
@every_kind
def test_no_solver_leaves_an_interval_that_begins_where_alpha_vanishes(
    name: str, process: GaussianProcess
) -> None:
    """The ODE from t = 1, log-SNR minus infinity: finite, and no time beyond either end."""
    solver = solvers.get(name)
    network = Network(process)
    how_ = how(solver, 5) | ({} if solver.adaptive else {"grid": "uniform"})
    if solver.noisy and solver.default_eta:
        pytest.skip("correctors act on the SDE here")
    sol = solve(SemiLinear(process, network), rows(0.4, -1.1), (1.0, 0.1), solver, **how_)
    assert bool(sol.ok.all()) and bool(torch.isfinite(sol.x).all())
    assert min(network.times) >= 0.1 and max(network.times) <= 1.0


# -- interrupts ------------------------------------------------------------------------------------------


class Interrupted(Network):
    """Raises what Ctrl-C does at its third call."""

    calls = 0

    def __call__(self, t: float | Tensor, x: Tensor, bad: Tensor | None = None) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return super().__call__(t, x, bad)


@every_kind
def test_an_interrupt_passes_through_and_spoils_no_later_solve(name: str) -> None:
    solver = solvers.get(name)
    x = rows(0.4, -1.1)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        solve(task(name, Interrupted()), x, solver=solver, seed=3, **how(solver))
    again = solve(task(name, Network()), x, solver=solver, seed=3, **how(solver))
    fresh = solve(task(name, Network()), x, solver=solvers.get(name), seed=3, **how(solver))
    assert torch.equal(again.x, fresh.x) and torch.equal(again.nfe, fresh.nfe)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("training", (True, False))
@pytest.mark.parametrize("name", ("ddim", "dopri5", "pc", "restart", "torchdiffeq/dopri5", "scipy/RK45"))
def test_an_interrupted_model_keeps_its_mode(name: str, training: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.calls, self.stop = nn.Parameter(torch.ones(())), 0, True

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            if self.stop and self.calls == 3:
                raise KeyboardInterrupt
            return self.weight * x

    net = Net()
    model = sdediff.DiffusionModel(net, process=sdediff.VP(), prediction="eps", data_shape=(2,)).train(
        training
    )
    how_ = {} if solvers.get(name).adaptive else {"steps": 5}
    grad = torch.is_grad_enabled()
    with pytest.raises(KeyboardInterrupt):
        model.sample(3, solver=name, **how_)
    assert model.training == net.training == training and torch.is_grad_enabled() == grad
    assert net.weight.requires_grad and net.weight.grad is None
    net.stop = False
    first = model.sample(3, solver=name, seed=1, **how_)
    assert torch.equal(first, model.sample(3, solver=name, seed=1, **how_)) and bool(
        torch.isfinite(first).all()
    )


@every_solver
def test_a_users_own_error_passes_through(name: str) -> None:
    solver = solvers.get(name)
    for error in (ValueError, RuntimeError, AssertionError, ZeroDivisionError):

        def network(t: float | Tensor, x: Tensor, error: type[Exception] = error) -> Tensor:
            raise error("mine")

        with pytest.raises(error, match="mine"):
            solve(SemiLinear(PROCESS, network, solver.default_eta), rows(1.0), solver=solver, **how(solver))


# -- solvers of other packages ---------------------------------------------------------------------------

MODULE = '''
import solvers


class Half(solvers.Euler):
    """Euler's method, from another package."""


def tuned(tableau_order=2):
    return solvers.Heun() if tableau_order == 2 else solvers.RungeKutta4()
'''
ENTRY_POINTS = "[solvers.methods]\ntheir-euler = their_solvers:Half\ntheir-best = their_solvers:tuned\n"


def test_an_installed_packages_solvers_are_found_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package with its metadata, as an installer leaves them: listed, made, given options and run."""
    (tmp_path / "their_solvers.py").write_text(MODULE)
    info = tmp_path / "their_solvers-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-solvers\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    assert "their-euler" not in solvers.available()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert {"their-euler", "their-best"} <= set(solvers.available())
    assert find_spec("their_solvers") is not None and "their_solvers" not in sys.modules, (
        "listing loads nothing"
    )
    problem = ODE(lambda t, x: -x)
    theirs = solve(problem, rows(1.0), (0.0, 1.0), "their-euler", steps=5)
    assert torch.equal(theirs.x, solve(problem, rows(1.0), (0.0, 1.0), "euler", steps=5).x)
    assert repr(solvers.get("their-euler")) == "Half()" and solvers.get("their-best").order == 2
    assert solvers.get("their-best", tableau_order=4).order == 4
    with pytest.raises(ValueError, match="did you mean their-euler"):
        solvers.get("their-eulr")
    model = sdediff.reference.GaussianMixture(means=[[-2.0], [2.0]], covs=[0.1, 0.3]).model(sdediff.VP())
    assert model.sample(4, solver="their-euler", steps=5).shape == (4, 1)
    sys.modules.pop("their_solvers", None)
