"""Pictures: images, trajectories, log-likelihoods and their errors, ROC curves, densities of the plane.

Every function returns a :class:`matplotlib.figure.Figure` of its own; `pyplot` and its global state are never
touched. :func:`save` writes it, whole or not at all.
"""

from .densities import density_2d, log_prob_histogram, roc_curves, scatter_2d
from .errors import Bins, binned_log_prob, calibration
from .figures import COLOURS, save
from .images import image_grid, trajectories
from .training import losses, noise_levels, samples

__all__ = [
    "COLOURS",
    "Bins",
    "binned_log_prob",
    "calibration",
    "density_2d",
    "image_grid",
    "log_prob_histogram",
    "losses",
    "noise_levels",
    "roc_curves",
    "samples",
    "save",
    "scatter_2d",
    "trajectories",
]
