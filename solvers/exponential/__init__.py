"""Exponential methods: the linear part of a diffusion is exact, only the denoiser is approximated."""

from .adams import DPMSolverPP2M, DPMSolverPP3M, ExponentialAdamsBashforth, UniPC
from .ddim import DDIM, Ancestral
from .deis import DEIS, IPNDM
from .edm import EDMHeun
from .er import ERSDE, NOISE_SCALES, noise_scale_eta
from .gaussian import GaussianMultistep
from .sde_multistep import DPMSolverPP2MSDE, DPMSolverPP3MSDE, SASolver
from .seeds import SEEDS2, SEEDS3, DPMSolverPPSDE
from .singlestep import DPMSolver2, DPMSolver3, DPMSolverPP2S, DPMSolverPP3S

__all__ = [
    "DDIM",
    "DEIS",
    "ERSDE",
    "IPNDM",
    "NOISE_SCALES",
    "SEEDS2",
    "SEEDS3",
    "Ancestral",
    "DPMSolver2",
    "DPMSolver3",
    "DPMSolverPP2M",
    "DPMSolverPP2MSDE",
    "DPMSolverPP2S",
    "DPMSolverPP3M",
    "DPMSolverPP3MSDE",
    "DPMSolverPP3S",
    "DPMSolverPPSDE",
    "EDMHeun",
    "ExponentialAdamsBashforth",
    "GaussianMultistep",
    "SASolver",
    "UniPC",
    "noise_scale_eta",
]
