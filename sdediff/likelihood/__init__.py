"""Exact log-likelihood by the probability-flow ODE, with its errors."""

from .dequantisation import Dequantisation, TruncatedNormal, Uniform, Variational
from .dequantiser import fit_dequantiser
from .discrete import discrete_log_likelihood
from .divergence import Divergence
from .engine import log_likelihood
from .exact import Exact
from .hutchinson import Hutchinson
from .nodes import Nodes
from .quantisation import Quantisation
from .result import Kind, LogLikelihood, Mean, bits_per_dim

__all__ = [
    "Dequantisation",
    "Divergence",
    "Exact",
    "Hutchinson",
    "Kind",
    "LogLikelihood",
    "Mean",
    "Nodes",
    "Quantisation",
    "TruncatedNormal",
    "Uniform",
    "Variational",
    "bits_per_dim",
    "discrete_log_likelihood",
    "fit_dequantiser",
    "log_likelihood",
]
