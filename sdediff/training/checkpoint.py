"""One file that holds everything a training run needs to go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff import files
from sdediff.training.engine import like_parameter

#: Groups of tensors by name.
_PARTS = ("weights", "averages", "objective")


@dataclass
class Checkpoint:
    """A run after `step` steps.

    Attributes:
        step: Number of steps made.
        weights: The model's raw weights and buffers.
        averages: Their averages, as :meth:`sdediff.training.Averages.state` names them.
        objective: Parameters and buffers of the loss.
        optimizer: The optimiser's `state_dict`.
        config: What a resumed run must share.
        progress: The rest, as JSON: updates of the average, seconds, history, what log and watch hold.
    """

    step: int
    weights: dict[str, Tensor]
    averages: dict[str, Tensor]
    objective: dict[str, Tensor]
    optimizer: dict[str, Any]
    config: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, whole or not at all."""
        tensors = {f"{part}.{k}": v for part in _PARTS for k, v in getattr(self, part).items()}
        scalars: dict[str, dict[str, Any]] = {}
        for index, state in self.optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    scalars.setdefault(str(index), {})[key] = value
        facts = {"step": self.step, "config": self.config, "progress": self.progress, "scalars": scalars}
        files.write_tensors(path, tensors, "checkpoint", facts)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is damaged or something else.
        """
        tensors, facts = files.read_tensors(path, "checkpoint")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in (*_PARTS, "optimizer")}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        state: dict[int, dict[str, Any]] = {
            int(i): dict(values) for i, values in facts.pop("scalars").items()
        }
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        weights, averages, objective = (parts[part] for part in _PARTS)
        step, config, progress = (facts[fact] for fact in ("step", "config", "progress"))
        return cls(step, weights, averages, objective, {"state": state}, config, progress)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Give an optimiser its stored state; the options of its parameter groups stay those of this call."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def laid_out(index: int, value: Any) -> Any:
        return like_parameter(value, parameters[index]) if isinstance(value, Tensor) else value

    state = {i: {k: laid_out(i, v) for k, v in own.items()} for i, own in stored["state"].items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def check_same(stored: Any, given: Any, path: Path | None) -> None:
    """Raise where a stored run's description differs from one that would go on with it.

    Raises:
        ValueError: Naming what differs between the runs.
    """
    changed = differences(stored, given)
    if changed:
        raise ValueError(
            f"{path} is of another run, it differs in {'; '.join(changed)}: "
            "resume with the same settings or choose another out="
        )


def differences(stored: Any, given: Any, name: str = "") -> list[str]:
    """Where two JSON descriptions differ, as ``name (stored, now given)``.

    Example:
        >>> differences({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}})
        ['b.c (2, now 3)']
    """
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = [*stored, *(k for k in given if k not in stored)]
        return [
            d
            for k in keys
            for d in differences(stored.get(k), given.get(k), f"{name}.{k}" if name else str(k))
        ]
    # JSON has no tuples
    same = (
        list(stored) == list(given)
        if isinstance(stored, (list, tuple)) and isinstance(given, (list, tuple))
        else stored == given
    )
    return [] if same else [f"{name} ({stored}, now {given})"]
