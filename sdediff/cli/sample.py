"""``sdediff sample``: draws of a trained model."""

from __future__ import annotations

import inspect
import sys
import time

import torch
from jsonargparse import ArgumentParser, Namespace
from tqdm import tqdm

from sdediff.sampling import sample
from solvers import Solution

from . import tables
from .parsing import make_parser, parse
from .trained import HIDDEN, add_solve, columns, describe, load

KINDS = (".npy", ".npz", ".csv", ".png")


def main(argv: list[str]) -> int:
    """Draw samples and write them."""
    options = parse(make_options(), argv)
    model = load(options)
    tables.check_out(options.out, model.data_shape, KINDS)
    levels = tables.check_levels(options.levels)
    known = inspect.signature(sample).parameters
    chosen = {name: value for name, value in options.items() if name in known and name != "model"}
    began = time.perf_counter()
    with tqdm(total=options.n, unit="sample", disable=not sys.stderr.isatty()) as bar:
        x, solution = sample(
            model, **chosen, return_solution=True, progress=lambda done: bar.update(done - bar.n)
        )
    seconds = time.perf_counter() - began
    tables.write_rows(options.out, x, levels, columns(options, model))
    _report(options, x, solution, seconds)
    print(f"solver    {describe(options)}")
    print(f"wrote     {options.out}")
    return 0


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
