"""The options of ``sdediff train``, from the signatures of fit, the model, the process and the network."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser, Namespace

from sdediff import networks, processes
from sdediff.model import DiffusionModel
from sdediff.predictions import PREDICTIONS
from sdediff.training import LOSSES, Cosine, InverseSqrt, fit

from . import tables
from .parsing import UsageError, check_config, default, make_parser, nearest, parse, read_config, value_of
from .trained import add_device

#: Constructor arguments of networks that follow from the shape of the data.
FROM_DATA = {
    "dim": lambda shape: math.prod(shape),
    "channels": lambda shape: shape[0],
    "dims": lambda shape: len(shape) - 1,
}
#: Those of conditional networks, which this command does not train, and of networks within others.
CONDITIONS = ("cond_dim", "num_classes", "optional_cond", "augment_dim", "values")
#: Networks that an option may name: those that are built of numbers and words, not around another one.
NETWORKS = {
    n: make for n, make in networks.REGISTRY.items() if "network" not in inspect.signature(make).parameters
}
#: Those that the shape of the data chooses between.
USUAL = ("MLP", "UNet")
#: Options that say where and how, not what: left out of config.yaml.
PLACE = ("config", "out", "resume", "progress", "device", "trackers", "workers")
PARTS: dict[str, dict[str, Any]] = {"process": processes.REGISTRY, "network": NETWORKS}
#: Parameters of fit and of the model that are given otherwise, or make no sense in words.
FIT_APART: set[str | int] = {
    "model",
    "x_train",
    "val",
    "cond",
    "val_cond",
    "out",
    "units",
    "augment",
    "optimizer",
    "loss",
    "lr",
    "averages",
    "callbacks",
    "trackers",
    "accelerator",
    "cond_dropout",
}
#: How the learning rate goes on from its peak, from (peak, steps).
SCHEDULES: dict[str, Callable[[float, int], Any]] = {
    "inverse-sqrt": lambda lr, steps: InverseSqrt(lr),
    "cosine": lambda lr, steps: Cosine(lr, steps, warmup=min(100, max(1, steps // 10))),
}
MODEL_APART: set[str | int] = {"network", "process", "data_shape", "prediction"}


def named(argv: list[str]) -> list[str]:
    """``--process VE`` as ``--process.name VE``, and so for the network.

    Example:
        >>> named(["--process=VE", "--network", "MLP", "--network.hidden", "8"])
        ['--process.name=VE', '--network.name', 'MLP', '--network.hidden', '8']
    """
    for part in PARTS:
        argv = [f"--{part}.name" if word == f"--{part}" else word for word in argv]
        argv = [w.replace("=", ".name=", 1) if w.startswith(f"--{part}=") else w for w in argv]
    return argv


def read_options(argv: list[str]) -> Namespace:
    """Options of the command line, over those of a configuration, over the defaults.

    The configuration is that of ``--config``, or with ``--resume`` that of the run itself.

    Raises:
        UsageError: If an option is unknown or has a value of the wrong kind.
    """
    path = value_of(argv, "--config") or _own_config(argv)
    config = {} if path is None else read_config(path)
    chosen = {part: _class_of(part, argv, config) for part in PARTS}
    parser = make_options(chosen["process"] or "VP", chosen["network"])
    if path is not None:
        check_config(parser, config, path)
    return parse(parser, argv, config)


def make_options(process: str, network: str | None) -> ArgumentParser:
    """The parser for a process and a network; None for a network that the data will decide."""
    parser = make_parser("train", "Train a model on the rows of a file.")
    add = parser.add_argument
    add("data", nargs="?", type=str, help=tables.READABLE)
    add("--out", type=str, help="folder of the run")
    add("--config", type=str, help="YAML file of options, such as the config.yaml of another run")
    add("--val_fraction", type=float, default=0.1, help="fraction of the rows that is held out")
    add(
        "--data_shape",
        type=list[int] | None,
        default=None,
        help="of a row, such as [1,28,28]; the file's own",
    )
    add("--columns", type=list[str], default=[], help="of a table, such as [a,c]; all of them when left out")
    add("--size", type=int | None, default=None, help="pixels a side that images are cut and resized to")
    add("--dequantise", type=bool, default=False, help="add uniform (0, 1) noise to whole numbers")
    add("--loss", type=Literal[tuple(LOSSES)], default=default(fit, "loss"), help="weights of noise levels")
    add("--lr", type=float, default=default(fit, "lr"), help="peak learning rate")
    add("--schedule", type=Literal[tuple(SCHEDULES)], default="inverse-sqrt", help="of the learning rate")
    add(
        "--sigma_rel",
        type=list[float],
        default=[],
        help="lengths of power-function averages of the weights kept in snapshots, such as [0.05,0.1]",
    )
    add("--preview_every", type=int | None, default=None, help="steps between pictures of samples and errors")
    add(
        "--trackers",
        type=list[str],
        default=[],
        help="of Accelerate, beside log.csv, such as [tensorboard]",
    )
    kinds, own = Literal[tuple(PREDICTIONS)], default(DiffusionModel, "prediction")
    add("--prediction", type=kinds, default=own, help="what the network predicts")
    add_device(parser)
    parser.add_function_arguments(fit, skip=FIT_APART, as_group=False)
    parser.add_class_arguments(DiffusionModel, None, as_group=False, skip=MODEL_APART, instantiate=False)
    parser.set_defaults(progress=sys.stderr.isatty())
    _add_part(parser, "process", process)
    _add_part(parser, "network", network)
    return parser


def _add_part(parser: ArgumentParser, part: str, chosen: str | None) -> None:
    """``--process.name`` and the constructor's arguments as ``--process.argument``."""
    registry, title = PARTS[part], chosen or "MLP for vectors, UNet for images and signals"
    group = parser.add_argument_group(f"{part}: {title} (--{part} NAME --help shows the options of another)")
    kind: Any = Literal[tuple(registry)]
    kind = kind if chosen else kind | None
    group.add_argument(f"--{part}.name", type=kind, default=chosen, help=f"--{part} for short")
    if chosen is not None:
        skip: set[str | int] = {*FROM_DATA, *CONDITIONS}
        make: Any = registry[chosen]
        if inspect.isclass(make):
            group.add_class_arguments(make, part, as_group=False, skip=skip, instantiate=False)
        else:
            group.add_function_arguments(make, part, as_group=False, skip=skip)


def _own_config(argv: list[str]) -> str | None:
    """The config.yaml of a run that is to go on."""
    out, resume = value_of(argv, "--out"), "--resume" in argv or "--resume=true" in argv
    if out is None or not resume or value_of(argv, "--resume") == "false":
        return None
    path = Path(out) / "config.yaml"
    return str(path) if path.is_file() else None


def _class_of(part: str, argv: list[str], config: dict[str, Any]) -> str | None:
    """Which class is meant; a configuration's arguments of another one are taken out of it."""
    registry = PARTS[part]
    section = config.get(part) or {}
    section = section if isinstance(section, dict) else {"name": section}  # process: VP
    asked, stored = value_of(argv, f"--{part}.name"), section.get("name")
    for name in (asked, stored):
        if name is not None and name not in registry:
            near = nearest(str(name), registry)
            raise UsageError(
                f"there is no {part} {name!r}: did you mean {near}? There are {', '.join(registry)}"
            )
    if asked and stored and asked != stored:
        print(f"note      {part} {asked} instead of the configuration's {stored} and its options")
        section = {"name": asked}
    if part in config:
        config[part] = section
    return asked or stored or (_guess(part, argv) if part == "network" else None)


def _guess(part: str, argv: list[str]) -> str | None:
    """The one class that has the arguments given, where none is named."""
    words = [word.split("=")[0] for word in argv if word.startswith(f"--{part}.")]
    given = {word.split(".", 1)[1] for word in words}
    if not given:
        return None
    able = [n for n, make in PARTS[part].items() if given <= set(inspect.signature(make).parameters)]
    able = [n for n in able if n in USUAL] or able
    if len(able) == 1:
        return able[0]
    example = (able or list(PARTS[part]))[0]
    raise UsageError(f"{words[0]} is an option of which {part}? Name it, such as --{part} {example}")
