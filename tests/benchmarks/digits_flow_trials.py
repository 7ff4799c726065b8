"""How the spline flow's settings for the digits were chosen: validation bits/dim of those and of neighbours.

    OMP_NUM_THREADS=1 python tests/benchmarks/digits_flow_trials.py [--seconds 90]

Each trial is one training of so many seconds of one core's time, seed 0; the weights of the best validation
are evaluated on the 150 validation images, under four draws of the uniform noise.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import replace
from typing import Any

import torch
from baselines import NSFTraining
from digits_density import NSF, refresh

from sdediff.data import dequantise, digits
from sdediff.text import machine

TRIALS: dict[str, dict[str, Any]] = {
    "as chosen": {},
    "dropout 0.1": {"dropout": 0.1},
    "dropout 0.5": {"dropout": 0.5},
    "widths 128": {"hidden": (128, 128)},
    "widths 512": {"hidden": (512, 512)},
    "five transformations": {"transforms": 5},
    "16 bins": {"bins": 16},
    "rate 1e-3": {"lr": 1e-3},
}


def main() -> None:
    """Train and print, one setting after another."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=90.0)
    seconds = parser.parse_args().seconds
    data = digits()
    noised = [dequantise(data.val, seed).flatten(1) for seed in range(4)]
    print(f"{machine()}, {seconds:g} s of the processor each")
    for name, changed in TRIALS.items():
        options = replace(NSF, **changed)
        trial = NSFTraining(
            data.train.flatten(1), noised[0], seconds, 0, options, refresh, clock=time.process_time
        )
        trial.run(seconds)
        with torch.no_grad():
            value = -torch.stack([trial.best(x).mean() for x in noised]).mean() / (64 * math.log(2))
        print(f"{name:24s} {float(value):.4f} bits/dim, {trial.steps} steps", flush=True)


if __name__ == "__main__":
    main()
