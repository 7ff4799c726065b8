"""The discrete-time Markov chain of DDPM: a process at some of its times, its reverse, losses and bound."""

from .bound import ChainBound
from .discrete import Chain, Posterior
from .losses import Indices, VariationalLoss, hybrid_loss, simple_loss
from .reverse import ReverseChain
from .schedules import cosine_betas, linear_betas, sigmoid_betas

__all__ = [
    "Chain",
    "ChainBound",
    "Indices",
    "Posterior",
    "ReverseChain",
    "VariationalLoss",
    "cosine_betas",
    "hybrid_loss",
    "linear_betas",
    "sigmoid_betas",
    "simple_loss",
]
