"""The demonstration's table as text, Markdown and JSON."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from sdediff import files
from sdediff.data.digits import Split
from sdediff.text import aligned, markdown

_HEAD = ("solver", "of", "setting", "NFE", "seconds", "energy distance", "/ floor", "to nearest train")
_LEFT = 3  # columns of words


def split_sizes(split: Split) -> dict[str, int]:
    """Images in each part."""
    return {"train": len(split.train), "validation": len(split.val), "held_out": len(split.test)}


def describe_split(split: Split) -> str:
    """The data in a sentence."""
    n = split_sizes(split)
    return (
        f"8x8 handwritten digits of scikit-learn, 17 grey levels: {sum(n.values())} images, "
        f"{n['train']} to train on, {n['validation']} to validate, {n['held_out']} held out"
    )


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table's rows as words, the head first."""
    return [
        _HEAD,
        *(
            (
                r["solver"],
                r["kind"],
                r["setting"],
                f"{r['nfe']:.0f}",
                f"{r['seconds']:.1f}",
                f"{r['energy_distance']:.4f}",
                f"{r['times_floor']:.2f}",
                f"{r['nearest_train']:.3f}",
            )
            for r in result["samples"]["rows"]
        ),
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """How the table is to be read, and the likelihoods."""
    s, likelihood = result["samples"], result["likelihood"]
    floor, kinds, gap = s["floor"], likelihood["kinds"], likelihood["gap"]
    held, train = kinds["held-out digits"], kinds["training digits"]
    near = s["held_out_nearest"]
    lines = [
        f"Energy distance (V-statistic, greys in [0, 1]) of {s['count']} samples, cut to the 17 levels, "
        f"to {s['count']} held-out images. Floor: as many training images to the same held-out ones, "
        f"{floor['mean']:.4f} +- {floor['std']:.4f} over {floor['subsets']} random choices. A Gaussian of "
        f"the training data's mean and covariance earns "
        f"{s['gaussian']['energy_distance']:.4f}.",
        f"To nearest train: mean distance to the nearest training image. Held-out images: {near:.3f}; "
        "samples of a model that memorises come out below that. The Gaussian: "
        f"{s['gaussian']['nearest_train']:.3f}.",
        "NFE: network evaluations for each sample (the mean where they differ); seconds: wall clock.",
        f"Held-out log-likelihood: {held['nats']:.2f} +- {held['nats_error']:.2f} nats = "
        f"{held['bits_per_dim']:.3f} +- {held['bits_per_dim_error']:.3f} bits/dim ({held['count']} images, "
        "one uniform dequantisation each; +- is the standard error over images; exact trace, "
        f"{likelihood['dtype']}, numerical error about {held['solver_error']:.2g} nats an image).",
        f"Training images: {train['nats']:.2f} +- {train['nats_error']:.2f} nats = "
        f"{train['bits_per_dim']:.3f} bits/dim ({train['count']} of them, random probes); "
        "train minus held-out: "
        f"{gap['nats']:.2f} +- {gap['nats_error']:.2f} nats, {gap['bits_per_dim']:.3f} bits/dim.",
    ]
    failed = sum(r["failed"] for r in s["rows"]) + sum(k["failed"] for k in kinds.values())
    if failed:
        lines.append(f"{failed} solves failed and are left out or hold their last state: see table.json.")
    return lines


def ran_on(result: dict[str, Any]) -> str:
    """Machine, seed and time in a line."""
    m = result["ran_on"]
    return (
        f"{result['seconds']:.0f} s in all (training {result['training']['seconds']:.0f}) on "
        f"{m['cpus']} CPUs with {m['threads']} threads, "
        f"Python {m['python']}, torch {m['torch']}; seed {result['seed']}."
    )


def text(result: dict[str, Any]) -> str:
    """The report for the terminal."""
    table = aligned(cells(result), _LEFT)
    width = table.index("\n")
    return "\n\n".join([table, *(textwrap.fill(note, width) for note in [*notes(result), ran_on(result)])])


def write(folder: Path, result: dict[str, Any]) -> None:
    """Write table.md and table.json."""
    n, t = result["data"], result["training"]
    document = [
        "# sdediff demo",
        f"8x8 handwritten digits of scikit-learn: {n['train']} to train on, {n['validation']} to validate, "
        f"{n['held_out']} held out. {t['parameters']:,} parameters, {t['steps']} steps, validation loss "
        f"{t['validation_loss']:.4f}.",
        markdown(cells(result), _LEFT),
        *notes(result),
        ran_on(result),
        *(f"![{name}]({name}.png)" for name in ("samples", "trajectories", "likelihood")),
    ]
    files.write_text(folder / "table.md", "\n\n".join(document) + "\n")
    files.write_text(folder / "table.json", json.dumps(result, indent=2) + "\n")
