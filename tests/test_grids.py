"""The default grids are those with the least bias, measured exactly, on Gaussian data."""

from itertools import pairwise

import pytest
import torch

import sdediff
import solvers


class Stub:
    """Noise that is a given tensor."""

    def __init__(self, z):
        self.z = z

    def normal(self, *_):
        return self.z


def variance_bias(solver, process, variance, eta, times):
    """Relative bias of the variance of samples of N(0, variance); there a step is affine, a x + c z."""

    def denoise(t, x):
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return alpha * variance / (alpha**2 * variance + sigma**2) * x

    def law(t):
        return float(process.alpha(t)) ** 2 * variance + float(process.sigma(t)) ** 2

    problem = solvers.SemiLinear(process, denoise, eta)
    x, z = torch.eye(2, dtype=torch.float64).unbind(1)
    now = law(times[0])
    for t, t_next in pairwise(times):
        a, c = solver.step(problem, t, t_next, x[:, None], None, Stub(z[:, None])).x.flatten().tolist()
        now = a**2 * now + c**2
    return now / law(times[-1]) - 1


CASES = [
    (solvers.DDIM(), 0.0, 50),
    (solvers.Heun(), 0.0, 25),
    (solvers.Ancestral(), 1.0, 200),
    (solvers.EulerMaruyama(), 1.0, 200),
]


@pytest.mark.parametrize(
    "process", [sdediff.VP(), sdediff.SubVP(), sdediff.RectifiedFlow(), sdediff.Cosine()], ids=str
)
def test_quadratic_grid_has_the_least_bias(process):
    """Mean of |bias| over four solvers and variances 0.25, 0.05, 0.01."""
    score = {}
    for name, grid in solvers.GRIDS.items():
        biases = [
            abs(variance_bias(solver, process, variance, eta, grid(process, n).tolist()))
            for solver, eta, n in CASES
            for variance in (0.25, 0.05, 0.01)
        ]
        score[name] = sum(biases) / len(biases)
    assert process.grid == "quadratic"
    assert min(score, key=score.get) == "quadratic", score


@pytest.mark.parametrize("process", [sdediff.VE(), sdediff.EDM()], ids=str)
def test_default_grid_beats_equal_steps_of_sigma(process):
    times = torch.linspace(
        *(float(process.sigma(t)) for t in (process.t_max, process.t_min)), 51, dtype=torch.float64
    )
    times = process.time(-times.log())
    times[0], times[-1] = process.t_max, process.t_min
    plain = variance_bias(solvers.DDIM(), process, 0.25, 0.0, times.tolist())
    ours = variance_bias(solvers.DDIM(), process, 0.25, 0.0, process.default_grid(50).tolist())
    assert abs(ours) < 0.25 * abs(plain)
