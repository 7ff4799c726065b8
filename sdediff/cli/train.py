"""``sdediff train``: a model from the rows of a file."""

from __future__ import annotations

import inspect
import json
import math
import sys
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from sdediff import files, networks, processes
from sdediff.data import dequantise
from sdediff.model import DiffusionModel
from sdediff.predictions import PREDICTIONS
from sdediff.training import LOSSES, TrainingResult, fit
from sdediff.training.sources import isolated_rng, step_seed

from . import tables
from .parsing import (
    UsageError,
    check_config,
    default,
    make_parser,
    nearest,
    parse,
    read_config,
    value_of,
)
from .trained import device_of

#: Constructor arguments of networks that follow from the data.
FROM_DATA = {
    "dim": lambda shape: math.prod(shape),
    "channels": lambda shape: shape[0],
    "dims": lambda shape: len(shape) - 1,
}
CONDITIONS = {"cond_dim", "num_classes"}
#: Options that say where and how, not what: left out of config.yaml.
PLACE = ("config", "out", "resume", "overwrite", "progress", "device")


def main(argv: list[str]) -> int:
    """Train a model and write its run: config.yaml, log.csv, checkpoints, held_out.npy, model.safetensors."""
    argv = _named(argv)
    options = read_options(argv)
    if options.data is None or options.out is None:
        raise UsageError(
            "sdediff train needs data and a folder for the run, such as sdediff train table.csv --out run"
        )
    out, resumed = Path(options.out), _resumed(options)
    x = tables.read_rows(options.data, options.data_shape)
    shape = tuple(x.shape[1:])
    if options.network.name is None:
        options = read_options([*argv, "--network.name", "MLP" if len(shape) == 1 else "UNet"])
    train, val = tables.split(x, options.val_fraction, options.seed)
    model = build(options, shape)
    print(f"data      {len(train)} rows to train on, {len(val)} held out, each of shape {shape}")
    print(model)
    if tables.are_levels(x) and not options.dequantise and len(shape) > 1:
        print("note      the data are whole numbers: for log-likelihoods of them train with --dequantise")
    out.mkdir(parents=True, exist_ok=True)
    if not resumed:
        _write_beginning(out, options, val)
    try:
        result = fit(
            model, tables.floats(train), val=tables.floats(val) if len(val) else None, **_fit(options)
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_interrupted(out)) from None
    if resumed:
        _write_config(out, options)
    _report(result, out, len(val))
    return 0


# -- options ----------------------------------------------------------------------------------------------------------------------


def read_options(argv: list[str]) -> Namespace:
    """Options of the command line, over those of ``--config`` (of the run itself with ``--resume``), over the defaults."""
    path = value_of(argv, "--config")
    own = Path(value_of(argv, "--out") or "") / "config.yaml"
    if path is None and "--out" in " ".join(argv) and _wants(argv, "--resume") and own.is_file():
        path = str(own)
    config = {} if path is None else read_config(path)
    parts = {}
    for part, registry in (("process", processes.REGISTRY), ("network", networks.REGISTRY)):
        parts[part] = _class_of(part, registry, argv, config)
    parser = make_options(**parts)
    if path is not None:
        check_config(parser, config, path)
    return parse(parser, argv, config)


def make_options(process: str | None, network: str | None) -> ArgumentParser:
    """The parser for a process and a network; None for a network that the data will decide."""
    parser = make_parser("train", "Train a model on the rows of a file.")
    add = parser.add_argument
    add(
        "data",
        nargs="?",
        type=str,
        help=".npy, .npz, .pt or .csv file; file.npz:name takes one of its arrays",
    )
    add("--out", type=str, help="folder of the run")
    add("--config", type=str, help="YAML file of options, such as the config.yaml of another run")
    add("--overwrite", type=bool, default=False, help="replace a run that is in the folder")
    add("--val_fraction", type=float, default=0.1, help="fraction of the rows that is held out")
    add(
        "--data_shape",
        type=list[int] | None,
        default=None,
        help="shape of a row, such as [1,28,28], if not the file's",
    )
    add(
        "--dequantise",
        type=bool,
        default=False,
        help="add uniform (0, 1) noise to whole numbers, anew at every step",
    )
    add(
        "--device",
        type=str | None,
        default=None,
        help="where to compute; a GPU where torch has one, else the CPU",
    )
    add("--loss", type=Literal[tuple(LOSSES)], default=default(fit, "loss"), help="weighting of noise levels")
    add("--lr", type=float, default=default(fit, "lr"), help="peak learning rate")
    add(
        "--prediction",
        type=Literal[tuple(PREDICTIONS)],
        default=default(DiffusionModel, "prediction"),
        help="what the network predicts",
    )
    skip = {
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
    }
    parser.add_function_arguments(fit, skip=skip, as_group=False)
    skip = {"network", "process", "data_shape", "prediction"}
    parser.add_class_arguments(DiffusionModel, None, as_group=False, skip=skip, instantiate=False)
    parser.set_defaults(progress=sys.stderr.isatty())
    _add_part(parser, "process", processes.REGISTRY, process or "VP")
    _add_part(parser, "network", networks.REGISTRY, network)
    return parser


def _add_part(parser: ArgumentParser, part: str, registry: dict[str, Any], chosen: str | None) -> None:
    """``--process NAME`` and the arguments of that class's constructor as ``--process.argument``."""
    title = f"{part}: {chosen or 'MLP for vectors, UNet for images and signals'} (--{part} NAME --help shows another's options)"
    group = parser.add_argument_group(title)
    kind = Literal[tuple(registry)]
    group.add_argument(
        f"--{part}.name", type=kind if chosen else kind | None, default=chosen, help=f"same as --{part}"
    )
    if chosen is not None:
        skip = {*FROM_DATA, *CONDITIONS} & set(inspect.signature(registry[chosen]).parameters)
        group.add_class_arguments(registry[chosen], part, as_group=False, skip=skip, instantiate=False)


def _named(argv: list[str]) -> list[str]:
    """``--process VE`` as ``--process.name VE``, and so for the network."""
    for part in ("process", "network"):
        argv = [f"--{part}.name" if w == f"--{part}" else w for w in argv]
        argv = [w.replace("=", ".name=", 1) if w.startswith(f"--{part}=") else w for w in argv]
    return argv


def _class_of(part: str, registry: dict[str, Any], argv: list[str], config: dict[str, Any]) -> str | None:
    """Which class is meant; a configuration's arguments of another one are left out of it."""
    section = config.get(part) if isinstance(config.get(part), dict) else {"name": config.get(part)}
    asked, stored = value_of(argv, f"--{part}.name"), section.get("name")
    for name in (asked, stored):
        if name is not None and name not in registry:
            raise UsageError(
                f"there is no {part} {name!r}: did you mean {nearest(str(name), registry)}? There are {', '.join(registry)}"
            )
    if asked and stored and asked != stored:
        print(
            f"sdediff: {part} {asked} takes the place of the configuration's {stored} and its options",
            file=sys.stderr,
        )
        section = {"name": asked}
    if part in config:
        config[part] = section
    return asked or stored or _guess(part, registry, argv)


def _guess(part: str, registry: dict[str, Any], argv: list[str]) -> str | None:
    """The one class that has the arguments given, where none is named."""
    given = {w.split("=")[0].split(".", 1)[1] for w in argv if w.startswith(f"--{part}.")} - {"name"}
    if part == "process" or not given:
        return None
    able = [name for name, cls in registry.items() if given <= set(inspect.signature(cls).parameters)]
    if len(able) == 1:
        return able[0]
    raise UsageError(
        f"--{part}.{min(given)} belongs to a {part}: say to which, such as --{part} {(able or list(registry))[0]}"
    )


def _wants(argv: list[str], flag: str) -> bool:
    return (flag in argv and value_of(argv, flag) != "false") or f"{flag}=true" in argv


# -- the run ----------------------------------------------------------------------------------------------------------------------


def build(options: Namespace, shape: tuple[int, ...]) -> DiffusionModel:
    """The model, its initial weights a function of the seed."""
    process = _construct(processes.REGISTRY, options.process)
    network = networks.REGISTRY[options.network.name]
    if "channels" in inspect.signature(network).parameters and len(shape) < 2:
        raise ValueError(
            f"{options.network.name} needs signals or images and the rows have shape {shape}: take --network MLP"
        )
    known = inspect.signature(network).parameters
    fixed = {name: value(shape) for name, value in FROM_DATA.items() if name in known}
    with isolated_rng(step_seed(options.seed, "weights", 0)):
        net = _construct(networks.REGISTRY, options.network, **fixed)
    model = DiffusionModel(
        net, process, options.prediction, shape, prior=options.prior, scale_mode=options.scale_mode
    )
    return model.to(device_of(options.device))


def _construct(registry: dict[str, Any], section: Namespace, **fixed: Any) -> Any:
    arguments = {key: value for key, value in section.as_dict().items() if key != "name"}
    return registry[section.name](**arguments, **fixed)


def _fit(options: Namespace) -> dict[str, Any]:
    """The options that are parameters of fit."""
    names = [n for n in inspect.signature(fit).parameters if n in options]
    return {n: options[n] for n in names} | {"augment": dequantise if options.dequantise else None}


def _resumed(options: Namespace) -> bool:
    """Whether there is a run to go on with; one that would be lost is refused."""
    checkpoint = Path(options.out) / "checkpoint.safetensors"
    if checkpoint.exists() and not (options.resume or options.overwrite):
        raise ValueError(
            f"{options.out} holds a run already: give --resume to go on with it, --overwrite to replace it, or another --out"
        )
    return bool(options.resume) and checkpoint.exists()


def _write_beginning(out: Path, options: Namespace, val: Tensor) -> None:
    for old in ("checkpoint.safetensors", "model.safetensors", "log.csv", "held_out.npy", "columns.json"):
        (out / old).unlink(missing_ok=True)
    _write_config(out, options)
    if len(val):
        tables.write_rows(out / "held_out.npy", val)
    columns = tables.columns_of(options.data)
    if columns:
        files.write_text(out / "columns.json", json.dumps(columns) + "\n")


def _write_config(out: Path, options: Namespace) -> None:
    content = {key: value for key, value in options.as_dict().items() if key not in PLACE}
    plain = json.loads(json.dumps(content))  # tuples as lists
    files.write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def _interrupted(out: Path) -> str:
    return f"interrupted; what was trained is kept: sdediff train --out {out} --resume goes on"


def _report(result: TrainingResult, out: Path, held: int) -> None:
    last = result.history[-1] if result.history else {}
    losses = [
        f"{name} {last[key]:.4f}"
        for name, key in (("loss", "loss"), ("held-out loss", "val_loss"))
        if last.get(key)
    ]
    print(f"trained   {result.steps} steps in {result.seconds:.1f} s: {', '.join(losses)}")
    print(f"model     {out / 'model.safetensors'}")
    print(
        f"next      sdediff sample {out}"
        + (f"; sdediff logprob {out} {out / 'held_out.npy'}" if held else "")
    )
