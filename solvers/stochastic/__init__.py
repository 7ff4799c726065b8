r"""Stochastic solvers for Itô SDEs with additive or diagonal noise, in either direction of time.

Where t falls, as in a reverse diffusion, W is a Brownian motion in the direction of the solve: a step from t
to t + h has drift h f with h < 0, and noise of variance abs(h).
"""

from .adaptive import GottaGoFast
from .euler import EulerMaruyama, StochasticHeun, add_noise
from .milstein import Milstein
from .runge_kutta import SRA1, SRK

__all__ = ["SRA1", "SRK", "EulerMaruyama", "GottaGoFast", "Milstein", "StochasticHeun", "add_noise"]
