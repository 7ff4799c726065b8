"""Solvers made of solvers: correctors, predictor-corrector, restarts, error estimates from two solves."""

from .correctors import Corrector, Langevin, SongLangevin
from .extrapolation import StepDoubling
from .predictor_corrector import PredictorCorrector

__all__ = ["Corrector", "Langevin", "PredictorCorrector", "SongLangevin", "StepDoubling"]
