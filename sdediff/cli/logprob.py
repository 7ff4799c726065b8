"""``sdediff logprob``: log-likelihoods of the rows of a file."""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor
from tqdm import tqdm

from sdediff import __version__
from sdediff.data.readers import locate
from sdediff.group import Group, launched
from sdediff.likelihood import (
    Divergence,
    Exact,
    Hutchinson,
    LogLikelihood,
    Quantisation,
    discrete_log_likelihood,
    log_likelihood,
)
from sdediff.model import DiffusionModel

from . import tables
from .logprob_report import report
from .logprob_rows import Evaluation
from .logprob_table import Table
from .parsing import UsageError, make_parser, parse, value_of
from .trained import HIDDEN, add_solve, columns, load, model_file

#: Numbers in a batch of data: what an interruption may lose, and how often the progress bar moves.
_BATCH_NUMBERS = 1 << 15
#: Parameters that are offered in another form.
OWN: set[str | int] = {"x", "divergence", "nodes"}
#: Options of :class:`Hutchinson`, and those that are for discrete data.
HUTCHINSON = [field.name for field in fields(Hutchinson)]
DISCRETE = ["low", "high", "centred", "dequantisation", "draws", "importance_weighted"]
#: Options that say where things are and what else is made: not part of what a table holds.
PLACE = {"model", "data", "out", "plots", "check_rows"}


def main(argv: list[str]) -> int:
    """Evaluate rows, write a table of them and two figures, and print their mean.

    The processes of a launch evaluate a batch each at a time; the first keeps the table and tells of it.
    """
    options = parse(make_options(), argv)
    divergence, quantisation = _divergence(options, argv), _quantisation(options, argv)
    with launched() as group:
        model = load(options, group)
        if options.data is None:
            raise UsageError("data are needed too, such as sdediff logprob run table.csv --out logprob.csv")
        if options.check_rows < 0:
            raise ValueError(f"check_rows={options.check_rows}: give a number of rows, or 0 for no check")
        tables.check_out(options.out, model.data_shape, (".csv",))
        rows = tables.RowFile(options.data, model.data_shape, options.limit)
        _check_columns(rows, options, model)
        evaluation = Evaluation(model, _chosen(options), divergence, quantisation, options.dequantise)
        if options.batch_size is not None and options.batch_size < 1:
            raise ValueError(f"batch_size={options.batch_size}: give a positive number of rows")
        table = group.on_main(lambda: _begin(evaluation, rows, options, group.size))
        _evaluate(evaluation, rows, table, options.bin_width, group)
        if group.main:
            table.publish()
        report(evaluation, rows, table, options, group)
        if group.main:
            table.remove_partial()
    return 0


def _begin(evaluation: Evaluation, rows: tables.RowFile, options: Namespace, processes: int) -> Table:
    """The table, with the rows that an earlier run left in it."""
    total, whole = evaluation.scan(rows)
    if whole and options.bin_width is not None and not options.dequantise:
        print("note      the data are whole numbers: bits per dimension are a bound only with --dequantise")
    size = options.batch_size or min(max(1, _BATCH_NUMBERS // evaluation.model.dim), -(-total // processes))
    table = Table(options.out, _identity(options, size), size, total)
    if table.done:
        print(f"resumed   {table.done} of {total} rows were done already", flush=True)
    return table


def make_options() -> ArgumentParser:
    """The parser, from the signatures of the likelihoods and of :class:`Hutchinson`."""
    parser = make_parser("logprob", "Log-likelihoods of the rows of a file, in nats, with their errors.")
    add = parser.add_argument
    add("model", nargs="?", type=str, help="folder of a run, or a .safetensors file")
    add("data", nargs="?", type=str, help=tables.READABLE)
    add("--out", type=str, default="logprob.csv", help="table to write")
    add("--limit", type=int | None, default=None, help="evaluate the first rows only")
    text = "width of a bin in the data's units: adds bits per dimension"
    add("--bin_width", type=float | None, default=None, help=text)
    add("--dequantise", type=bool, default=False, help="add uniform (0, 1) noise to whole numbers")
    text = "draw a histogram and, from rows evaluated anew, how well the stated errors hold"
    add("--plots", type=bool, default=True, help=text)
    add("--check_rows", type=int, default=64, help="rows evaluated anew, drawn at random; 0 for none")
    text = "trace of the Jacobian; exact up to 64 dimensions, else hutchinson"
    add("--divergence", type=Literal["exact", "hutchinson"] | None, default=None, help=text)
    add("--nodes", type=int | None, default=None, help="quadrature points of adaptive solvers; 65")
    add_solve(parser)
    skip = HIDDEN | OWN
    parser.add_function_arguments(log_likelihood, skip=skip, as_group=False)
    random = parser.add_argument_group("random probes, for --divergence hutchinson")
    random.add_class_arguments(Hutchinson, None, as_group=False, instantiate=False)
    _add_discrete(parser, skip)
    return parser


def _add_discrete(parser: ArgumentParser, skip: set[str | int]) -> None:
    group = parser.add_argument_group("discrete data, for --levels")
    text = "number of levels the data have: the log-probability of a row is bounded, not its density found"
    group.add_argument("--levels", type=int | None, default=None, help=text)
    group.add_class_arguments(Quantisation, None, as_group=False, skip={"levels"}, instantiate=False)
    text = "law of the noise in a cell"
    kinds = Literal["uniform", "truncated-normal"]
    group.add_argument("--dequantisation", type=kinds, default="uniform", help=text)
    skip = skip | {"quantisation", "dequantisation", *inspect.signature(log_likelihood).parameters}
    group.add_function_arguments(discrete_log_likelihood, skip=skip, as_group=False)


def _given(argv: list[str], names: list[str]) -> list[str]:
    return [name for name in names if value_of(argv, f"--{name}") is not None or f"--{name}" in argv]


def _divergence(options: Namespace, argv: list[str]) -> Divergence | None:
    given = _given(argv, HUTCHINSON)
    if options.divergence == "exact":
        if given:
            raise UsageError(f"--{given[0]} belongs to --divergence hutchinson: the exact trace draws none")
        return Exact()
    if options.divergence is None and not given:
        return None
    return Hutchinson(**{name: options[name] for name in HUTCHINSON})


def _quantisation(options: Namespace, argv: list[str]) -> Quantisation | None:
    if options.levels is None:
        given = _given(argv, DISCRETE)
        if given:
            raise UsageError(f"--{given[0]} is for discrete data: give --levels, the number of their levels")
        return None
    given = _given(argv, ["dequantise", "bin_width", "extrapolate"])
    if given:
        raise UsageError(f"--{given[0]} is for densities: leave it out, or leave out --levels")
    return Quantisation(options.levels, options.low, options.high, options.centred)


def _chosen(options: Namespace) -> dict[str, Any]:
    """Arguments of the likelihood that are options as they are."""
    known = {*inspect.signature(log_likelihood).parameters}
    if options.levels is not None:
        known = (known - {"extrapolate"}) | {*inspect.signature(discrete_log_likelihood).parameters}
    return {n: options[n] for n in known - {"model", "divergence", "batch_size"} if n in options}


def _check_columns(rows: tables.RowFile, options: Namespace, model: DiffusionModel) -> None:
    names = columns(options, model)
    if names and rows.columns and names != rows.columns:
        raise ValueError(
            f"{options.data} has the columns {', '.join(rows.columns)} and the model was trained on "
            f"{', '.join(names)}: give those, in that order"
        )


def _identity(options: Namespace, size: int) -> dict[str, Any]:
    """What a table holds: program, model, data and every option that counts."""
    digest, block = hashlib.sha256(), bytearray(1 << 20)
    with open(model_file(options.model), "rb", buffering=0) as model:
        while count := model.readinto(block):
            digest.update(memoryview(block)[:count])
    file, key, _ = locate(options.data)
    stat = os.stat(file)
    data = f"{Path(file).name} of {stat.st_size} bytes, written at {stat.st_mtime_ns}" + f":{key}" * bool(key)
    chosen = {name: value for name, value in options.as_dict().items() if name not in PLACE}
    plain = {n: v.tolist() if isinstance(v, Tensor) else v for n, v in chosen.items()}
    identity = {"sdediff": __version__, "torch": torch.__version__, "model": digest.hexdigest()[:16]}
    return {**identity, "data": data, **plain, "batch_size": size}


def _evaluate(
    evaluation: Evaluation, rows: tables.RowFile, table: Table, bin_width: float | None, group: Group
) -> None:
    """Evaluate what the table lacks, a batch a process at a time, with a progress bar.

    A row's probes are the same whatever the batch, and its batch whatever the number of processes.
    """
    shown = group.main and sys.stderr.isatty()
    with tqdm(total=table.total, initial=table.done, unit="row", disable=not shown) as bar:
        try:
            for batch in rows.batches(table.size * group.size, start=table.done):
                own = slice(table.size * group.rank, table.size * (group.rank + 1))
                end = table.done + len(batch)
                names = torch.arange(table.done, end)[own]
                for result in group.together(partial(_values, evaluation, batch[own], names), to="main"):
                    if result is not None:
                        table.append(result, bin_width)
                table.done = end
                bar.update(len(batch))
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; {table.done} of {table.total} rows are kept in {table.path}, and the same "
                "command goes on with the others"
            ) from None


def _values(evaluation: Evaluation, x: Tensor, names: Tensor) -> LogLikelihood | None:
    """What a table needs of these rows, on the host; None where a process has none."""
    return replace(evaluation(x, names).cpu(), latent=None) if len(x) else None
