"""Closed-form data under every Gaussian process: ground truth for scores, densities, flows and samplers."""

from sdediff.reference.base import ClosedForm
from sdediff.reference.discretised import DiscretisedMixture
from sdediff.reference.empirical import Empirical
from sdediff.reference.gaussian import Gaussian
from sdediff.reference.mixture import GaussianMixture
from sdediff.reference.problems import eight_gaussians, random_mixture, random_product, rings
from sdediff.reference.product import RotatedProduct

__all__ = [
    "ClosedForm",
    "DiscretisedMixture",
    "Empirical",
    "Gaussian",
    "GaussianMixture",
    "RotatedProduct",
    "eight_gaussians",
    "random_mixture",
    "random_product",
    "rings",
]
