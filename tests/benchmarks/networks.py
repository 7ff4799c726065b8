"""What torch.compile and channels_last do for a training step of each kind of network on this machine.

`python tests/benchmarks/networks.py [name ...]` prints, for each network, the milliseconds of an eager step
(forward, squared error, backward, fused AdamW) and the time of the same step compiled, with its weights in
channels_last order, and both, as ratios to it: below 1 is faster. Steps of all variants are interleaved, and
a ratio is the median over pairs of neighbours, with its quartiles. Compiling itself is timed apart.
"""

from __future__ import annotations

import copy
import platform
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdediff.networks import MLP, DDPMpp, DiT, NCSNpp, TableMLP, UNet

ROUNDS = 15


def table_mlp() -> TableMLP:
    net = TableMLP(5)
    net.set_moments(torch.zeros(5), torch.eye(5), torch.ones(5), torch.zeros(()))
    return net


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "MLP(64)": (lambda: MLP(64), (128, 64)),
    "TableMLP(5)": (table_mlp, (256, 5)),
    "UNet(base=32), 8x8": (lambda: UNet(base=32), (64, 1, 8, 8)),
    "UNet(base=32), 28x28": (lambda: UNet(base=32, multipliers=(1, 2, 2)), (16, 1, 28, 28)),
    "UNet(dims=1), 256": (lambda: UNet(dims=1, base=32, multipliers=(1, 2, 2)), (16, 1, 256)),
    "DDPMpp(base=32), 32x32": (lambda: DDPMpp(base=32, blocks=1, dropout=0.0), (8, 3, 32, 32)),
    "NCSNpp(base=32), 32x32": (lambda: NCSNpp(base=32, blocks=1, dropout=0.0), (8, 3, 32, 32)),
    "DiT(patch=2), 28x28": (DiT, (16, 1, 28, 28)),
}


def step(net: nn.Module, x: Tensor) -> Callable[[], float]:
    """A function that trains for one step and returns its seconds."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    t, target = torch.zeros(len(x)), torch.zeros_like(x)

    def run() -> float:
        start = time.perf_counter()
        loss = (net(x, t) - target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - start

    return run


def variants(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> dict[str, Callable[[], float]]:
    """Steps of one network, by what is done to it."""
    torch.manual_seed(0)
    net, x = make().train(), torch.randn(shape)
    nets = {"eager": net, "compiled": copy.deepcopy(net)}
    if len(shape) == 4:
        nets |= {name: copy.deepcopy(net) for name in ("channels_last", "both")}
    for name, one in nets.items():
        if name in ("channels_last", "both"):
            one.to(memory_format=torch.channels_last)
        if name in ("compiled", "both"):
            one.compile(dynamic=False)
    return {name: step(one, x) for name, one in nets.items()}


def measure(name: str) -> None:
    steps = variants(*CASES[name])
    first = {variant: run() for variant, run in steps.items()}
    for _ in range(2):
        for run in steps.values():
            run()
    seconds = [{variant: run() for variant, run in steps.items()} for _ in range(ROUNDS)]
    eager = torch.tensor([row["eager"] for row in seconds])
    line = f"{name:24s} eager {1e3 * eager.median():7.1f} ms"
    for variant in list(steps)[1:]:
        ratio = torch.tensor([row[variant] for row in seconds]) / eager
        low, middle, high = ratio.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
        line += f"   {variant} {middle:.2f} ({low:.2f}-{high:.2f})"
    print(f"{line}   compiling {first['compiled']:.0f} s", flush=True)


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
    for chosen in sys.argv[1:] or CASES:
        measure(chosen)
