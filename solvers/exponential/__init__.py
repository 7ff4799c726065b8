"""Exponential methods: the linear part of a diffusion is exact, only the denoiser is approximated."""

from .ddim import DDIM, Ancestral

__all__ = ["DDIM", "Ancestral"]
