"""Held-out bits/dim of the 8x8 digits: a diffusion model and zuko's neural spline flow, side by side.

    python tests/benchmarks/digits_density.py [--seconds 90] [--seeds 0 1 2] [--clock wall] [--out FILE]

Both train in one process, in turns of about a second, each on its own clock, so that whatever else the
machine does is shared. The clock is that of the wall, or the processor time of the process ("cpu"), which a
busy machine does not stretch. Every choice (configs/digits.yaml and NSF below) was made on the validation
images; those held out are looked at here, once. A finished seed is written to the file at once and is not
repeated; a summary of what the file holds is printed.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from baselines import NSFOptions, NSFTraining
from torch import Tensor

import sdediff
from sdediff.data import Augment, Compose, dequantise, digits
from sdediff.likelihood import LogLikelihood
from sdediff.likelihood.dequantisation import resolve_dequantisation
from sdediff.likelihood.discrete import combine, draw
from sdediff.networks import Levels, SmallImageNet
from sdediff.text import machine
from sdediff.training import DenoisingLoss, fit
from sdediff.training.times import LogNormal, Mixture, UniformLogSNR, UniformTime
from sdediff.training.weightings import Likelihood

CELLS = sdediff.Quantisation(levels=17)
CONFIG = Path(__file__).parents[2] / "configs" / "digits.yaml"
#: The spline flow's settings, the best on validation images of those in digits_flow_trials.py.
NSF = NSFOptions(transforms=3, hidden=(256, 256), bins=8, dropout=0.3, lr=2e-3, shift=8.5, scale=3.0)
NSF_SHIFT = 0.0  # share of training images shifted by a pixel
TURN = 1.0  # seconds
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
#: Times where the error of a denoiser of digits is largest, and a few everywhere.
TIMES = Mixture((LogNormal(-1.1, 1.3), UniformLogSNR()), (0.8, 0.2))


class Over(Exception):
    """The time is over."""


# -- training ------------------------------------------------------------------------------------------------


def build(x: Tensor, seed: int, hyper: dict[str, Any]) -> tuple[sdediff.DiffusionModel, Compose]:
    """The untrained model of a configuration, its units learnt, and what is done to a batch.

    Images are augmented, then dequantised by uniform noise, both afresh every step.
    """
    augment = Augment(**hyper["augment"], labels=True, levels=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body = SmallImageNet((1, 8, 8), values=17, augment_dim=augment.dim, **hyper["network"])
    process = sdediff.EDM(t_min=hyper["t_min"], t_max=hyper["t_max"])
    model = sdediff.DiffusionModel(Levels(body, levels=17), process=process, data_shape=(1, 8, 8))
    model.set_units(dequantise(x, seed))
    return model, Compose(augment, dequantise)


def train(
    x: Tensor,
    seconds: float,
    seed: int,
    hyper: dict[str, Any],
    clock: Callable[[], float],
    rest: Callable[[float], None] = lambda spent: None,
) -> tuple[sdediff.DiffusionModel, int]:
    """A model trained for some seconds and the number of steps; between steps `rest(spent)` is called."""
    model, transform = build(x, seed, hyper)
    began, away, steps = clock(), 0.0, 0

    def rate(step: int) -> float:
        nonlocal away, steps
        now = clock()
        spent, steps = now - began - away, step
        rest(spent)
        away += clock() - now
        if spent >= seconds:
            raise Over
        return hyper["lr"] * min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * spent / seconds))

    never = 10**9
    loss = DenoisingLoss(Likelihood(), UniformTime(), proposal=TIMES, targets=model.network.cell_means)
    options = {key: hyper[key] for key in ("batch_size", "weight_decay", "ema_decay")}
    options |= {"log_every": never, "checkpoint_every": never, "progress": False, "units": "keep"}
    with suppress(Over):
        fit(model, x, steps=never, lr=rate, loss=loss, seed=seed, augment=transform, **options)
    return model.eval(), steps


def side_by_side(
    seconds: float, seed: int, hyper: dict[str, Any], clock: Callable[[], float]
) -> tuple[sdediff.DiffusionModel, NSFTraining, int]:
    """Both, in turns of about a second."""
    data = digits()
    x_val = dequantise(data.val, seed).flatten(1)
    nsf = NSFTraining(data.train.flatten(1), x_val, seconds, seed, NSF, refresh, clock)

    def rest(spent: float) -> None:
        if spent - nsf.spent >= TURN or spent >= seconds:
            nsf.run(spent - nsf.spent)

    model, steps = train(data.train, seconds, seed, hyper, clock, rest)
    nsf.run(seconds)
    return model, nsf, steps


def refresh(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch for the spline flow: uniform noise, and some images shifted."""
    if NSF_SHIFT:
        seed = int(torch.randint(2**40, (), generator=generator))
        x = Augment(shift=1, p=NSF_SHIFT)(x.reshape(-1, 1, 8, 8), seed).flatten(1)
    return (x + torch.rand(x.shape, generator=generator)).clamp(max=17 - 1e-5)


# -- evaluation ----------------------------------------------------------------------------------------------


def bits(nats: Tensor) -> list[float]:
    """Log-probabilities in nats as bits/dim."""
    return (-nats.double() / (64 * math.log(2))).tolist()


def evaluate(model: sdediff.DiffusionModel, nsf: NSFTraining, options: argparse.Namespace) -> dict[str, Any]:
    """Bits/dim of held-out images by method and dequantisation, an entry an image, and of what kind they are.

    Importance weighting needs the exact trace, which costs most: it is done for some images alone, beside
    the plain bound of the same draws.
    """
    data = digits()
    test = data.test[: options.count]
    with torch.no_grad():
        flow = nsf.best(dequantise(test, 2).flatten(1))
    result: dict[str, Any] = {"nsf, uniform": bits(flow), "kind": {"nsf, uniform": "probability/lower bound"}}

    def report(name: str, r: LogLikelihood) -> None:
        result[f"sdediff, {name}"] = bits(r.log_prob)
        result["kind"][f"sdediff, {name}"] = str(r.kind)
        result[f"about {name}"] = {"solver_error_nats": float(r.solver_error.mean())}
        print(f"  {name}: {np.mean(result[f'sdediff, {name}']):.4f} bits/dim", flush=True)

    trace = sdediff.Hutchinson(options.probes) if options.probes else sdediff.Exact()
    solver = {"rtol": 1e-4, "atol": 1e-4, "nodes": 33, "batch_size": 33, "divergence": trace}
    for name in ("uniform", "truncated-normal", "variational"):
        q = sdediff.fit_dequantiser(model, data.train, CELLS, steps=500) if name == "variational" else name
        report(name, model.discrete_log_likelihood(test, CELLS, dequantisation=q, seed=2, **solver))
    fixed = solver | {"divergence": sdediff.Exact(), "cond": None, "seed": 2, "indices": None, "t_span": None}
    k, some = options.draws, test[: options.weighted]
    drawn = draw(model, some, CELLS, "dopri5", resolve_dequantisation("uniform"), k, **fixed)
    for weighted in (False, True):
        report(f"uniform, {k} draws{', weighted' * weighted}", combine(*drawn, weighted))
    return result


# -- the table -----------------------------------------------------------------------------------------------


def summary(seeds: dict[str, dict[str, Any]]) -> str:
    """The table: means over seeds and images, and the paired difference with its 95 % interval.

    The interval is a bootstrap over images (10000 draws, each image with all its seeds) widened by the
    scatter of seeds: half-width sqrt((1.96 s_images)^2 + (t s_seeds/sqrt(n))^2), t Student's with n - 1
    degrees of freedom.
    """
    names = list(next(iter(seeds.values()))["kind"])
    kinds = next(iter(seeds.values()))["kind"]
    lines = ["| model | kind | images | bits/dim | by seed |", "| --- | --- | ---: | ---: | --- |"]
    for name in names:
        values = np.array([seeds[s][name] for s in seeds])
        by_seed = ", ".join(f"{v:.3f}" for v in values.mean(1))
        error = values.mean(0).std(ddof=1) / math.sqrt(values.shape[1])
        lines.append(
            f"| {name} | {kinds[name]} | {values.shape[1]} | {values.mean():.3f} +- {error:.3f} | {by_seed} |"
        )
    return "\n".join([*lines, "", *(paired(seeds, name) for name in names[1:])])


def paired(seeds: dict[str, dict[str, Any]], name: str) -> str:
    """One line: the difference from the spline flow on the same images, with its interval."""
    from scipy.stats import t as student

    ours, theirs = (np.array([seeds[s][n] for s in seeds]) for n in (name, "nsf, uniform"))
    difference = ours - theirs[:, : ours.shape[1]]
    n = len(difference)
    images = difference.mean(0)
    choice = np.random.default_rng(0).integers(len(images), size=(10000, len(images)))
    over_images = 1.96 * images[choice].mean(1).std()
    over_seeds = student.ppf(0.975, n - 1) * difference.mean(1).std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    half = math.hypot(over_images, over_seeds)
    return f"{name} minus nsf, uniform: {images.mean():.3f} +- {half:.3f} bits/dim (95 %)"


def main() -> None:
    """Train, evaluate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=90.0, help="of training, each")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--count", type=int, default=297, help="held-out images")
    parser.add_argument("--probes", type=int, default=0, help="of the trace; 0 for the exact one")
    parser.add_argument("--draws", type=int, default=8, help="K of the importance-weighted bound")
    parser.add_argument("--weighted", type=int, default=33, help="images of the importance-weighted bound")
    parser.add_argument("--out", type=Path, default=Path("digits.json"))
    options = parser.parse_args()
    hyper = yaml.safe_load(CONFIG.read_text())
    print(
        "8x8 digits of scikit-learn in the order of numpy's default_rng(0).permutation(1797): 1350 to train,"
    )
    print(f"150 to validate, 297 held out. {machine()}, {options.seconds:g} s each ({options.clock})")
    seeds = json.loads(options.out.read_text()) if options.out.exists() else {}
    for seed in options.seeds:
        if str(seed) in seeds:
            continue
        began = time.perf_counter()
        model, nsf, steps = side_by_side(options.seconds, seed, hyper, CLOCKS[options.clock])
        trained = time.perf_counter() - began
        result = evaluate(model, nsf, options)
        result |= {
            "steps": steps,
            "nsf_steps": nsf.steps,
            "wall_seconds_of_both": round(trained),
            "nsf_validation": [(round(at, 1), bits(torch.tensor(v))) for at, v in nsf.history],
        }
        seeds[str(seed)] = result
        options.out.write_text(json.dumps(seeds))
        print(f"seed {seed}: {steps} and {nsf.steps} steps, {trained:.0f} s for both", flush=True)
    print("\n" + summary(seeds))


if __name__ == "__main__":
    main()
