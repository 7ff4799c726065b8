"""A training run in a folder: stopped, gone on with, and averaged anew once it is over.

A model of a ring of Gaussians is trained into `training_run/`: log, checkpoints, the best model so far, and
pictures of samples and errors every 150 steps. At step 180 the process gets the SIGTERM that a cluster's
scheduler sends; training finishes its step, writes a checkpoint and leaves, and the same call with
`resume=True` ends where a run without interruption ends, bit for bit. Two power-function averages of the
weights are kept in snapshots, from which averages of other lengths are made afterwards, and compared by
held-out log-density.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import sdediff
from sdediff.training import Moment, Power, Preview, TrainingResult, reconstruct_model

RUN = Path("training_run")
DATA = sdediff.reference.eight_gaussians()
TRAIN, VAL, TEST = (DATA.sample(n, seed=s) for s, n in enumerate((20_000, 1000, 200)))


@dataclass(frozen=True)
class Terminate:
    """A callback that sends this process the signal that schedulers send."""

    every: int

    def __call__(self, moment: Moment) -> None:
        """Send it, the first time."""
        if moment.step == self.every:
            os.kill(os.getpid(), signal.SIGTERM)


def train(**options: Any) -> TrainingResult:
    """The run, as far as it does not depend on options."""
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=2, hidden=64, blocks=2)
    return sdediff.fit(
        sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(2,)),
        TRAIN,
        val=VAL,
        steps=300,
        batch_size=128,
        lr=4e-3,
        loss="sigmoid-stable",
        averages=[Power(0.05), Power(0.10)],
        checkpoint_every=150,
        progress=False,
        **options,
    )


def score(model: sdediff.DiffusionModel) -> float:
    """Mean log-density of held-out points."""
    return float(model.log_prob(TEST, rtol=1e-3, atol=1e-3).mean())


def main() -> None:
    """Train, be stopped, go on; then choose an average."""
    shutil.rmtree(RUN, ignore_errors=True)
    run = {"out": RUN, "snapshot_every": 30, "callbacks": [Preview(every=150, n=1000), Terminate(every=180)]}
    try:
        train(**run)
    except SystemExit as left:
        kept = ", ".join(sorted(os.listdir(RUN / "checkpoints")))
        print(f"left with status {left.code}; checkpoints {kept}")
    result = train(**run, resume=True)
    print(f"trained {result.steps} steps in {result.seconds:.1f} s; {RUN} holds")
    print(f"  {', '.join(sorted(os.listdir(RUN)))}")

    straight = train()
    pairs = zip(result.model.parameters(), straight.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    print("the weights are those of a run that was not stopped, bit for bit")

    truth = float(DATA.log_prob(None, TEST, None).mean())
    print(f"\nheld-out log-density, nats; the data's own is {truth:.3f}")
    found = {name: score(sdediff.load(RUN / f"{name}.safetensors")) for name in ("best", "model")}
    for length in (0.03, 0.05, 0.10, 0.20):
        found[f"sigma_rel = {length:.2f}"] = score(reconstruct_model(RUN, length))
    for name, value in found.items():
        print(f"  {name:16s} {value:.3f}")
    assert truth - 0.5 < found["model"] < truth


if __name__ == "__main__":
    main()
