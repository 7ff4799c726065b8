"""Exact log-likelihood by the probability-flow ODE, with its errors."""

from .bounds import elbo, i_mmse
from .coupled import coupled_log_likelihood
from .dequantisation import Dequantisation, TruncatedNormal, Uniform, Variational
from .dequantiser import fit_dequantiser
from .discrete import discrete_log_likelihood
from .divergence import Divergence
from .engine import log_likelihood
from .exact import Exact
from .gradients import differentiable_log_prob
from .hutchinson import Hutchinson
from .ito import sample_with_ito_density
from .nodes import Nodes
from .pilot import fit_nodes
from .quantisation import Quantisation
from .report import Gap, LikelihoodReport, likelihood_report, score_asymmetry
from .result import Kind, LogLikelihood, Mean, bits_per_dim

__all__ = [
    "Dequantisation",
    "Divergence",
    "Exact",
    "Gap",
    "Hutchinson",
    "Kind",
    "LikelihoodReport",
    "LogLikelihood",
    "Mean",
    "Nodes",
    "Quantisation",
    "TruncatedNormal",
    "Uniform",
    "Variational",
    "bits_per_dim",
    "coupled_log_likelihood",
    "differentiable_log_prob",
    "discrete_log_likelihood",
    "elbo",
    "fit_dequantiser",
    "fit_nodes",
    "i_mmse",
    "likelihood_report",
    "log_likelihood",
    "sample_with_ito_density",
    "score_asymmetry",
]
