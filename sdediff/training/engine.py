"""What a training run needs of processes, devices and precision, on Hugging Face Accelerate.

One process, several on a machine, several machines, sharded parameters and mixed precision differ here and
nowhere else. A step's batch is the same whatever the number of processes: each takes its share of the rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdediff.group import cpu_only, current, explained

if TYPE_CHECKING:
    from accelerate import Accelerator

#: Precisions of the network's matrix products, as Accelerate names them.
PRECISIONS = ("no", "bf16", "fp16")


class Engine:
    """One process's part of a run.

    Args:
        like: A parameter of the model. A single process trains where the model is; several train on the
            devices that their launcher gave them.
        precision: "no", "bf16" or "fp16"; None for what the launcher was told.
        trackers: Names that Accelerate knows ("tensorboard", "wandb", ...) or tracker objects.
        folder: Where trackers may write.
        accelerator: An Accelerator of your own, used as it is.

    Raises:
        ValueError: For an unknown precision, or trackers beside an accelerator of your own.

    Example:
        >>> with Engine(torch.zeros(1)) as engine:
        ...     engine.processes, engine.main, engine.share(10)
        (1, True, slice(0, 10, None))
    """

    def __init__(
        self,
        like: Tensor,
        precision: str | None = None,
        trackers: Sequence[Any] = (),
        folder: str | os.PathLike[str] | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision={precision!r} is not known: give one of {', '.join(PRECISIONS)}")
        if accelerator is not None and (precision is not None or trackers):
            raise ValueError("an accelerator has a precision and trackers of its own: leave those out")
        # Accelerate keeps one precision for the whole program; ours lasts as long as the run.
        self._fresh = accelerator is None and not AcceleratorState._shared_state
        alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
        self.accelerator = accelerator or Accelerator(
            cpu=like.device.type == "cpu" if alone else cpu_only(),
            device_placement=not alone,
            mixed_precision=precision,
            log_with=list(trackers) or None,
            project_dir=folder,
            step_scheduler_with_optimizer=False,
        )
        shard(self.accelerator)
        self.device = like.device if alone else self.accelerator.device
        self.group, self._tracking = current(), bool(trackers)
        self.processes, self.main, self.share = self.group.size, self.group.main, self.group.share
        # One process in full precision needs no wrappers, whose checks cost small networks 4 % of a step.
        self._plain = self.accelerator.mixed_precision == "no" and self.processes == 1 and not self.sharded

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: Any) -> None:
        from accelerate.state import AcceleratorState

        if self._tracking:
            for tracker in self.accelerator.trackers:  # end_training() would end the process group as well
                tracker.finish()
        if not self._plain:  # else it holds nothing, and a collection of garbage is not cheap
            self.accelerator.free_memory()
        if self._fresh:
            AcceleratorState._reset_state()
        if error is not None and self.processes > 1 and explained(error) is not error:
            raise explained(error) from error

    # -- rows ------------------------------------------------------------------------------------------------

    def sum(self, *values: Tensor) -> list[float]:
        """Scalars summed over all processes."""
        dtype = torch.promote_types(values[0].dtype, torch.float32)
        stacked = torch.stack([value.detach().to(self.device, dtype) for value in values])
        if self._plain:
            return stacked.tolist()
        return self.accelerator.reduce(stacked, "sum").tolist()

    def whole(self, values: Tensor, rows: slice, total: int) -> Tensor:
        """The whole batch's values, (total, ...), from each process's share of them."""
        if self.processes == 1:
            return values
        mine = values.new_zeros(total, *values.shape[1:])
        mine[rows] = values
        return self.accelerator.reduce(mine, "sum")

    # -- modules and gradients -------------------------------------------------------------------------------

    @property
    def sharded(self) -> bool:
        """Whether a process holds parts of the parameters only (FSDP)."""
        return str(getattr(self.accelerator.distributed_type, "value", "")) == "FSDP"

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, Any]:
        """The module and its optimiser, ready for this engine's processes and precision."""
        if self._plain:
            return module, optimizer
        wrapped, optimizer = self.accelerator.prepare(module, optimizer)
        if isinstance(wrapped, nn.parallel.DistributedDataParallel):
            wrapped.broadcast_buffers = False  # they are the same everywhere by construction
        return wrapped, optimizer

    def accumulating(self, module: nn.Module) -> AbstractContextManager[Any]:
        """Within this context gradients are added up on each process alone."""
        return self.accelerator.no_sync(module)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss that is a sum over rows of the whole batch, of which these are some."""
        if self._plain:
            loss.backward()
        else:
            self.accelerator.backward(loss * self.processes)  # processes' gradients are averaged

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor:
        """Limit the gradient's norm, which is returned, ()."""
        if not self._plain:
            return full(torch.as_tensor(self.accelerator.clip_grad_norm_(parameters, norm)))
        parameters = list(parameters)
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if float(total) > norm:  # else a pass over all gradients is saved
            nn.utils.clip_grads_with_norm_(parameters, norm, total)
        return total

    @property
    def scales_gradients(self) -> bool:
        """Whether steps with infinite gradients are expected and left out (float16)."""
        return self.accelerator.scaler is not None

    @property
    def skipped(self) -> bool:
        """Whether the optimiser's last step was left out for infinite gradients (float16)."""
        return self.scales_gradients and self.accelerator.optimizer_step_was_skipped

    @property
    def scaling(self) -> dict[str, Any]:
        """State of the scaling of gradients, for a checkpoint; empty where they are not scaled."""
        return self.accelerator.scaler.state_dict() if self.scales_gradients else {}

    @scaling.setter
    def scaling(self, state: dict[str, Any]) -> None:
        if state and self.scales_gradients:
            self.accelerator.scaler.load_state_dict(state)

    # -- the outside world -----------------------------------------------------------------------------------

    def begin_tracking(self, name: str, config: Mapping[str, Any]) -> None:
        """Open the trackers with the run's configuration."""
        if self._tracking:
            self.accelerator.init_trackers(name, dict(flatten(config)))

    def track(self, values: Mapping[str, Any], step: int) -> None:
        """Give a line of the log to the trackers."""
        if self._tracking:
            self.accelerator.log({k: v for k, v in values.items() if v is not None}, step=step)


def shard(accelerator: Accelerator) -> None:
    """Let an accelerator shard parameters as its launcher asked: on CPUs too, where it would not by itself.

    Raises:
        ValueError: If the launcher asked for FSDP's first version, whose shards are no tensors by name.
    """
    from accelerate.state import DistributedType
    from accelerate.utils import FullyShardedDataParallelPlugin, parse_flag_from_env

    state, asked = accelerator.state, parse_flag_from_env("ACCELERATE_USE_FSDP")
    if asked and accelerator.distributed_type == DistributedType.MULTI_CPU:
        state.fsdp_plugin = FullyShardedDataParallelPlugin()
        if accelerator.mixed_precision != "no":
            state.fsdp_plugin.set_mixed_precision(accelerator.mixed_precision)
        state.distributed_type = DistributedType.FSDP
    if accelerator.distributed_type == DistributedType.FSDP:
        if not accelerator.is_fsdp2:
            raise ValueError("FSDP's first version is not supported: launch with --fsdp_version 2")
        state.fsdp_plugin.cpu_ram_efficient_loading = False  # it cannot load a module that has buffers


def is_main() -> bool:
    """Whether this process is the first of those its launcher started."""
    return int(os.environ.get("RANK", "0")) == 0


def full(value: Tensor) -> Tensor:
    """The whole of a tensor of which a process may hold a part; every process must ask for it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def like_parameter(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, laid out over devices as the parameter is (a scalar as it is)."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or value.shape != parameter.shape:
        return value

    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Leaves of nested settings by dotted name, as trackers take them.

    Example:
        >>> dict(flatten({"a": {"b": 1}, "c": [2, 3]}))
        {'a.b': 1, 'c': '[2, 3]'}
    """
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value if isinstance(value, (int, float, str, bool)) else str(value)
