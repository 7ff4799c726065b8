"""Numerical integration of ODEs and SDEs on batches of tensors.

A solver sees a problem (:class:`ODE`, :class:`SDE` or :class:`SemiLinear`), never a network or a data set;
`sdediff` supplies the problems of diffusion models. Imports torch, never sdediff.
"""

from .brownian import BrownianPath, Driven
from .compose import (
    Corrector,
    Langevin,
    PredictorCorrector,
    Restart,
    Richardson,
    SongLangevin,
    StepDoubling,
    Underdamped,
)
from .exponential import (
    DDIM,
    DEIS,
    IPNDM,
    Ancestral,
    DPMSolver2,
    DPMSolver3,
    DPMSolverPP2M,
    DPMSolverPP2S,
    DPMSolverPP3M,
    DPMSolverPP3S,
    EDMHeun,
    ExponentialAdamsBashforth,
    UniPC,
)
from .grid_search import fit_grid
from .grids import (
    GRIDS,
    FittedGrid,
    cosine_grid,
    log_snr_grid,
    logistic_grid,
    quadratic_grid,
    rho_grid,
    uniform_grid,
)
from .noise import Noise, Stream
from .problems import ODE, SDE, SemiLinear
from .registry import available, get, register, unregister
from .runge_kutta import (
    AdaptiveRungeKutta,
    Bosh3,
    Dopri5,
    Dopri8,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    RungeKutta,
    RungeKutta4,
    Tsit5,
)
from .solution import Solution, SolverError, Status
from .solve import solve
from .solver import Orders, Request, Solver, Step, StepSolver
from .stochastic import SRA1, SRK, EulerMaruyama, GottaGoFast, Milstein, StochasticHeun
from .tableaus import Tableau

__all__ = [
    "DDIM",
    "DEIS",
    "GRIDS",
    "IPNDM",
    "ODE",
    "SDE",
    "SRA1",
    "SRK",
    "AdaptiveRungeKutta",
    "Ancestral",
    "Bosh3",
    "BrownianPath",
    "Corrector",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DPMSolverPP3S",
    "Dopri5",
    "Dopri8",
    "Driven",
    "EDMHeun",
    "Euler",
    "EulerMaruyama",
    "ExponentialAdamsBashforth",
    "FittedGrid",
    "GottaGoFast",
    "Heun",
    "Langevin",
    "Midpoint",
    "Milstein",
    "Noise",
    "Orders",
    "PredictorCorrector",
    "Ralston",
    "Request",
    "Restart",
    "Richardson",
    "RungeKutta",
    "RungeKutta4",
    "SemiLinear",
    "Solution",
    "Solver",
    "SolverError",
    "SongLangevin",
    "Status",
    "Step",
    "StepDoubling",
    "StepSolver",
    "StochasticHeun",
    "Stream",
    "Tableau",
    "Tsit5",
    "Underdamped",
    "UniPC",
    "available",
    "cosine_grid",
    "fit_grid",
    "get",
    "log_snr_grid",
    "logistic_grid",
    "quadratic_grid",
    "register",
    "rho_grid",
    "solve",
    "uniform_grid",
    "unregister",
]
