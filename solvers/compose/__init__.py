"""Solvers made of solvers: correctors, predictor-corrector, restarts, error estimates from two solves."""

from .correctors import Corrector, Langevin, SongLangevin, Underdamped
from .extrapolation import Richardson, StepDoubling
from .predictor_corrector import PredictorCorrector
from .restart import Restart

__all__ = [
    "Corrector",
    "Langevin",
    "PredictorCorrector",
    "Restart",
    "Richardson",
    "SongLangevin",
    "StepDoubling",
    "Underdamped",
]
