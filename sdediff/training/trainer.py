"""The training loop."""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from sdediff.training.augment import augmented
from sdediff.training.checkpoint import Checkpoint, load_optimizer
from sdediff.training.conditions import drop
from sdediff.training.ema import Averages, Power, Profile
from sdediff.training.engine import Engine, full
from sdediff.training.folder import RunFolder, dispensable
from sdediff.training.interrupts import interruptible, obey
from sdediff.training.losses import Loss
from sdediff.training.objective import Draw, Objective, Rows, StepLoss
from sdediff.training.sources import Source, convert, isolated_rng, step_seed
from sdediff.training.validation import Validation
from sdediff.training.watch import Watch

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


class Moment(NamedTuple):
    """What a callback sees: the step, the model with its averaged weights, and the run so far."""

    step: int
    model: DiffusionModel
    trainer: Trainer


class Callback(Protocol):
    """Something to do at intervals; called on the main process alone, outside the step's randomness."""

    #: Steps between calls; it is called at the end too.
    every: int

    def __call__(self, moment: Moment) -> None:
        """Do it."""


@dataclass(frozen=True)
class Settings:
    """What a run is, beside its model and data; see :func:`sdediff.training.fit`."""

    steps: int
    seed: int
    loss: Loss
    rate: Callable[[int], float]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    profiles: tuple[Profile, ...]
    clip: float | None
    augment: Callable[..., Any] | None
    cond_dropout: float
    accumulate: int
    compile: bool
    max_seconds: float | None
    log_every: int
    checkpoint_every: int
    snapshot_every: int | None
    progress: bool
    callbacks: Sequence[Callback]

    def __post_init__(self) -> None:
        for name in ("steps", "log_every", "checkpoint_every", "snapshot_every", "accumulate"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: give at least 1")
        if not 0 <= self.cond_dropout <= 1:
            raise ValueError(f"cond_dropout={self.cond_dropout}: give a probability, from 0 to 1")
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds={self.max_seconds}: give a positive time, or None for no limit")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip={self.clip}: give a positive norm, or None for no limit")
        if self.snapshot_every is not None and not any(isinstance(p, Power) for p in self.profiles):
            raise ValueError(
                f"snapshot_every={self.snapshot_every} without an average to take snapshots of: give "
                "averages=[Power(0.05), Power(0.10)]"
            )


class Step(nn.Module):
    """Model and objective as the one module that a step runs: what is wrapped for several processes."""

    def __init__(self, model: DiffusionModel, objective: Objective) -> None:
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, z: Tensor, cond: Tensor | None, draw: Draw, augment: Tensor | None) -> StepLoss:
        """Losses of a part of a batch."""
        return self.objective(self.model, z, cond, draw, augment)


class Trainer:
    """A run: the state between steps and the step itself.

    Args:
        model: The model. Where parameters are sharded over processes a copy of it is trained, and it receives
            whole weights for validation, for callbacks and at the end.
        source: The training data.
        settings: What the run is.
        objective: The loss.
        engine: This process's part.
        validation: The held-out data.
        folder: The run's folder.
        stored: A checkpoint to go on from, whose weights the model has already.
    """

    def __init__(
        self,
        model: DiffusionModel,
        source: Source,
        settings: Settings,
        objective: Objective,
        engine: Engine,
        validation: Validation | None = None,
        folder: RunFolder | None = None,
        stored: Checkpoint | None = None,
    ) -> None:
        self.model, self.source, self.settings = model, source, settings
        self.engine, self.validation, self.folder = engine, validation, folder
        if stored is not None:
            objective.load_state_dict(stored.objective)
        self._whole = Step(model, objective)
        self._module = module = copy.deepcopy(self._whole) if engine.sharded else self._whole
        self.trained, self.objective = module.model, module.objective
        self.wrapped, self.optimizer = engine.prepare(module, settings.optimizer(trainable(module)))
        self.parameters = trainable(module)
        first = next(p for p in self.parameters if p.is_floating_point())
        self.device, self.dtype = first.device, first.dtype
        self.averages = Averages(self.trained, settings.profiles)
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self._stop, self._over, self._saved = False, False, -1
        self.history: list[dict[str, Any]] = []
        self._losses: list[float] = []  # since the last line of the log
        self._watch, self._updating = Watch(), False
        self.raw: dict[str, Tensor] = {}
        if stored is not None:
            self._restore(stored)

    # -- the run ---------------------------------------------------------------------------------------------

    def run(self, config: dict[str, Any]) -> None:
        """Train up to ``settings.steps``; however it ends, the model then holds the averaged weights."""
        settings, training, began = self.settings, self.trained.training, time.perf_counter() - self.seconds
        shown = settings.progress and self.engine.main
        bar = tqdm(
            total=settings.steps, initial=self.step, disable=not shown, unit="step", dynamic_ncols=True
        )
        self.trained.train()
        try:
            with bar, interruptible() as signalled, self._compiled():
                while not self.finished:
                    self.advance(signalled)
                    self.seconds = time.perf_counter() - began
                    bar.update()
                    self._afterwards(bar, config)
                    if self._stop:
                        obey(signalled() or signal.SIGTERM)  # another process's signal counts here too
        except KeyboardInterrupt:
            if not self._updating:  # else it is an impatient second Ctrl-C; the last checkpoint stands
                self._save(config, last=True)
            raise
        finally:
            self.raw = {n: full(p).detach().clone() for n, p in self.trained.named_parameters()}
            with self.averaged():
                average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            with torch.no_grad():
                for name, parameter in self.model.named_parameters():
                    parameter.copy_(average[name])
            self.model.train(training)

    @property
    def finished(self) -> bool:
        """Whether all steps were made, or the time is over."""
        return self.step >= self.settings.steps or self._over

    def _afterwards(self, bar: tqdm[Any], config: dict[str, Any]) -> None:
        """Log, checkpoint and callbacks, where they are due after a step."""
        settings, end = self.settings, self.finished

        def due(every: int | None) -> bool:
            return every is not None and (self.step % every == 0 or end)

        if due(settings.log_every):
            self._log(bar)
        if due(settings.snapshot_every) and self.folder is not None:
            self._snapshot(self.folder)
        if due(settings.checkpoint_every) or self._stop:
            self._save(config, last=end or self._stop)
        calls = [callback for callback in settings.callbacks if due(callback.every)]
        if calls:
            with self.averaged():
                for callback in calls if self.engine.main else ():
                    callback(Moment(self.step, self.model, self))

    # -- a step ----------------------------------------------------------------------------------------------

    def advance(self, signalled: Callable[[], int] = lambda: 0) -> None:
        """One step: batch, loss, gradient, update, average; a function of (state, seed, step).

        Args:
            signalled: Tells whether this process was asked to stop; if one was, all stop after this step.
        """
        settings, engine, k = self.settings, self.engine, self.step
        x, cond, z, augment, rows, total = self._batch(k)
        self.optimizer.zero_grad(set_to_none=True)
        batch = self._gathered(Rows(z, cond, augment), rows, total)
        parts = torch.arange(rows.start, rows.stop).tensor_split(min(settings.accumulate, len(x)))
        seen = []
        with isolated_rng(step_seed(settings.seed, f"network/{rows.start}", k), self.device):
            for i, part in enumerate(parts):
                here = slice(int(part[0]) - rows.start, int(part[-1]) + 1 - rows.start)
                inputs = [None if v is None else v[here] for v in (z, cond, augment)]
                draw = Draw(settings.seed, k, part, total, batch)
                seen.append(self._gradient(inputs, draw, i + 1 < len(parts)))
        norm = engine.clip(self.parameters, settings.clip or math.inf)
        late = settings.max_seconds is not None and self.seconds >= settings.max_seconds
        flags = torch.tensor([float(bool(signalled())), float(late)], device=self.device)
        losses = torch.stack([part.loss.sum() for part in seen])
        loss, size, stop, over = engine.sum(losses.sum() / total, norm / engine.processes, *flags)
        size = 0.0 if engine.scales_gradients else size
        with engine.group.alike():
            self._watch(k, loss, size, lambda: engine.whole(not_finite(x), rows, total), self._intact)
        for group in self.optimizer.param_groups:
            group["lr"] = settings.rate(k)
        self._updating = True
        self.optimizer.step()
        if not engine.skipped:
            self.averages.update()
        self._observe(seen, rows, total)
        self._losses.append(loss)
        self.step, self._stop, self._over = k + 1, stop > 0, over > 0
        self._updating = False

    def _gradient(self, inputs: list[Tensor | None], draw: Draw, more: bool) -> StepLoss:
        """Add the gradient of a part of the batch; processes exchange it with the last part."""
        z, cond, augment = inputs
        with self.engine.accumulating(self.wrapped) if more else nullcontext():
            losses = StepLoss(*self.wrapped(z, cond, draw, augment))
            self.engine.backward(losses.loss.sum() / draw.total)
        return StepLoss(*(value.detach() for value in losses))

    def _batch(self, k: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, slice, int]:
        """This process's part of a step: x, cond, z in model units, labels, rows, size of the whole."""
        settings = self.settings
        x, cond, rows, total = self.source.batch(k, self.engine.share)
        if total < self.engine.processes:
            raise ValueError(
                f"a batch of {total} leaves one of {self.engine.processes} processes without a row: give at "
                "least one a process (of a DataLoader with drop_last=True)"
            )
        names = torch.arange(rows.start, rows.stop)
        x, labels = augmented(
            settings.augment, convert(x, self.parameters[0]), step_seed(settings.seed, "augment", k), names
        )
        if cond is not None:
            cond = torch.as_tensor(cond).to(self.device)
            if settings.cond_dropout:
                cond = drop(cond, settings.cond_dropout, Draw(settings.seed, k, names, total))
        return x, cond, self.model.to_model(x).to(self.dtype), labels, rows, total

    def _gathered(self, own: Rows, rows: slice, total: int) -> Rows | None:
        """The rows of the whole batch from each process's own, where the objective looks at them."""
        if not self.objective.gathers:
            return None
        cond, augment = (None if v is None else self.engine.whole(v, rows, total) for v in own[1:])
        return Rows(self.engine.whole(own.z, rows, total), cond, augment)

    def _observe(self, seen: Sequence[StepLoss], rows: slice, total: int) -> None:
        if not self.objective.learns:
            return
        t, statistic = (torch.cat([getattr(s, name) for s in seen]) for name in ("t", "statistic"))
        self.objective.observe(self.engine.whole(t, rows, total), self.engine.whole(statistic, rows, total))

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Within this context the network's forward pass is compiled, where that was asked for."""
        if not self.settings.compile:
            yield
            return
        network: Any = self.trained.network
        network.compile(dynamic=False)
        try:
            yield
        finally:
            network._compiled_call_impl = None

    # -- averages, log, files --------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[DiffusionModel]:
        """Within this context ``self.model`` holds the averaged weights, whole."""
        with self.averages.averaged():
            if self._whole is not self._module:
                present = self._module.state_dict()
                self._whole.load_state_dict({name: full(value) for name, value in present.items()})
            yield self.model

    def _log(self, bar: tqdm[Any]) -> None:
        """Add a line to the history, the bar, the log file and the trackers."""
        line = {"step": self.step, "loss": sum(self._losses) / len(self._losses), "val_loss": None}
        self._losses.clear()
        if self.validation is not None:
            with self.averaged() as model:
                line["val_loss"] = loss = self.validation.loss()
                if loss < self.best:
                    self.best = loss
                    if self.folder is not None and self.engine.main:
                        self.folder.save_best(model)
        line |= {"lr": self.settings.rate(self.step - 1), "seconds": round(self.seconds, 3)}
        self.history.append(line)
        shown = {"loss": f"{line['loss']:.4f}"} | (
            {} if line["val_loss"] is None else {"val": f"{line['val_loss']:.4f}"}
        )
        bar.set_postfix(shown)
        if self.folder is not None and self.engine.main:
            self.folder.write_log(self.history)
        self.engine.track({k: v for k, v in line.items() if k != "step"}, self.step)

    def _intact(self) -> str:
        """What a message of failure says of the last checkpoint."""
        latest = None if self.folder is None else self.folder.latest()
        return "" if latest is None else f"; the checkpoint {latest} is intact"

    def _snapshot(self, folder: RunFolder) -> None:
        from sdediff.training.posthoc import save_snapshot

        state = {name: full(value) for name, value in self.averages.state().items()}
        if self.engine.main:
            with dispensable(folder.path / "ema"):  # a gap that a reconstruction can tell of
                save_snapshot(folder.path, self.averages, self.step, state)

    def _save(self, config: dict[str, Any], *, last: bool) -> None:
        """Write the checkpoint, where there is a folder for it and none of this step yet."""
        if self.folder is None or self._saved == self.step:
            return
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = {
            i: {k: full(v) if isinstance(v, Tensor) else v for k, v in state.items()}
            for i, state in optimizer["state"].items()
        }
        parts = (self.trained.state_dict(), self.averages.state(), self.objective.state_dict())
        weights, averages, objective = ({name: full(value) for name, value in part.items()} for part in parts)
        progress = {
            "updates": self.averages.updates,
            "seconds": self.seconds,
            "history": self.history,
            "losses": self._losses,
            "watch": self._watch.state,
            "scaling": self.engine.scaling,
            "best": self.best if math.isfinite(self.best) else None,
        }
        if self.engine.main:
            state = Checkpoint(self.step, weights, averages, objective, optimizer, config, progress)
            self.folder.save(state, last=last)
        self._saved = self.step

    def _restore(self, stored: Checkpoint) -> None:
        """Continue from a checkpoint, whose weights the module has already."""
        progress = stored.progress
        self.averages.load(stored.averages, progress["updates"])
        load_optimizer(self.optimizer, stored.optimizer)
        self.step = self._saved = stored.step
        self.seconds, self.history = progress["seconds"], progress["history"]
        self._losses, self._watch.state = list(progress["losses"]), progress["watch"]
        self.engine.scaling = progress["scaling"]
        self.best = math.inf if progress["best"] is None else progress["best"]


def not_finite(x: Tensor) -> Tensor:
    """1 for every row that is not finite, else 0, (B,)."""
    return (~torch.isfinite(x).flatten(1).all(1)).to(torch.int64)


def trainable(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that are trained."""
    return [p for p in module.parameters() if p.requires_grad]
