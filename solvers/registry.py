"""Solvers by name: a name works wherever an object does.

Other packages add theirs by :func:`register` or an entry point.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from .compose import Langevin, PredictorCorrector, Restart, SongLangevin, Underdamped
from .exponential import (
    DDIM,
    DEIS,
    ERSDE,
    IPNDM,
    SEEDS2,
    SEEDS3,
    Ancestral,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3MSDE,
    DPMSolverPP3S,
    DPMSolverPPSDE,
    EDMHeun,
    ExponentialAdamsBashforth,
    GaussianMultistep,
    SASolver,
    UniPC,
)
from .runge_kutta import Bosh3, Dopri5, Dopri8, Euler, Heun, Midpoint, Ralston, RungeKutta4, Tsit5
from .solver import Solver, check_tolerances
from .stochastic import SRA1, SRK, EulerMaruyama, GottaGoFast, Milstein, StochasticHeun

#: Entry-point group whose members are loaded when a name is not found: ``name =
#: "package.module:SolverClassOrFactory"``.
ENTRY_POINT_GROUP = "solvers.methods"

Factory = Callable[..., Solver]


def _predictor_corrector(snr: float = 0.16) -> PredictorCorrector:
    return PredictorCorrector(EulerMaruyama(), Langevin(snr))


def _song_predictor_corrector(snr: float = 0.16) -> PredictorCorrector:
    return PredictorCorrector(EulerMaruyama(), SongLangevin(snr))


def _underdamped_predictor_corrector(step: float = 0.32, iterations: int = 3) -> PredictorCorrector:
    return PredictorCorrector(EulerMaruyama(), Underdamped(step, iterations))


def _restart(intervals: Sequence[tuple[float, float, int]] = ((0.06, 0.3, 2),)) -> Restart:
    return Restart(EDMHeun(), intervals)


_FACTORIES: dict[str, Factory] = {
    "euler": Euler,
    "heun": Heun,
    "midpoint": Midpoint,
    "ralston": Ralston,
    "rk4": RungeKutta4,
    "bosh3": Bosh3,
    "tsit5": Tsit5,
    "dopri5": Dopri5,
    "dopri8": Dopri8,
    "euler-maruyama": EulerMaruyama,
    "stochastic-heun": StochasticHeun,
    "milstein": Milstein,
    "sra1": SRA1,
    "srk": SRK,
    "gotta-go-fast": GottaGoFast,
    "ddim": DDIM,
    "ancestral": Ancestral,
    "dpm-solver-2": DPMSolver2,
    "dpm-solver-3": DPMSolver3,
    "dpm++1": DDIM,
    "dpm++2s": DPMSolverPP2S,
    "dpm++3s": DPMSolverPP3S,
    "dpm++2m": DPMSolverPP2M,
    "dpm++3m": DPMSolverPP3M,
    "gaussian-multistep": GaussianMultistep,
    "unipc-1": partial(UniPC, order=1),
    "unipc-2": partial(UniPC, order=2),
    "unipc-3": partial(UniPC, order=3),
    "deis-tab1": partial(DEIS, degree=1),
    "deis-tab2": partial(DEIS, degree=2),
    "deis-tab3": partial(DEIS, degree=3),
    "exponential-ab": ExponentialAdamsBashforth,
    "ipndm": IPNDM,
    "edm-heun": EDMHeun,
    "dpm++sde": DPMSolverPPSDE,
    "dpm++2m-sde": DPMSolverPP2MSDE,
    "dpm++3m-sde": DPMSolverPP3MSDE,
    "seeds-1": Ancestral,
    "seeds-2": SEEDS2,
    "seeds-3": SEEDS3,
    "sa-solver": SASolver,
    "er-sde": ERSDE,
    "er-sde-1": partial(ERSDE, order=1),
    "er-sde-2": partial(ERSDE, order=2),
    "er-sde-3": partial(ERSDE, order=3),
    "pc": _predictor_corrector,
    "pc-song": _song_predictor_corrector,
    "pc-underdamped": _underdamped_predictor_corrector,
    "restart": _restart,
}


def _foreign() -> dict[str, Factory]:
    """Wrapped solvers whose library is installed."""
    found: dict[str, Factory] = {}

    def bind(cls: Factory, method: str) -> Factory:
        return partial(cls, method)

    if find_spec("torchdiffeq"):
        from .backends.torchdiffeq import METHODS as torchdiffeq_methods
        from .backends.torchdiffeq import TorchDiffEq

        found |= {f"torchdiffeq/{m}": bind(TorchDiffEq, m) for m in torchdiffeq_methods}
    if find_spec("torchode"):
        from .backends.torchode import METHODS as torchode_methods
        from .backends.torchode import TorchOde

        found |= {f"torchode/{m}": bind(TorchOde, m) for m in torchode_methods}
    if find_spec("torchsde"):
        from .backends.torchsde import METHODS as torchsde_methods
        from .backends.torchsde import TorchSDE

        found |= {f"torchsde/{m}": bind(TorchSDE, m) for m in torchsde_methods}
    if find_spec("diffusers"):
        from .backends.diffusers import METHODS as diffusers_methods
        from .backends.diffusers import Diffusers

        found |= {f"diffusers/{m}": bind(Diffusers, m) for m in diffusers_methods}
    if find_spec("scipy"):
        from .backends.scipy import METHODS as scipy_methods
        from .backends.scipy import SciPy

        found |= {f"scipy/{m}": bind(SciPy, m) for m in scipy_methods}
    return found


def _factories() -> dict[str, Factory]:
    return _FACTORIES | _foreign()


def register(name: str, factory: Factory) -> None:
    """Add a solver under a name.

    Args:
        name: A new name.
        factory: A solver class, or a function that returns a solver; its keyword arguments can be given to
            :func:`get`.

    Raises:
        ValueError: If the name is taken.

    Example:
        >>> import solvers
        >>> register("my-euler", solvers.Euler)
        >>> solvers.get("my-euler")
        Euler()
        >>> unregister("my-euler")
    """
    if name in _factories():
        raise ValueError(f"a solver named {name!r} exists already: register yours under another name")
    _FACTORIES[name] = factory


def unregister(name: str) -> None:
    """Take a registered name away again."""
    _FACTORIES.pop(name, None)


def available() -> list[str]:
    """Names of the solvers that can run here, those of installed entry points included."""
    return sorted({*_factories(), *(p.name for p in entry_points(group=ENTRY_POINT_GROUP))})


def get(name: str, **options: Any) -> Solver:
    """A solver by name.

    Args:
        name: One of :func:`available`.
        **options: Constructor arguments, such as rtol and atol.

    Returns:
        A new solver.

    Raises:
        ValueError: If the name is unknown; the nearest names are offered.
        TypeError: If the name is no string, the solver does not take an option, or what bears the name makes
            no solver.
        ImportError: If an entry point of that name does not load.

    Example:
        >>> get("dopri5", rtol=1e-6)
        Dopri5(rtol=1e-06, atol=1e-05)
    """
    if not isinstance(name, str):
        raise TypeError(f'name={name!r} is no name of a solver: give a string such as "dopri5"')
    factories = _FACTORIES if name in _FACTORIES else _factories()
    if name not in factories:
        for point in entry_points(group=ENTRY_POINT_GROUP, name=name):
            factories[name] = _load(point)
    if name not in factories:
        lower = {known.lower(): known for known in available()}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.4)]
        hint = f"did you mean {' or '.join(near)}?" if near else "solvers.available() lists them all"
        raise ValueError(f"there is no solver named {name!r}: {hint}")
    _check_options(name, factories[name], options)
    solver = factories[name](**options)
    if not isinstance(solver, Solver):
        raise TypeError(
            f"the entry point or factory {name!r} returned a {type(solver).__name__}, not a solver: let it "
            "be a subclass of solvers.Solver, or a function that returns one of its objects"
        )
    return solver


def _load(point: Any) -> Factory:
    """What an entry point names."""
    try:
        factory = point.load()
    except Exception as error:
        raise ImportError(
            f"the entry point {point.name!r} of {ENTRY_POINT_GROUP!r} does not load, for a "
            f"{type(error).__name__}: mend or uninstall the package that declares it"
        ) from error
    if not callable(factory):
        raise TypeError(
            f"the entry point {point.name!r} of {ENTRY_POINT_GROUP!r} names a {type(factory).__name__}: let "
            "it name a subclass of solvers.Solver, or a function that returns a solver"
        )
    return factory


def _check_options(name: str, factory: Factory, options: dict[str, Any]) -> None:
    """Raise a TypeError for options that the factory does not take."""
    if not options:
        return
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # it tells no signature
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    known = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    wrong = [f"{k}={v!r}" for k, v in options.items() if k not in known]
    if wrong:
        mend = f"the options {', '.join(known)} only: give" if known else "no options: leave"
        ending = "those" if known else "them out"
        raise TypeError(f"{name} was given {', '.join(wrong)} and takes {mend} {ending}")


def resolve(solver: str | Solver, rtol: float | None = None, atol: float | None = None) -> Solver:
    """A solver from a name or an object, with other tolerances where they are given.

    Raises:
        TypeError: If tolerances are given to a fixed-grid solver, or `solver` is neither a name nor a solver.
        ValueError: If the name is unknown.
    """
    if isinstance(solver, str):
        solver = get(solver)
    if not isinstance(solver, Solver):
        raise TypeError(
            f'solver={solver!r} is neither a name nor a solver: give "dopri5", or an object such as '
            "solvers.Dopri5()"
        )
    tolerances = {k: v for k, v in (("rtol", rtol), ("atol", atol)) if v is not None}
    if not tolerances:
        return solver
    if not solver.adaptive:
        raise TypeError(f"{solver.name} works on a fixed grid and takes steps= or grid=, not rtol= or atol=")
    return _with(solver, tolerances)


def _with(solver: Solver, tolerances: dict[str, float]) -> Solver:
    """A copy of the solver with other tolerances."""
    solver = copy.copy(solver)
    vars(solver).update(tolerances)
    check_tolerances(solver.rtol, solver.atol)  # type: ignore[attr-defined]
    return solver
