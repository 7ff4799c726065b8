"""Exact log-likelihood by the probability-flow ODE, with its errors."""

from .divergence import Divergence
from .engine import log_likelihood
from .exact import Exact
from .hutchinson import Hutchinson
from .result import Kind, LogLikelihood, Mean, bits_per_dim

__all__ = [
    "Divergence",
    "Exact",
    "Hutchinson",
    "Kind",
    "LogLikelihood",
    "Mean",
    "bits_per_dim",
    "log_likelihood",
]
