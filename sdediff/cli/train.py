"""``sdediff train``: a model from the rows of a file."""

from __future__ import annotations

import inspect
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from sdediff import files, networks, processes
from sdediff.data import RowDataset, dequantise
from sdediff.group import current
from sdediff.model import DiffusionModel
from sdediff.training import Power, Preview, TrainingResult, fit
from sdediff.training.engine import is_main
from sdediff.training.folder import RunFolder
from sdediff.training.sources import isolated_rng, step_seed

from . import tables
from .options import FROM_DATA, PLACE, SCHEDULES, named, read_options
from .parsing import UsageError
from .trained import device_of


def main(argv: list[str]) -> int:
    """Train a model and write its run: config.yaml, log.csv, checkpoints, held_out.npy, models.

    Under a launcher of several processes each trains its share and the first alone writes and prints.
    """
    argv = named(argv)
    options = read_options(argv)
    if options.data is None or options.out is None:
        raise UsageError(
            "data and a folder for the run are needed, such as sdediff train table.csv --out run"
        )
    current()  # join the launch, so that what all have to say is said once
    out, resumed = Path(options.out), _resumed(options)
    say = print if is_main() else _silent
    choice = {name: options[name] for name in ("columns", "size") if options[name]}
    rows = tables.open_rows(options.data, options.data_shape, **choice)
    if options.network.name is None:
        options = read_options([*argv, "--network.name", "MLP" if len(rows.shape) == 1 else "UNet"])
    train, val = tables.parts(options.data, rows, options.val_fraction, options.seed)
    model = build(options, rows.shape)
    say(f"data      {len(train)} rows to train on, {len(val)} held out, each of shape {model.data_shape}")
    say(f"model     {model}")
    if tables.are_levels(rows) and not options.dequantise and len(rows.shape) > 1:
        say("note      the data are whole numbers: for log-likelihoods of them train with --dequantise")
    if resumed:
        reached = _reached(out)
        note = "" if reached < options.steps else ", which is all of them: give more --steps to go on"
        say(f"resumed   after {reached} of {options.steps} steps{note}")
    if not resumed and is_main():
        _begin(out, options, val, rows.columns)
    result = _fit(model, train, val, options, out)
    if is_main():
        if resumed:
            _write_config(out, options)
        _report(result, out, len(val))
    return 0


def _silent(*words: object) -> None:
    """What the other processes print."""


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


#: Arguments of the model that are options as they are.
PLAIN = ("prediction", "prior", "scale_mode")


def _construct(registry: dict[str, Any], section: Namespace, **fixed: Any) -> Any:
    arguments = {key: value for key, value in section.as_dict().items() if key != "name"}
    return registry[section.name](**arguments, **fixed)


def _fit(
    model: DiffusionModel, train: RowDataset, val: RowDataset, options: Namespace, out: Path
) -> TrainingResult:
    """Call fit with its own options; a run that fails before it has trained leaves nothing behind."""
    own = {name: options[name] for name in inspect.signature(fit).parameters if name in options}
    own["lr"] = SCHEDULES[options.schedule](options.lr, options.steps)
    own["averages"] = [Power(length) for length in options.sigma_rel]
    own["callbacks"] = [Preview(every=options.preview_every)] if options.preview_every else []
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
        if RunFolder(out).latest() is None:
            _leave(out)
            raise KeyboardInterrupt("interrupted before the first step") from None
        raise KeyboardInterrupt(
            f"interrupted; step {_reached(out)} is kept, and sdediff train --out {out} --resume goes on"
        ) from None
    except SystemExit:
        if is_main():
            print(
                f"stopped   by SIGTERM; step {_reached(out)} is kept, and sdediff train --out {out} "
                "--resume goes on"
            )
        raise
    except Exception:
        if RunFolder(out).latest() is None and not (out / "log.csv").exists():
            _leave(out)
        raise


def _reached(out: Path) -> int:
    """The step of the last checkpoint."""
    latest = RunFolder(out).latest()
    return 0 if latest is None else int(latest.stem)


def _resumed(options: Namespace) -> bool:
    """Whether there is a run to go on with; one that would be lost is refused."""
    exists = RunFolder(options.out).latest() is not None
    if exists and not options.resume:
        raise ValueError(
            f"{options.out} holds a run already: give --resume to go on with it, or another --out"
        )
    return exists


#: What a run's folder holds besides what fit writes.
BESIDE = ("config.yaml", "held_out.npy", "columns.json")


def _begin(out: Path, options: Namespace, val: RowDataset, columns: list[str] | None) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_config(out, options)
    for name in BESIDE[1:]:
        (out / name).unlink(missing_ok=True)
    if len(val):
        tables.write_rows(out / "held_out.npy", val)
    if columns:
        files.write_text(out / "columns.json", json.dumps(columns) + "\n")


def _leave(out: Path) -> None:
    """Take away what was written, on the main process."""
    if not is_main():
        return
    for name in (*BESIDE, "config.json", "environment.json"):
        (out / name).unlink(missing_ok=True)
    for folder in (out / "checkpoints", out):
        with suppress(OSError):  # it holds other files, or was not made
            folder.rmdir()


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
