"""Training by denoising score matching."""

from sdediff.training.ema import EMA
from sdediff.training.fit import AdamW, TrainingResult, fit
from sdediff.training.losses import LOSSES, DenoisingLoss
from sdediff.training.objective import DenoisingObjective, Draw, Objective, StepLoss, squared_error
from sdediff.training.schedules import Cosine, InverseSqrt
from sdediff.training.times import LogNormal, UniformLogSNR, UniformTime, stratified
from sdediff.training.validation import NoiseLevels
from sdediff.training.weightings import X0, Balanced, Eps, Karras, Likelihood, Native

__all__ = [
    "EMA",
    "LOSSES",
    "X0",
    "AdamW",
    "Balanced",
    "Cosine",
    "DenoisingLoss",
    "DenoisingObjective",
    "Draw",
    "Eps",
    "InverseSqrt",
    "Karras",
    "Likelihood",
    "LogNormal",
    "Native",
    "NoiseLevels",
    "Objective",
    "StepLoss",
    "TrainingResult",
    "UniformLogSNR",
    "UniformTime",
    "fit",
    "squared_error",
    "stratified",
]
