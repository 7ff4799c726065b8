"""Exponential methods: the linear part of a diffusion is exact, only the denoiser is approximated."""

from .adams import DPMSolverPP2M, DPMSolverPP3M, ExponentialAdamsBashforth, UniPC
from .ddim import DDIM, Ancestral

__all__ = ["DDIM", "Ancestral", "DPMSolverPP2M", "DPMSolverPP3M", "ExponentialAdamsBashforth", "UniPC"]
