"""Print the error of log_prob against closed forms: `python tests/benchmarks/likelihood_accuracy.py`.

Exact scores and traces, float64; mixtures with full covariances and non-zero mean, d = 2, 16 and 64. Errors
are mean absolute ones in nats against the data's own density, so they hold the noise left at t_min and the
prior: of the default settings; of tight ones (tolerance 1e-8, 129 nodes, a wider interval of noise,
`SETTINGS`); of the tight ones with the textbook prior; what remains of the tight error without its own
estimates of truncation and prior mismatch. Last, the largest difference between a sample's log-density and
log_prob of the sample, by default settings.
"""

from __future__ import annotations

import math

import torch

import sdediff
from sdediff import Exact
from sdediff.reference import GaussianMixture, random_mixture
from sdediff.text import aligned, machine

POINTS = 48
#: The process as it comes; one and an interval for tight work.
SETTINGS = [
    (sdediff.VP(), sdediff.VP(), (1e-6, 1.1)),
    (sdediff.SubVP(), sdediff.SubVP(), (1e-4, 1.1)),
    (sdediff.VE(), sdediff.VE(sigma_min=1e-4, sigma_max=1000.0), None),
    (sdediff.Cosine(), sdediff.Cosine(), (1e-5, 0.999)),
    (sdediff.EDM(), sdediff.EDM(), (1e-4, 1000.0)),
    (sdediff.RectifiedFlow(), sdediff.RectifiedFlow(), (1e-5, 0.999)),
]


def mixture(dim: int) -> GaussianMixture:
    """Modes well apart, a mean of norm about 5."""
    data = random_mixture(dim, 3 if dim == 2 else 4, seed=0, dtype=torch.float64)
    return GaussianMixture(data.means + 5 / dim**0.5, data.covs, data.weights)


def main() -> None:
    """Print one row a dimension and process."""
    torch.set_num_threads(1)
    print(f"{POINTS} points, {machine()}")
    rows = [("d", "process", "default", "bits/dim", "tight", "textbook", "left over", "of a sample")]
    for dim in (2, 16, 64):
        data = mixture(dim)
        x = data.sample(POINTS, seed=1)
        truth = data.log_prob(None, x, None)
        for process, wide, span in SETTINGS:
            model = data.model(process)
            default = float((model.log_prob(x, divergence=Exact()) - truth).abs().mean())
            options = {"rtol": 1e-8, "atol": 1e-8, "nodes": 129, "t_span": span, "divergence": Exact()}
            tight = data.model(wide).log_likelihood(x, **options)
            textbook = data.model(wide).log_prob(x, prior="standard", **options)
            ends = tight.truncation + tight.prior_mismatch
            drawn, log_prob = model.sample(
                POINTS, return_log_prob=True, divergence=Exact(), dtype=torch.float64, rtol=1e-6, atol=1e-6
            )
            gap = log_prob - model.log_prob(drawn, divergence=Exact())
            errors = [(v - truth).abs().mean() for v in (tight.log_prob, textbook, tight.log_prob + ends)] + [
                gap.abs().max()
            ]
            values = [default, default / dim / math.log(2), *map(float, errors)]
            rows.append((str(dim), type(process).__name__, *(f"{v:.1e}" for v in values)))
        print(aligned([rows[0], *rows[-len(SETTINGS) :]], left=2), flush=True)


if __name__ == "__main__":
    main()
