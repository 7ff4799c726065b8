"""``sdediff train``: a model from the rows of a file."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from torch import Tensor

from sdediff import files, networks, processes
from sdediff.data import dequantise
from sdediff.model import DiffusionModel
from sdediff.training import TrainingResult, fit
from sdediff.training.sources import isolated_rng, step_seed

from . import tables
from .options import FROM_DATA, PLACE, named, read_options
from .parsing import UsageError
from .trained import device_of


def main(argv: list[str]) -> int:
    """Train a model and write its run: config.yaml, log.csv, checkpoint, held_out.npy, model.safetensors."""
    argv = named(argv)
    options = read_options(argv)
    if options.data is None or options.out is None:
        raise UsageError(
            "data and a folder for the run are needed, such as sdediff train table.csv --out run"
        )
    out, resumed = Path(options.out), _resumed(options)
    rows = tables.read_rows(options.data, options.data_shape)
    tables.check_varies(rows, options.data)
    x, columns = rows
    if options.network.name is None:
        options = read_options([*argv, "--network.name", "MLP" if x.ndim == 2 else "UNet"])
    train, val = tables.split(x, options.val_fraction, options.seed)
    model = build(options, tuple(x.shape[1:]))
    print(f"data      {len(train)} rows to train on, {len(val)} held out, each of shape {model.data_shape}")
    print(f"model     {model}")
    if tables.are_levels(x) and not options.dequantise and x.ndim > 2:
        print("note      the data are whole numbers: for log-likelihoods of them train with --dequantise")
    if not resumed:
        _begin(out, options, val, columns)
    result = _fit(model, train, val, options, out)
    if resumed:
        _write_config(out, options)
    _report(result, out, len(val))
    return 0


def build(options: Namespace, shape: tuple[int, ...]) -> DiffusionModel:
    """The model, its initial weights a function of the seed.

    Raises:
        ValueError: If the network is not for data of this shape.
    """
    name = options.network.name
    known = inspect.signature(networks.REGISTRY[name]).parameters
    if "channels" in known and len(shape) < 2:
        raise ValueError(f"{name} needs signals or images and rows have shape {shape}: take --network MLP")
    fixed = {argument: value(shape) for argument, value in FROM_DATA.items() if argument in known}
    process = _construct(processes.REGISTRY, options.process)
    with isolated_rng(step_seed(options.seed, "weights", 0)):
        network = _construct(networks.REGISTRY, options.network, **fixed)
    arguments = {n: options[n] for n in inspect.signature(DiffusionModel).parameters if n in PLAIN}
    model = DiffusionModel(network, process, data_shape=shape, **arguments)
    return model.to(device_of(options.device))


CHECKPOINT = "checkpoint.safetensors"
#: Arguments of the model that are options as they are.
PLAIN = ("prediction", "prior", "scale_mode")


def _construct(registry: dict[str, Any], section: Namespace, **fixed: Any) -> Any:
    arguments = {key: value for key, value in section.as_dict().items() if key != "name"}
    return registry[section.name](**arguments, **fixed)


def _fit(model: DiffusionModel, train: Tensor, val: Tensor, options: Namespace, out: Path) -> TrainingResult:
    """Call fit with its own options; a run that fails before it has trained leaves nothing behind."""
    own = {name: options[name] for name in inspect.signature(fit).parameters if name in options}
    held = tables.floats(val) if len(val) else None
    try:
        return fit(
            model,
            tables.floats(train),
            val=held,
            augment=dequantise if options.dequantise else None,
            **own,
        )
    except KeyboardInterrupt:
        if not (out / CHECKPOINT).exists():
            _leave(out)
            raise KeyboardInterrupt("interrupted before the first step") from None
        raise KeyboardInterrupt(
            f"interrupted; what was trained is kept, sdediff train --out {out} --resume goes on with it"
        ) from None
    except Exception:
        if not any((out / name).exists() for name in (CHECKPOINT, "log.csv")):
            _leave(out)
        raise


def _resumed(options: Namespace) -> bool:
    """Whether there is a run to go on with; one that would be lost is refused."""
    exists = (Path(options.out) / CHECKPOINT).exists()
    if exists and not options.resume:
        raise ValueError(
            f"{options.out} holds a run already: give --resume to go on with it, or another --out"
        )
    return exists


#: What a run's folder holds besides what fit writes.
BESIDE = ("config.yaml", "held_out.npy", "columns.json")


def _begin(out: Path, options: Namespace, val: Tensor, columns: list[str] | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_config(out, options)
    for name in BESIDE[1:]:
        (out / name).unlink(missing_ok=True)
    if len(val):
        tables.write_rows(out / "held_out.npy", val)
    if columns:
        files.write_text(out / "columns.json", json.dumps(columns) + "\n")


def _leave(out: Path) -> None:
    for name in BESIDE:
        (out / name).unlink(missing_ok=True)
    with suppress(OSError):  # it holds other files
        out.rmdir()


def _write_config(out: Path, options: Namespace) -> None:
    content = {key: value for key, value in options.as_dict().items() if key not in PLACE}
    plain = json.loads(json.dumps(content))  # tuples as lists
    files.write_text(out / "config.yaml", yaml.safe_dump(plain, sort_keys=False))


def _report(result: TrainingResult, out: Path, held: int) -> None:
    last = result.history[-1] if result.history else {}
    titles = {"loss": "loss", "val_loss": "held-out loss"}
    losses = [f"{title} {last[key]:.4f}" for key, title in titles.items() if last.get(key) is not None]
    print(f"trained   {result.steps} steps in {result.seconds:.1f} s: {', '.join(losses)}")
    print(f"wrote     {out / 'model.safetensors'}")
    print(f"next      sdediff sample {out}")
    if held:
        print(f"          sdediff logprob {out} {out / 'held_out.npy'}")
