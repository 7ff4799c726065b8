"""``sdediff bench``: solvers compared on a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser
from tqdm import tqdm

import sdediff
from sdediff import bench
from sdediff.bench.comparison import MEASURES
from sdediff.processes import REGISTRY

from .parsing import UsageError, default, make_parser, nearest, parse
from .trained import add_device, device_of, model_file


def main(argv: list[str]) -> int:
    """Compare solvers, print the table and write a folder."""
    options = parse(make_options(), argv)
    if options.model is None:
        raise UsageError(
            f"a model is needed: give the folder of a run, a .safetensors file, or one of {_references()}"
        )
    model = _model(options)
    make: Any = None if options.process is None else REGISTRY[options.process]
    chosen: dict[str, Any] = {
        name: options[name] for name in ("measure", "samples", "seed", "repeats", "seconds")
    }
    with tqdm(unit="run", disable=not sys.stderr.isatty()) as bar:

        def tell(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        report = bench.compare(
            model,
            options.solvers,
            options.nfe,
            options.tolerances,
            process=None if make is None else make(),
            title=Path(options.model).name,
            progress=tell,
            **chosen,
        )
    print(report.table())
    written = report.save(options.out)
    print(f"\nwrote     {options.out}/: {', '.join(path.name for path in written)}")
    return 0


def make_options() -> ArgumentParser:
    """The parser, from the signature of :func:`sdediff.bench.compare`."""
    parser = make_parser("bench", "Compare solvers on a model: error against evaluations and seconds.")
    add = parser.add_argument
    add("model", nargs="?", type=str, help=f"folder of a run, a .safetensors file, or one of {_references()}")
    add("--out", type=str, default="sdediff-bench", help="folder for table, diagram and page")
    names = list(default(bench.compare, "solvers"))
    text = "names, with options after colons, such as [heun,ddim:eta=1,dpm++3m:grid=fitted]"
    add("--solvers", type=list[str], default=names, help=text)
    add("--nfe", type=list[int], default=list(default(bench.compare, "nfe")), help="evaluations a sample")
    add(
        "--tolerances",
        type=list[float],
        default=list(default(bench.compare, "tolerances")),
        help="of adaptive solvers",
    )
    add("--process", type=Literal[tuple(REGISTRY)] | None, default=None, help="of a reference problem; VP")
    add("--measure", type=Literal[MEASURES], default=default(bench.compare, "measure"), help="of errors")
    skip: set[str | int] = {
        "model",
        "solvers",
        "nfe",
        "tolerances",
        "process",
        "measure",
        "title",
        "progress",
    }
    parser.add_function_arguments(bench.compare, skip=skip, as_group=False)
    add_device(parser)
    return parser


def _references() -> str:
    return ", ".join(bench.REFERENCES) + " (product-16: in 16 dimensions)"


def _model(options: Any) -> Any:
    """The reference problem of that name, or the model in a file."""
    if bench.reference_model(options.model) is not None:
        return options.model
    if not Path(options.model).exists():
        near = nearest(options.model, bench.REFERENCES)
        raise FileNotFoundError(
            f"there is no file and no reference problem {options.model}: did you mean {near}?"
        )
    return sdediff.load(model_file(options.model), device=device_of(options.device))
