"""Exponential methods: the linear part of a diffusion is exact, only the denoiser is approximated."""

from .adams import DPMSolverPP2M, DPMSolverPP3M, ExponentialAdamsBashforth, UniPC
from .ddim import DDIM, Ancestral
from .deis import DEIS, IPNDM
from .edm import EDMHeun
from .singlestep import DPMSolver2, DPMSolver3, DPMSolverPP2S, DPMSolverPP3S

__all__ = [
    "DDIM",
    "DEIS",
    "IPNDM",
    "Ancestral",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DPMSolverPP3S",
    "EDMHeun",
    "ExponentialAdamsBashforth",
    "UniPC",
]
