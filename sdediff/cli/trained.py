"""What ``sample`` and ``logprob`` share: the model, and the options of a solve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import torch
from jsonargparse import ArgumentParser, Namespace

import sdediff
from sdediff.group import Group
from sdediff.model import DiffusionModel
from solvers import GRIDS

from .parsing import UsageError

#: Parameters that are offered in another form, or make no sense in words.
HIDDEN: set[str | int] = {"model", "solver", "grid", "prior", "cond", "indices"}


def add_solve(parser: ArgumentParser) -> None:
    """Options of a solve whose type in Python is wider than words are."""
    add = parser.add_argument
    add("--solver", type=str, default="dopri5", help="name of a solver; sdediff doctor lists them")
    text = f"time grid of a fixed-grid solver: {', '.join(GRIDS)}, or a .json file of sdediff.save_grid"
    add("--grid", type=str | None, default=None, help=text)
    add(
        "--prior",
        type=Literal["matched", "standard"] | None,
        default=None,
        help="in place of the model's own",
    )
    add_device(parser)


def add_device(parser: ArgumentParser) -> None:
    """``--device``."""
    text = "where to compute, such as cuda:1; a GPU where torch has one, else the CPU"
    parser.add_argument("--device", type=str | None, default=None, help=text)


def model_file(path: str) -> Path:
    """The file of a model: that, or the model.safetensors of a run's folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    file = Path(path)
    if not file.is_dir():
        return file
    if not (file / "model.safetensors").is_file():
        raise FileNotFoundError(
            f"{path} is a folder without a model.safetensors: give a finished run of sdediff train, or a file"
        )
    return file / "model.safetensors"


def load(options: Namespace, group: Group) -> DiffusionModel:
    """The model that the options name, on this process's device; a grid's file is read into its place."""
    if options.model is None:
        raise UsageError("a model is needed: give the folder of a run, or a .safetensors file")
    if options.grid is not None and options.grid.endswith(".json"):
        options.grid = sdediff.load_grid(options.grid)
    return sdediff.load(model_file(options.model), device=device_of(options.device or str(group.device)))


def device_of(name: str | None) -> torch.device:
    """The device of a name, or the GPU where there is one."""
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"torch cannot compute on {name!r} here ({reason}): give --device cpu") from error
    return torch.device(name)


def columns(options: Namespace, model: DiffusionModel) -> list[str] | None:
    """Names of the columns the model was trained on, where its run knows them."""
    stored = model_file(options.model).parent / "columns.json"
    if not stored.is_file():
        return None
    names = json.loads(stored.read_text(encoding="utf-8"))
    return names if model.data_shape == (len(names),) else None


def describe(options: Namespace) -> str:
    """The solver, and what was asked of it."""
    given = [
        f"{name}={options[name]}"
        for name in ("steps", "grid", "rtol", "atol", "eta")
        if options.get(name) is not None
    ]
    return ", ".join([options.solver, *given])
