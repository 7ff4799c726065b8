"""Print the error of log_prob against closed forms: `python tests/benchmarks/likelihood_accuracy.py`.

Analytic scores, float64; mixtures with full covariances and non-zero mean. Columns: mean absolute error in
nats of the default settings, of tolerance 1e-7, and of the textbook prior at 1e-7; the error estimated by the
library at 1e-7; evaluations of the score; the error with random probes next to their standard error.
"""

from __future__ import annotations

import platform

import torch

import sdediff

POINTS = 200


def main() -> None:
    """Print one row a process and dimension."""
    torch.set_num_threads(1)
    print(f"{POINTS} points, one thread, Python {platform.python_version()}, torch {torch.__version__}")
    names = ("default", "1e-7", "standard", "estimate")
    print(f"{'process':14} {'d':>3} " + " ".join(f"{n:>9}" for n in names) + f" {'nfe':>5} {'probes':>16}")
    for dim in (2, 16):
        data = sdediff.reference.random_mixture(dim, 4, seed=0, dtype=torch.float64)
        x = data.sample(POINTS, seed=1)
        truth = data.log_prob(None, x, None)
        for process in (
            sdediff.VP(),
            sdediff.SubVP(),
            sdediff.RectifiedFlow(),
            sdediff.Cosine(),
            sdediff.VE(),
            sdediff.EDM(),
        ):
            model = data.model(process)
            default = model.log_prob(x)
            tight = model.log_likelihood(x, rtol=1e-7, atol=1e-7)
            textbook = model.log_prob(x, rtol=1e-7, atol=1e-7, prior="standard")
            probes = model.log_likelihood(x, divergence=sdediff.Hutchinson(probes=2))
            errors = [
                float((v - truth).abs().mean()) for v in (default, tight.log_prob, textbook, probes.log_prob)
            ]
            print(
                f"{type(process).__name__:14} {dim:3d} {errors[0]:9.1e} {errors[1]:9.1e} {errors[2]:9.1e} "
                f"{float(tight.solver_error.mean()):9.1e} {int(tight.nfe.max()):5d} "
                f"{errors[3]:6.2f} +- {float(probes.std_error.mean()):6.2f}"
            )


if __name__ == "__main__":
    main()
