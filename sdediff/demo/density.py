"""Log-likelihood of held-out digits, of training digits, and of images that are no digits."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sdediff.data import dequantise
from sdediff.data.digits import Split
from sdediff.likelihood import Divergence, Exact, Hutchinson
from sdediff.model import DiffusionModel

_CHUNK = 33


def evaluate(
    model: DiffusionModel, split: Split, count: int, nodes: int, seed: int, progress: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Likelihoods of up to `count` images of each kind, each dequantised once.

    Held-out digits get the exact trace. Training digits get four random probes a node: unbiased, and what
    they add to the error of the mean is included in it. Shuffled digits and noise, hundreds of nats away, are
    a third as many, with two probes.

    Returns:
        The summary, and bits/dim by kind of image.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = split.test[:count]
    chosen = split.train[torch.randperm(len(split.train), generator=generator)[:count]]
    some = held_out[: max(2, len(held_out) // 3)]
    order = torch.rand(len(some), 64, generator=generator).argsort(dim=1)
    shuffled = some.flatten(1).gather(1, order).reshape(some.shape)
    noise = torch.randint(0, 17, some.shape, generator=generator).to(some.dtype)
    kinds: dict[str, tuple[Tensor, Divergence]] = {
        "held-out digits": (held_out, Exact()),
        "training digits": (chosen, Hutchinson(4)),
        "held-out digits with shuffled pixels": (shuffled, Hutchinson(2)),
        "uniform noise": (noise, Hutchinson(2)),
    }
    began = time.perf_counter()
    total = sum(len(images) for images, _ in kinds.values())
    summary, values = {}, {}
    with tqdm(total=total, desc="likelihood", unit="image", disable=not progress, dynamic_ncols=True) as bar:
        for kind, (images, divergence) in kinds.items():
            bar.set_postfix_str(kind)
            summary[kind], values[kind] = _one(model, images, divergence, nodes, seed, bar)
    gap = summary["training digits"]["nats"] - summary["held-out digits"]["nats"]
    error = math.hypot(*(summary[k]["nats_error"] for k in ("training digits", "held-out digits")))
    return {
        "kinds": summary,
        "gap": {"nats": gap, "nats_error": error, "bits_per_dim": -gap / (model.dim * math.log(2))},
        "nodes": nodes,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "seconds": round(time.perf_counter() - began, 1),
    }, values


def _one(
    model: DiffusionModel, images: Tensor, divergence: Divergence, nodes: int, seed: int, bar: Any
) -> tuple[dict[str, Any], Tensor]:
    """Summary and bits/dim of one kind of image."""
    x, parts = dequantise(images, seed), []
    for rows in torch.arange(len(x)).split(_CHUNK):
        r = model.log_likelihood(
            x[rows], rtol=1e-5, atol=1e-5, nodes=nodes, divergence=divergence, seed=seed, indices=rows
        )
        parts.append(r)
        bar.update(len(rows))
    log_prob, solver_error, nfe = (
        torch.cat([getattr(r, name).double() for r in parts]) for name in ("log_prob", "solver_error", "nfe")
    )
    bits = torch.cat([r.bits_per_dim(bin_width=1.0) for r in parts]).double()
    ok = torch.isfinite(log_prob)
    count, root = int(ok.sum()), math.sqrt(max(1, int(ok.sum())))
    return {
        "count": count,
        "failed": int((~ok).sum()),
        "nats": float(log_prob[ok].mean()),
        "nats_error": float(log_prob[ok].std()) / root,
        "bits_per_dim": float(bits[ok].mean()),
        "bits_per_dim_error": float(bits[ok].std()) / root,
        "solver_error": float(solver_error[ok].mean()),
        "nfe": float(nfe.mean()),
        "kind": parts[0].kind,
        "prior": parts[0].prior,
        "t_span": list(parts[0].t_span),
    }, bits
