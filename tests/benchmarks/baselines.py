"""Baselines of other libraries that diffusion models are compared with: zuko's neural spline flow.

A baseline is trained as carefully as our own models are: AdamW, a rate that falls to zero when time is over,
dropout, an average of the weights, the weights of the best validation kept, and data drawn afresh every step
(dequantisation, augmentation). What suits a data set is an :class:`NSFOptions`, chosen on validation data.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import zuko
from torch import Tensor, nn

Refresh = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class NSFOptions:
    """A flow and how it is trained.

    Args:
        transforms: Autoregressive transformations, orders alternating.
        hidden: Widths of the hidden layers of each.
        bins: Bins of a spline.
        dropout: Of hidden units.
        batch_size: Rows of a step.
        lr: First rate; a cosine takes it to zero.
        weight_decay: Of AdamW, on matrices.
        average: Share of the training so far that the average of the weights spans; 0 for none.
        shift: Subtracted from the data, a number or per column; the mean when left out.
        scale: The data are divided by it; the standard deviation when left out.
    """

    transforms: int = 3
    hidden: tuple[int, ...] = (128, 128)
    bins: int = 8
    dropout: float = 0.0
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 0.0
    average: float = 0.1
    shift: float | None = None
    scale: float | None = None


class Flow(nn.Module):
    """zuko's NSF of data in their own units."""

    shift: Tensor
    scale: Tensor

    def __init__(self, x: Tensor, options: NSFOptions) -> None:
        super().__init__()
        shift = x.mean(0) if options.shift is None else torch.full_like(x[0], options.shift)
        scale = x.std(0) if options.scale is None else torch.full_like(x[0], options.scale)
        self.register_buffer("shift", shift)
        self.register_buffer("scale", scale)
        self.flow = zuko.flows.NSF(
            x.shape[1],
            transforms=options.transforms,
            bins=options.bins,
            hidden_features=options.hidden,
            activation=functools.partial(_activation, options.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Log-density of rows x, (B,), in nats."""
        return self.flow().log_prob((x - self.shift) / self.scale) - self.scale.log().sum()


def _activation(dropout: float) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Dropout(dropout)) if dropout else nn.ReLU()


class NSFTraining:
    """A training that can be carried on in slices; `spent` is its own clock.

    Args:
        x_train: Rows to train on, (N, d), before `refresh`.
        x_val: Rows as they are to be evaluated.
        seconds: Its time.
        seed: Seed of weights, batches, dropout and what `refresh` draws.
        options: The flow and its training.
        refresh: Called on every batch with a generator: dequantisation and augmentation.
        clock: What its time is measured by, in seconds.
    """

    VALIDATIONS = 30

    def __init__(
        self,
        x_train: Tensor,
        x_val: Tensor,
        seconds: float,
        seed: int,
        options: NSFOptions = NSFOptions(),
        refresh: Refresh | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.x_train, self.x_val, self.seconds, self.options = x_train, x_val, seconds, options
        self.clock = clock
        self.generator = torch.Generator().manual_seed(seed)
        self.refresh = refresh or (lambda x, generator: x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.flow = Flow(self.refresh(x_train, self.generator), options)
            self.rng = torch.get_rng_state()
        parameters = list(self.flow.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": options.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=options.lr, fused=True)
        self.average = copy.deepcopy(self.flow).eval().requires_grad_(False)
        self.best = copy.deepcopy(self.average)
        self.spent, self.steps, self.order = 0.0, 0, torch.empty(0, dtype=torch.long)
        self.history: list[tuple[float, float]] = []

    def run(self, seconds: float) -> bool:
        """Train for some seconds more, at most until the time is over; whether it is."""
        end = min(self.spent + seconds, self.seconds)
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self.rng)
            while self.spent < end:
                began = self.clock()
                self.step()
                self.spent += self.clock() - began
                if self.spent >= (len(self.history) + 1) * self.seconds / self.VALIDATIONS:
                    self.validate()
            self.rng = torch.get_rng_state()
        return self.spent >= self.seconds

    def step(self) -> None:
        """One step of AdamW on the mean negative log-density of a batch."""
        size = min(self.options.batch_size, len(self.x_train))
        if len(self.order) < size:
            self.order = torch.randperm(len(self.x_train), generator=self.generator)
        rows, self.order = self.order[:size], self.order[size:]
        loss = -self.flow(self.refresh(self.x_train[rows], self.generator)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.flow.parameters(), 10.0)
        progress = min(1.0, self.spent / self.seconds)
        for group in self.optimizer.param_groups:
            warm = min(1.0, (self.steps + 1) / 100)
            group["lr"] = self.options.lr * warm * 0.5 * (1 + math.cos(math.pi * progress))
        self.optimizer.step()
        self.steps += 1
        # A power-function average, whose span is a share of the training so far.
        weight = 1.0 if not self.options.average else 1 - (1 - 1 / self.steps) ** (1 / self.options.average)
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.parameters()), list(self.flow.parameters()), weight)

    @torch.no_grad()
    def validate(self) -> None:
        """Keep the averaged weights if none so far were better; off the clock."""
        value = float(torch.cat([self.average(x) for x in self.x_val.split(1024)]).mean())
        if not self.history or value > max(v for _, v in self.history):
            self.best.load_state_dict(self.average.state_dict())
        self.history.append((self.spent, value))


def train_nsf(
    x_train: Tensor,
    x_val: Tensor,
    seconds: float,
    seed: int,
    options: NSFOptions = NSFOptions(),
    refresh: Refresh | None = None,
) -> Flow:
    """The flow of the best validation within `seconds` of training; arguments as :class:`NSFTraining`."""
    training = NSFTraining(x_train, x_val, seconds, seed, options, refresh)
    training.run(seconds)
    return training.best
