"""``fit``: train a model by denoising score matching."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sdediff.serialization import describe, load_weights
from sdediff.training.augment import cleaned
from sdediff.training.checkpoint import check_same, differences
from sdediff.training.ema import Exponential, Profile
from sdediff.training.engine import Engine
from sdediff.training.folder import RunFolder
from sdediff.training.losses import Loss, get_loss
from sdediff.training.preview import Preview
from sdediff.training.schedules import InverseSqrt
from sdediff.training.sources import (
    DEFAULT_BATCH_SIZE,
    Source,
    TensorSource,
    check_rows,
    convert,
    isolated_rng,
    make_source,
    step_seed,
)
from sdediff.training.trainer import Callback, Settings, Trainer
from sdediff.training.validation import NoiseLevels, Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

    from sdediff.model import DiffusionModel

Data = Tensor | np.ndarray | Dataset | DataLoader
Optimizer = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainingResult:
    """What :func:`fit` returns.

    Attributes:
        model: The model that was given, now holding the averaged weights.
        steps: Steps trained so far, those before a resume included.
        seconds: Time spent on them.
        history: A dict every `log_every` steps: step, loss (mean since the last line), val_loss (of the
            averaged weights, or None), lr, seconds.
        noise_levels: Held-out error by noise level at the end; None without `val`.
        raw_weights: The parameters as the optimiser left them, by name (the average is in the model).
    """

    model: DiffusionModel
    steps: int
    seconds: float
    history: list[dict[str, Any]]
    noise_levels: NoiseLevels | None
    raw_weights: dict[str, Tensor]

    @property
    def val_loss(self) -> float | None:
        """The last validation loss."""
        return self.history[-1]["val_loss"] if self.history else None


@dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101); without decay it is Adam.

    Args:
        weight_decay: Decay per step, in units of the learning rate.
        betas: Decay of the averages of gradient and squared gradient.

    Example:
        >>> AdamW(weight_decay=0.01)([torch.nn.Parameter(torch.zeros(1))]).defaults["betas"]
        (0.9, 0.99)
    """

    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)

    def __call__(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser for these parameters; the rate is set at every step."""
        fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
        return torch.optim.AdamW(
            parameters, lr=1.0, betas=self.betas, weight_decay=self.weight_decay, fused=fused
        )


def fit(
    model: DiffusionModel,
    x_train: Data,
    *,
    steps: int = 2000,
    batch_size: int = DEFAULT_BATCH_SIZE,
    val: Data | None = None,
    cond: Tensor | np.ndarray | None = None,
    val_cond: Tensor | np.ndarray | None = None,
    lr: float | Callable[[int], float] = 2e-3,
    loss: str | Loss = "balanced",
    seed: int = 0,
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    units: Literal["learn", "keep"] = "learn",
    augment: Callable[[Tensor, int], Tensor] | None = None,
    ema_decay: float = 0.999,
    clip: float | None = 1.0,
    weight_decay: float = 0.0,
    optimizer: Optimizer | None = None,
    log_every: int = 100,
    checkpoint_every: int = 1000,
    progress: bool = True,
    cond_dropout: float = 0.0,
    averages: Sequence[Profile] = (),
    snapshot_every: int | None = None,
    keep: int = 2,
    max_seconds: float | None = None,
    accumulate: int = 1,
    precision: str | None = None,
    compile: bool = False,
    workers: int = 0,
    trackers: Sequence[Any] = (),
    callbacks: Sequence[Callback] = (),
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    r"""Train a model in place by denoising score matching; it ends up holding the averaged (EMA) weights.

    .. math:: E\; w(t)\,|F(\alpha z_0 + \sigma\epsilon, t) - F^*|^2 / d

    where z_0 are the data in model units and F* is what the network should put out (`model.target`). The loss
    shown is divided by the mean of the weight on the network's error, so it is of order 1 for every weighting
    and process.

    The batch, times and noise of step k are functions of (seed, k) alone and torch's global generator is left
    as it was (dropout and a Dataset's own draws are seeded by the step), so on a CPU 100 steps and 100
    resumed ones are 200 steps bit for bit. Started by ``accelerate launch`` or ``torchrun`` in several
    processes, each takes its share of every batch: the same batches, times and noise whatever their number.
    SIGTERM and Ctrl-C wait for the end of the step, write a checkpoint and stop.

    Args:
        model: The model; only parameters that require gradients are trained.
        x_train: Data in data units: a tensor or array (N, \*data_shape), a Dataset with items x or (x, cond),
            or a DataLoader of such batches (which brings its own batch size; to resume exactly it must not
            have a generator of its own).
        steps: Number of steps in all, those before a resume included.
        batch_size: Rows a step, over all processes and accumulated parts.
        val: Held-out data of any of these kinds, for the validation loss: at most 8192 rows, at fixed times
            and noise.
        cond: Conditions of the rows of a tensor, (N, cond_dim) or labels (N,).
        val_cond: Conditions of `val`.
        lr: Peak learning rate, reached after 100 steps, held to step 200 and decaying with the inverse
            square root of the step from there; or any function step -> rate, such as
            :class:`~sdediff.training.Cosine`.
        loss: "balanced" (the network's own error, log-normal over all noise levels), "native" (uniform
            in t), another of the names in :data:`sdediff.training.LOSSES`, or a loss such as
            :class:`~sdediff.training.DenoisingLoss`.
        seed: Seed of data order, times and noise.
        out: The run's folder, made if need be: ``checkpoints/`` (all that is needed to go on), ``log.csv``,
            ``config.json``, ``environment.json``, ``best.safetensors`` (lowest validation loss) and, at the
            end, ``model.safetensors`` (both for :func:`sdediff.load`). Those of an earlier run are replaced.
        resume: Go on from the checkpoint in `out`; where there is none, training starts afresh and says so.
        units: "learn" sets the model's shift, scale and moments from x_train (of a Dataset or DataLoader, up
            to 65536 rows); "keep" leaves them, for going on with a trained model.
        augment: Called as ``augment(x, seed)`` on every batch in data units, for example
            :func:`sdediff.data.dequantise`; units are learnt from, and validation is done on, data augmented
            so, or by its part ``augment.clean`` where it has one (:class:`sdediff.data.Augment`). It is told
            which rows these are where it takes ``indices=``, and may return ``(x, labels)`` for a network
            built with ``augment_dim``.
        ema_decay: Largest decay of the weight average; it starts smaller (:class:`~sdediff.training.EMA`).
        clip: Largest norm of the gradient; None for no limit.
        weight_decay: Of AdamW.
        optimizer: Function parameters -> torch optimiser, instead of AdamW; its rate is set by `lr` at every
            step.
        log_every: Steps between lines of the history.
        checkpoint_every: Steps between checkpoints; one is also written at the end, on Ctrl-C and on SIGTERM.
        progress: Show a progress bar on stderr.
        cond_dropout: Probability with which a row's condition is left out, for a network built with
            ``optional_cond`` (classifier-free guidance: Ho & Salimans 2022, arXiv 2207.12598).
        averages: Further averages of the weights, such as :class:`~sdediff.training.Power`; kept in
            checkpoints and snapshots.
        snapshot_every: Steps between snapshots of `averages` in the run's folder, from which
            :func:`sdediff.training.reconstruct` makes an average of any length afterwards.
        keep: Number of latest checkpoints that are kept.
        max_seconds: Stop after this time; a resumed run counts what it used before.
        accumulate: Parts into which a process's rows are cut, one after another: less memory, same gradient.
        precision: "no", "bf16" or "fp16" for the network's matrix products; None for what the launcher says.
        compile: Run the network through ``torch.compile`` while training.
        workers: Processes that read a Dataset ahead.
        trackers: Names of Accelerate's trackers beside ``log.csv``, such as "tensorboard" or "wandb".
        callbacks: Called as ``callback(moment)`` every ``callback.every`` steps and at the end with the
            averaged weights, such as :class:`~sdediff.training.Preview`.
        accelerator: An ``accelerate.Accelerator`` of your own.

    Returns:
        The history and the model.

    Raises:
        ValueError: If data are empty, of the wrong shape, constant in a column or not finite, or a resumed
            run differs.
        TypeError: If arguments do not go together.
        RuntimeError: If the loss is not finite or diverges; the last checkpoint is intact.
        OSError: If the last checkpoint cannot be written (a full disk before is a warning).

    Source: Song et al. 2021, arXiv 2011.13456, Eq. 7; the average and its weights at the end as in Ho et al.
        2020, arXiv 2006.11239.

    Example:
        >>> import sdediff
        >>> net = sdediff.networks.MLP(dim=2, hidden=16)
        >>> model = sdediff.DiffusionModel(net, process=sdediff.VP(), prediction="eps", data_shape=(2,))
        >>> fit(model, torch.randn(100, 2), steps=3, batch_size=10, progress=False).steps
        3
    """
    settings = Settings(
        steps=steps,
        seed=seed,
        loss=get_loss(loss),
        rate=lr if callable(lr) else InverseSqrt(lr),
        optimizer=_optimizer(optimizer, weight_decay),
        profiles=(Exponential(ema_decay), *averages),
        clip=clip,
        augment=augment,
        cond_dropout=cond_dropout,
        accumulate=accumulate,
        compile=compile,
        max_seconds=max_seconds,
        log_every=log_every,
        checkpoint_every=checkpoint_every,
        snapshot_every=snapshot_every,
        progress=progress,
        callbacks=tuple(callbacks),
    )
    source = make_source(x_train, cond, batch_size, seed, workers)
    folder = None if out is None else RunFolder(out, keep)
    with Engine(_trained(model), precision, trackers, out, accelerator) as engine:
        return _fit(model, source, settings, engine, folder, units, resume, (val, val_cond))


def _fit(
    model: DiffusionModel,
    source: Source,
    settings: Settings,
    engine: Engine,
    folder: RunFolder | None,
    units: str,
    resume: bool,
    held: tuple[Any, Any],
) -> TrainingResult:
    """Train, by the engine's processes; `held` are held-out rows and their conditions."""
    _check(source, units, resume, folder, held)
    if folder is None and any(isinstance(callback, Preview) for callback in settings.callbacks):
        raise TypeError("a Preview is written into the run's folder: give out=")
    _check_dropout(model, source, settings.cond_dropout)
    model.to(engine.device)
    stored = folder.load() if resume and folder is not None else None
    rows = source.sample()
    check_rows(rows, model.data_shape, "x_train")
    if units == "learn" and stored is None:
        _learn_units(model, rows, settings)
    # What cannot be saved at the end is refused now.
    description = {} if folder is None else describe(model)
    config = {"model": description, "data": source.config, "units": units} | _describe(settings)
    if folder is not None and stored is not None:
        check_same(stored.config, config, folder.latest())
        load_weights(model, stored.weights, "the checkpoint")  # before the loss and the held-out data see it
    with isolated_rng(step_seed(settings.seed, "objective", 0)):  # a loss may have weights of its own
        objective = settings.loss.objective(model).to(engine.device)
    seed, augment = settings.seed, settings.augment
    validation = None if held[0] is None else Validation(model, *held, objective, seed, augment)
    trainer = Trainer(model, source, settings, objective, engine, validation, folder, stored)
    with engine.group.alike():
        _check_alike(engine, {"step": trainer.step} | config)
    if folder is not None and engine.main:
        facts = {"processes": engine.processes, "device": str(engine.device), "step": trainer.step}
        folder.begin(config, stored is not None, facts)
    if engine.main:
        engine.begin_tracking("sdediff" if folder is None else folder.path.name, config)
    engine.accelerator.wait_for_everyone()
    trainer.run(config)
    if folder is not None and engine.main:
        model.save(folder.model)
    levels = None if validation is None else validation.noise_levels()
    return TrainingResult(model, trainer.step, trainer.seconds, trainer.history, levels, trainer.raw)


def _trained(model: DiffusionModel) -> torch.nn.Parameter:
    """The first parameter that is trained."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            return parameter
    raise ValueError(
        "the model has no parameters to train: build it from a torch module with some that require gradients"
    )


def _optimizer(optimizer: Optimizer | None, weight_decay: float) -> Optimizer:
    if optimizer is not None and weight_decay:
        raise TypeError("weight_decay= goes with the default optimiser: set it in optimizer= instead")
    return optimizer or AdamW(weight_decay)


def _check(source: Source, units: str, resume: bool, folder: RunFolder | None, held: tuple[Any, Any]) -> None:
    """Refuse arguments that do not go together, before anything is touched."""
    if units not in ("learn", "keep"):
        raise ValueError(f'units={units!r}: give "learn" or "keep"')
    if resume and folder is None:
        raise TypeError("resume=True needs to know where from: give out=, the folder of the run")
    val, val_cond = held
    if val is None and val_cond is not None:
        raise TypeError("val_cond= are the conditions of held-out rows: give those too, val=")
    conditional = isinstance(source, TensorSource) and source.cond is not None
    if conditional and val_cond is None and val is not None and not isinstance(val, (Dataset, DataLoader)):
        raise TypeError(
            "cond= and val= were given without val_cond=: give the conditions of the held-out rows too"
        )


def _check_alike(engine: Engine, facts: dict[str, Any]) -> None:
    """Refuse a run whose processes would not do the same."""
    first, *others = engine.group.together(lambda: facts)
    for rank, other in enumerate(others, start=1):
        changed = differences(first, other)
        if changed:
            raise ValueError(
                f"process {rank} of this launch is not where the first is: it differs in "
                f"{'; '.join(changed)}; every process needs the same arguments, data and run folder"
            )


def _check_dropout(model: DiffusionModel, source: Source, p: float) -> None:
    """Refuse to leave out conditions that are not there, or that the network says it cannot do without."""
    if p and isinstance(source, TensorSource) and source.cond is None:
        raise TypeError(f"cond_dropout={p} without conditions to leave out: give cond=, one a row")
    if p and getattr(model.network, "config", {}).get("optional_cond") is False:
        name = type(model.network).__name__
        raise ValueError(
            f"cond_dropout={p} with a network that needs its condition: build {name}(optional_cond=True)"
        )


def _learn_units(model: DiffusionModel, rows: Tensor, settings: Settings) -> None:
    rows = convert(rows, next(model.parameters()))
    model.set_units(cleaned(settings.augment, rows, step_seed(settings.seed, "units", 0)))


def _describe(settings: Settings) -> dict[str, Any]:
    """What a resumed run must share, as JSON."""
    names = ("seed", "loss", "rate", "optimizer", "profiles", "clip", "augment", "cond_dropout", "accumulate")
    plain = (int, float, type(None))
    values = {name: getattr(settings, name) for name in names}
    return {
        k: v if isinstance(v, plain) else re.sub(r" at 0x[0-9a-f]+", "", repr(v)) for k, v in values.items()
    }
