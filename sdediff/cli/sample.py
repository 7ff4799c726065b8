"""``sdediff sample``: draws of a trained model."""

from __future__ import annotations

import inspect
import sys
import time
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from sdediff import sharding
from sdediff.group import Group, launched
from sdediff.model import DiffusionModel
from sdediff.sampling import sample
from solvers import Solution

from . import tables
from .parsing import make_parser, parse
from .trained import HIDDEN, add_solve, columns, describe, load

KINDS = (".npy", ".npz", ".csv", ".png")


def main(argv: list[str]) -> int:
    """Draw samples and write them; each process of a launch draws some, and the first writes all."""
    options = parse(make_options(), argv)
    with launched() as group:
        model = load(options, group)
        tables.check_out(options.out, model.data_shape, KINDS)
        levels = tables.check_levels(options.levels)
        began = time.perf_counter()
        drawn = _draw(model, options, group)
        if group.main:
            x, solution = drawn
            tables.write_rows(options.out, x, levels, columns(options, model))
            _report(options, x, solution, time.perf_counter() - began)
            print(f"solver    {describe(options)}{group.note}")
            print(f"wrote     {options.out}")
    return 0


def _draw(model: DiffusionModel, options: Namespace, group: Group) -> Any:
    """Samples and their solution, on the first process; its own samples move the bar."""
    known = {*inspect.signature(sample).parameters} - {"model"}
    chosen = {name: value for name, value in options.items() if name in known}
    own = group.share(options.n)
    shown = group.main and sys.stderr.isatty()
    with tqdm(total=own.stop - own.start, unit="sample", disable=not shown) as bar:
        return sharding.sample(
            model,
            **chosen,
            return_solution=True,
            to="main",
            progress=lambda done: bar.update(done - bar.n),
        )


def make_options() -> ArgumentParser:
    """The parser, from the signature of :func:`sdediff.sampling.sample`."""
    parser = make_parser("sample", "Draw samples of a trained model.")
    add = parser.add_argument
    add("model", nargs="?", type=str, help="folder of a run, or a .safetensors file")
    add(
        "--out", type=str, default="samples.npy", help=f"file to write: {', '.join(KINDS)} (a grid of images)"
    )
    add("--n", type=int, default=64, help="number of samples")
    add(
        "--eta",
        type=float | None,
        default=None,
        help="0 the probability-flow ODE, 1 the reverse SDE; the solver's own",
    )
    add(
        "--levels",
        type=list[float] | None,
        default=None,
        help="values that are black and white in a .png, such as [0,255]",
    )
    add_solve(parser)
    skip: set[str | int] = HIDDEN | {"n", "eta", "return_log_prob", "return_solution", "dtype", "progress"}
    parser.add_function_arguments(sample, skip=skip, as_group=False)
    return parser


def _report(options: Namespace, x: torch.Tensor, solution: Solution, seconds: float) -> None:
    nfe = solution.nfe.double()
    spread = "" if nfe.min() == nfe.max() else f" ({int(nfe.min())} to {int(nfe.max())})"
    print(f"samples   {len(x)} of shape {tuple(x.shape[1:])} in {seconds:.2f} s")
    print(f"NFE       {float(nfe.mean()):.4g} a sample{spread}")
    failed = int((~solution.ok).sum())
    if failed:
        print(f"failed    {failed} of {len(x)}; their rows hold the last state reached")
