"""``sdediff logprob``: log-likelihoods of the rows of a file."""

from __future__ import annotations

import inspect
import math
import sys
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from tqdm import tqdm

from sdediff.data import dequantise
from sdediff.likelihood import Divergence, Exact, Hutchinson, LogLikelihood, log_likelihood
from sdediff.model import DiffusionModel

from . import tables
from .parsing import UsageError, make_parser, parse
from .trained import HIDDEN, add_solve, columns, describe, load

#: Numbers in a batch of data; the progress bar moves once a batch.
_BATCH_NUMBERS = 1 << 15
OWN: set[str | int] = {"x", "divergence"}


def main(argv: list[str]) -> int:
    """Evaluate rows, write a table of them, and print their mean."""
    options = parse(make_options(), argv)
    model = load(options)
    if options.data is None:
        raise UsageError("data are needed too, such as sdediff logprob run table.csv --out logprob.csv")
    tables.check_out(options.out, model.data_shape, (".csv",))
    x, given = tables.read_rows(options.data, model.data_shape, options.limit)
    names = columns(options, model)
    if names and given and names != given:
        raise ValueError(
            f"{options.data} has the columns {', '.join(given)} and the model was trained on "
            f"{', '.join(names)}: give those, in that order"
        )
    if tables.are_levels(x) and not options.dequantise and options.bin_width is not None:
        print("note      the data are whole numbers: bits per dimension are a bound only with --dequantise")
    x = dequantise(x, options.seed) if options.dequantise else tables.floats(x)
    known = inspect.signature(log_likelihood).parameters
    chosen = {
        n: v for n, v in options.items() if n in known and n not in ("model", "batch_size", "divergence")
    }
    result = evaluate(model, x, options.batch_size, divergence=_divergence(options), **chosen)
    bits = None if options.bin_width is None else result.bits_per_dim(options.bin_width)
    _write(options.out, result, bits)
    _report(result, bits)
    print(f"solver    {describe(options)}")
    print(f"wrote     {options.out}")
    return 0


def make_options() -> ArgumentParser:
    """The parser, from the signature of :func:`sdediff.likelihood.log_likelihood`."""
    parser = make_parser("logprob", "Log-likelihoods of the rows of a file, in nats, with their errors.")
    add = parser.add_argument
    add("model", nargs="?", type=str, help="folder of a run, or a .safetensors file")
    add(
        "data",
        nargs="?",
        type=str,
        help=".npy, .npz, .pt or .csv file; file.npz:name takes one of its arrays",
    )
    add("--out", type=str, default="logprob.csv", help="table to write")
    add("--limit", type=int | None, default=None, help="evaluate the first rows only")
    add(
        "--bin_width",
        type=float | None,
        default=None,
        help="width of a bin in the data's units: adds bits per dimension",
    )
    add("--dequantise", type=bool, default=False, help="add uniform (0, 1) noise to whole numbers")
    add(
        "--divergence",
        type=Literal["exact", "hutchinson"] | None,
        default=None,
        help="trace of the Jacobian; exact up to 64 dimensions, else hutchinson",
    )
    add("--probes", type=int | None, default=None, help="random probes a node of hutchinson; 2 unless told")
    add_solve(parser)
    parser.add_function_arguments(log_likelihood, skip=HIDDEN | OWN, as_group=False)
    return parser


def evaluate(model: DiffusionModel, x: Tensor, batch_size: int | None, **options: Any) -> LogLikelihood:
    """Log-likelihoods in batches, with a progress bar; a row's probes are the same whatever the batch."""
    size = max(1, _BATCH_NUMBERS // model.dim) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size={size}: give a positive number of rows")
    parts = []
    with tqdm(total=len(x), unit="row", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, len(x), size):
            rows = x[start : start + size].to(model.shift.device)
            names = torch.arange(start, start + len(rows))
            parts.append(log_likelihood(model, rows, indices=names, **options))
            bar.update(len(rows))
    return LogLikelihood.join(parts)


def _divergence(options: Namespace) -> Divergence | None:
    if options.divergence == "exact":
        if options.probes is not None:
            raise UsageError("--probes belongs to --divergence hutchinson: the exact trace draws none")
        return Exact()
    if options.divergence is None and options.probes is None:
        return None
    return Hutchinson() if options.probes is None else Hutchinson(options.probes)


def _write(path: str, result: LogLikelihood, bits: Tensor | None) -> None:
    table = {
        "row": torch.arange(len(result.log_prob)),
        "log_prob": result.log_prob,
        "std_error": result.std_error,
        "solver_error": result.solver_error,
        "nfe": result.nfe,
        "divergence_evaluations": result.divergence_evaluations,
    }
    if bits is not None:
        table["bits_per_dim"] = bits
    tables.write_csv(path, list(table), zip(*(column.tolist() for column in table.values()), strict=True))


def _report(result: LogLikelihood, bits: Tensor | None) -> None:
    ok = torch.isfinite(result.log_prob)
    print(f"log_prob  {_mean(result.log_prob[ok])} nats, mean of {int(ok.sum())} rows +- its standard error")
    if not bool(ok.all()):
        print(f"failed    {int((~ok).sum())} of {len(ok)} rows, left out of the mean; nan in the table")
    if bits is not None:
        print(f"bits/dim  {_mean(bits[ok])}")
    errors = (f"{name} {_largest(getattr(result, name))}" for name in ("std_error", "solver_error"))
    print(f"errors    of a row, at most: {', '.join(errors)}")
    low, high = result.t_span
    print(f"kind      {result.kind}, prior {result.prior}, t_span ({low:g}, {high:g})")
    nfe, products = (v.double().mean().item() for v in (result.nfe, result.divergence_evaluations))
    print(f"NFE       {nfe:.4g} a row, and {products:.4g} vector-Jacobian products")


def _mean(values: Tensor) -> str:
    if len(values) == 0:
        return "nan"
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return f"{values.mean().item():.4f} +- {error:.4f}"


def _largest(values: Tensor) -> str:
    known = values[torch.isfinite(values)]
    return f"{known.max().item():.2g}" if len(known) else "unknown"
