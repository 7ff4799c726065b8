"""One file that holds everything a training run needs to go on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdediff import files


@dataclass
class Checkpoint:
    """A run after `step` steps: raw weights and buffers, their average, the optimiser, the settings."""

    step: int
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict[str, Any]
    config: dict[str, Any]
    updates: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to one safetensors file, whole or not at all."""
        tensors = {f"weights.{k}": v for k, v in self.weights.items()} | {
            f"average.{k}": v for k, v in self.average.items()
        }
        scalars: dict[str, dict[str, Any]] = {}
        for index, state in self.optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{index}.{key}"] = value
                else:
                    scalars.setdefault(str(index), {})[key] = value
        facts = {k: getattr(self, k) for k in ("step", "config", "updates", "seconds", "history")}
        files.write_tensors(path, tensors, "checkpoint", facts | {"scalars": scalars})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Checkpoint:
        """Read a checkpoint.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If the file is damaged or something else.
        """
        tensors, facts = files.read_tensors(path, "checkpoint")
        parts: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}, "optimizer": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        state: dict[int, dict[str, Any]] = {
            int(i): dict(values) for i, values in facts.pop("scalars").items()
        }
        for name, tensor in parts["optimizer"].items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        return cls(weights=parts["weights"], average=parts["average"], optimizer={"state": state}, **facts)


def load_optimizer(optimizer: torch.optim.Optimizer, stored: Mapping[str, Any]) -> None:
    """Give an optimiser its stored state; the options of its parameter groups stay those of this call."""
    optimizer.load_state_dict(
        {"state": stored["state"], "param_groups": optimizer.state_dict()["param_groups"]}
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
