"""A toolkit for score-based generative modelling in continuous time.

Processes, models, training by denoising score matching, sampling and exact likelihoods; the numerical solvers
are the package `solvers`, reachable as `sdediff.solvers` too.
"""

import sys

import solvers

if not hasattr(solvers, "SemiLinear"):  # somebody's own solvers.py stands before ours on the path
    raise ImportError(
        "sdediff needs its own package solvers, but "
        f"{getattr(solvers, '__file__', 'another module of that name')} "
        "was imported in its place: rename that file, or start Python in another folder"
    )

from . import chain, data, networks, reference, sharding
from .anomaly import AnomalyScores, anomaly_score
from .callables import from_callable
from .classification import Classification, classify
from .data import dequantise
from .distribution import ModelDistribution
from .grids import fit_grid, load_grid, save_grid
from .interpolation import interpolate
from .likelihood import (
    Divergence,
    Exact,
    Hutchinson,
    LogLikelihood,
    Quantisation,
    bits_per_dim,
    fit_dequantiser,
)
from .metrics import ROC, roc
from .model import DiffusionModel
from .processes import EDM, VE, VP, Cosine, GaussianProcess, RectifiedFlow, SubVP
from .serialization import load, save
from .training import TrainingResult, fit

__version__ = "0.1.0"

sys.modules[f"{__name__}.solvers"] = solvers  # so that `from sdediff.solvers import Heun` works

__all__ = [
    "EDM",
    "ROC",
    "VE",
    "VP",
    "AnomalyScores",
    "Classification",
    "Cosine",
    "DiffusionModel",
    "Divergence",
    "Exact",
    "GaussianProcess",
    "Hutchinson",
    "LogLikelihood",
    "ModelDistribution",
    "Quantisation",
    "RectifiedFlow",
    "SubVP",
    "TrainingResult",
    "anomaly_score",
    "bits_per_dim",
    "chain",
    "classify",
    "data",
    "dequantise",
    "fit",
    "fit_dequantiser",
    "fit_grid",
    "from_callable",
    "interpolate",
    "load",
    "load_grid",
    "networks",
    "reference",
    "roc",
    "save",
    "save_grid",
    "sharding",
    "solvers",
]
