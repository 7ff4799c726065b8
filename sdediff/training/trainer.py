"""The training loop."""

from __future__ import annotations

import csv
import io
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from sdediff import files
from sdediff.serialization import load_weights
from sdediff.training.checkpoint import Checkpoint, differences, load_optimizer
from sdediff.training.ema import EMA
from sdediff.training.losses import DenoisingLoss
from sdediff.training.objective import Draw, Objective
from sdediff.training.sources import Source, convert, isolated_rng, step_seed
from sdediff.training.validation import Validation

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


@dataclass(frozen=True)
class Settings:
    """What a run is, beside its model and data; see :func:`sdediff.training.fit`."""

    steps: int
    seed: int
    loss: DenoisingLoss
    rate: Callable[[int], float]
    optimizer: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]
    ema_decay: float
    clip: float | None
    augment: Callable[[Tensor, int], Tensor] | None
    log_every: int
    checkpoint_every: int
    progress: bool
    out: Path | None


class Trainer:
    """A run: the state between steps and the step itself."""

    def __init__(
        self,
        model: DiffusionModel,
        source: Source,
        settings: Settings,
        objective: Objective,
        validation: Validation | None,
    ) -> None:
        self.model, self.source, self.settings = model, source, settings
        self.objective, self.validation = objective, validation
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.parameters, self.device, self.dtype = parameters, parameters[0].device, parameters[0].dtype
        self.optimizer = settings.optimizer(parameters)
        self.ema = EMA(model, settings.ema_decay)
        self.step, self.seconds = 0, 0.0
        self.history: list[dict[str, Any]] = []
        self._losses: list[float] = []  # since the last line of the log
        self._watch = Watch()
        self._updating = False
        self.raw: dict[str, Tensor] = {}

    def run(self, config: dict[str, Any]) -> None:
        """Train up to ``settings.steps``; however it ends, the model then holds the averaged weights."""
        settings, training, began = self.settings, self.model.training, time.perf_counter() - self.seconds
        self.model.train()
        bar = tqdm(
            total=settings.steps,
            initial=self.step,
            disable=not settings.progress,
            unit="step",
            dynamic_ncols=True,
        )
        try:
            with bar, interruptible() as interrupted:
                while self.step < settings.steps:
                    self.advance()
                    self.seconds = time.perf_counter() - began
                    bar.update()
                    if self.step % settings.log_every == 0 or self.step == settings.steps:
                        self.log(bar)
                    if self.step % settings.checkpoint_every == 0 or self.step == settings.steps:
                        self.save(config)
                    if interrupted():
                        raise KeyboardInterrupt
        except KeyboardInterrupt:
            if not self._updating:  # an impatient second Ctrl-C; the last checkpoint stands
                self.save(config)
            raise
        finally:
            self.raw = {n: p.detach().clone() for n, p in self.model.named_parameters()}
            self.ema.copy_to_module()
            self.model.train(training)

    def advance(self) -> None:
        """One step: batch, loss, gradient, update, average; a function of (state, seed, step)."""
        k, seed = self.step, self.settings.seed
        x, cond = self.source.batch(k)
        x = convert(x, self.parameters[0])
        if self.settings.augment is not None:
            x = self.settings.augment(x, step_seed(seed, "augment", k))
        z = self.model.to_model(x).to(self.dtype)
        if cond is not None:
            cond = torch.as_tensor(cond).to(self.device)
        with isolated_rng(step_seed(seed, "network", k), self.device):
            value = self.loss(z, cond)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip or math.inf)
        loss, size = torch.stack([value.detach(), norm.to(value.dtype)]).tolist()
        self._watch(k, loss, size, x)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(k)
        self._updating = True
        self.optimizer.step()
        self.ema.update()
        self._losses.append(loss)
        self.step += 1
        self._updating = False

    def loss(self, z: Tensor, cond: Tensor | None) -> Tensor:
        """The loss of a batch, in model units, at this step's times and noise."""
        draw = Draw(self.settings.seed, self.step, torch.arange(len(z)), len(z))
        return self.objective(self.model, z, cond, draw).loss.mean()

    def log(self, bar: tqdm[Any]) -> None:
        """Add a line to the history, the bar and the log file."""
        line = {"step": self.step, "loss": sum(self._losses) / len(self._losses), "val_loss": None}
        self._losses.clear()
        if self.validation is not None:
            with self.ema.averaged():
                line["val_loss"] = self.validation.loss()
        line |= {"lr": self.settings.rate(self.step - 1), "seconds": round(self.seconds, 3)}
        self.history.append(line)
        shown = {"loss": f"{line['loss']:.4f}"} | (
            {} if line["val_loss"] is None else {"val": f"{line['val_loss']:.4f}"}
        )
        bar.set_postfix(shown)
        if self.settings.out is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, list(line), lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.history)
            files.write_text(self.settings.out / "log.csv", text.getvalue())

    def save(self, config: dict[str, Any]) -> None:
        """Write the checkpoint, where there is a folder for it."""
        if self.settings.out is None:
            return
        Checkpoint(
            step=self.step,
            weights=dict(self.model.state_dict()),
            average=self.ema.shadow,
            optimizer=self.optimizer.state_dict(),
            config=config,
            updates=self.ema.updates,
            seconds=self.seconds,
            history=self.history,
        ).save(self.settings.out / "checkpoint.safetensors")

    def restore(self, checkpoint: Checkpoint, config: dict[str, Any], path: Path) -> None:
        """Continue from a checkpoint of the same run.

        Raises:
            ValueError: Naming what differs between the runs.
        """
        changed = differences(checkpoint.config, config)
        if changed:
            raise ValueError(
                f"{path} is of another run, it differs in {'; '.join(changed)}: "
                "resume with the same settings or choose another out="
            )
        load_weights(self.model, checkpoint.weights, str(path))
        self.ema.load(checkpoint.average, checkpoint.updates)
        load_optimizer(self.optimizer, checkpoint.optimizer)
        self.step, self.seconds, self.history = checkpoint.step, checkpoint.seconds, checkpoint.history


class Watch:
    """Stops a run whose loss is not finite, or has grown beyond a hundred times where it began."""

    SPAN, FACTOR = 20, 100.0

    def __init__(self) -> None:
        self._seen, self._mean, self._start = 0, 0.0, 0.0

    def __call__(self, step: int, loss: float, size: float, x: Tensor) -> None:
        """Look at step `step`'s loss and gradient norm, before the weights are changed by it."""
        if not math.isfinite(loss + size):
            bad = ~torch.isfinite(x).flatten(1).all(1)
            if bool(bad.any()):
                raise ValueError(
                    f"step {step}: row {int(bad.nonzero()[0])} of the batch has NaN or infinite values: "
                    "remove or fill them"
                )
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise RuntimeError(
                f"training stopped at step {step}: the {what} is {loss if what == 'loss' else size}; "
                "lower lr=, or look for huge values in the data"
            )
        self._seen += 1
        weight = max(1 / self._seen, 1 / self.SPAN)
        self._mean += weight * (loss - self._mean)
        if self._seen == self.SPAN:
            self._start = max(1.0, self._mean)
        if self._seen > self.SPAN and self._mean > self.FACTOR * self._start:
            raise RuntimeError(
                f"training stopped at step {step}: the loss has grown from {self._start:.3g} "
                f"to {self._mean:.3g} and diverges; lower lr="
            )


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C wait for the end of the step, so that no half-made update is saved; a second is obeyed."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    former, asked = signal.getsignal(signal.SIGINT), False
    if former is not signal.default_int_handler:  # the caller has a use of its own for the signal
        yield lambda: False
        return

    def handler(number: int, frame: Any) -> None:
        nonlocal asked
        asked = True
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, former)
