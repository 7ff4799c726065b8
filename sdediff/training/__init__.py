"""Training by denoising score matching."""

from sdediff.training.adaptive import Adaptive
from sdediff.training.bound import VariationalBound
from sdediff.training.conditions import drop
from sdediff.training.ema import EMA, Averages, Exponential, Power, Profile
from sdediff.training.fit import AdamW, TrainingResult, fit
from sdediff.training.losses import LOSSES, DenoisingLoss, Loss
from sdediff.training.objective import DenoisingObjective, Draw, Objective, StepLoss, squared_error
from sdediff.training.posthoc import reconstruct, reconstruct_model
from sdediff.training.preview import Preview
from sdediff.training.schedules import Cosine, InverseSqrt
from sdediff.training.stf import StableTargets
from sdediff.training.times import (
    LogitNormal,
    LogNormal,
    Mixture,
    Tabulated,
    Times,
    UniformLogSNR,
    UniformTime,
    stratified,
)
from sdediff.training.trainer import Callback, Moment
from sdediff.training.uncertainty import LearnedUncertainty
from sdediff.training.validation import NoiseLevels
from sdediff.training.weightings import (
    P2,
    X0,
    Balanced,
    Eps,
    Karras,
    Likelihood,
    MinSNR,
    Native,
    Score,
    Sigmoid,
    TruncatedSNR,
)

__all__ = [
    "EMA",
    "LOSSES",
    "P2",
    "X0",
    "AdamW",
    "Adaptive",
    "Averages",
    "Balanced",
    "Callback",
    "Cosine",
    "DenoisingLoss",
    "DenoisingObjective",
    "Draw",
    "Eps",
    "Exponential",
    "InverseSqrt",
    "Karras",
    "LearnedUncertainty",
    "Likelihood",
    "LogNormal",
    "LogitNormal",
    "Loss",
    "MinSNR",
    "Mixture",
    "Moment",
    "Native",
    "NoiseLevels",
    "Objective",
    "Power",
    "Preview",
    "Profile",
    "Score",
    "Sigmoid",
    "StableTargets",
    "StepLoss",
    "Tabulated",
    "Times",
    "TrainingResult",
    "TruncatedSNR",
    "UniformLogSNR",
    "UniformTime",
    "VariationalBound",
    "drop",
    "fit",
    "reconstruct",
    "reconstruct_model",
    "squared_error",
    "stratified",
]
