"""Models in files: safetensors for the numbers, JSON for the rest, no code."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sdediff import files, networks, processes

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


def save(model: DiffusionModel, path: str | os.PathLike[str]) -> None:
    """Write a model to one safetensors file, whole or not at all.

    Weights and buffers (units, moments) keep values and dtypes exactly. Network and process are written as
    class name and constructor arguments; where they are a user's own, :func:`load` asks for them.

    Args:
        model: The model.
        path: The file; one that is there is replaced.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    files.write_tensors(path, model.state_dict(), "model", describe(model))


def load(
    path: str | os.PathLike[str],
    network: nn.Module | Callable[..., Tensor] | None = None,
    process: processes.GaussianProcess | None = None,
    device: torch.device | str = "cpu",
) -> DiffusionModel:
    """Read a model that :func:`save` wrote, in evaluation mode.

    Args:
        path: The file.
        network: The network, where it is of a class of your own; it receives the weights. Overrides the
            file's description.
        process: The process, where it was made from your own alpha and sigma.
        device: Where the model shall be.

    Returns:
        The model; its numbers are those that were saved, bit for bit, and torch's global generator is as
        before.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or no model of this package, if network or process are needed and
            missing, or if the network is not the one that was saved.

    Example:
        >>> import tempfile, pathlib, sdediff
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "model.safetensors"
        >>> net = sdediff.networks.MLP(dim=2, hidden=8)
        >>> save(sdediff.DiffusionModel(net, process=sdediff.VP(), prediction="eps", data_shape=(2,)), path)
        >>> load(path).process
        VP(beta_min=0.1, beta_max=20, t_min=1e-05, t_max=1)
    """
    from sdediff.callables import CallableNetwork

    tensors, config = files.read_tensors(path, "model")
    name = os.fspath(path)
    if process is None:
        process = _build(config["process"], processes.REGISTRY, name, "process")
    if network is None:
        with torch.random.fork_rng(devices=[]):  # its random initial weights are thrown away
            network = _build(config["network"], networks.REGISTRY, name, "network")
    if not isinstance(network, nn.Module):
        network = CallableNetwork(network)
    options = {key: value for key, value in config.items() if key not in ("network", "process", "model")}
    options["data_shape"] = tuple(options["data_shape"])
    model = _classes()[config["model"]](network, process=process, **options)
    load_weights(model, tensors, name)
    return model.to(device).eval()


def describe(model: DiffusionModel) -> dict[str, Any]:
    """The model's description and class, with arguments only of classes that :func:`load` finds by name."""
    kind = type(model).__name__
    if type(model) not in _classes().values():
        raise TypeError(
            f"a {kind} is a model class of your own, which a file cannot rebuild: save its network's "
            "state_dict"
        )
    config = dict(model.config, model=kind)
    for what, registry in (("network", networks.REGISTRY), ("process", processes.REGISTRY)):
        if registry.get(config[what]["name"]) is not type(getattr(model, what)):
            config[what] = {"name": config[what]["name"], "args": None}
    return config


def _classes() -> dict[str, type[DiffusionModel]]:
    """Model classes by name; that of `from_callable` hands its network x_t and t as they are."""
    from sdediff.callables import RawModel
    from sdediff.model import DiffusionModel

    return {cls.__name__: cls for cls in (DiffusionModel, RawModel)}


def _build(described: Mapping[str, Any], registry: Mapping[str, Any], path: str, what: str) -> Any:
    """Construct what a file describes, from the classes known here."""
    if described["name"] not in registry or described["args"] is None:
        raise ValueError(
            f"{path} was saved with a {what} of your own ({described['name']}), which a file cannot rebuild: "
            f"pass the same one, load(path, {what}=...)"
        )
    try:
        return registry[described["name"]](**described["args"])
    except TypeError as error:
        raise ValueError(
            f"{path} describes a {what} {described['name']} that this version of sdediff cannot build "
            f"({error}): "
            f"load it with the version that saved it, or pass {what}="
        ) from error


@torch.no_grad()
def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy named tensors into a module's parameters and buffers, keeping values and dtypes exactly.

    A buffer directly on `module`, or one that is None so far, may have any shape (moments are learnt with the
    units); all else must fit.

    Raises:
        ValueError: Naming the tensors that are missing, left over or of another shape.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    own = set(module._buffers) - module._non_persistent_buffers_set
    for path, part in module.named_modules():
        own |= {f"{path}.{name}" for name, value in part._buffers.items() if path and value is None}
    expected = {name: value.shape for name, value in module.state_dict().items() if name not in own}
    missing = [n for n in expected if n not in tensors]
    extra = [n for n in tensors if n not in expected and n not in own]
    wrong = [
        f"{n} {tuple(tensors[n].shape)} for {tuple(s)}"
        for n, s in expected.items()
        if n in tensors and tensors[n].shape != s
    ]
    for what, names in (("lacks", missing), ("has the unknown", extra), ("has the wrong shape of", wrong)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(
                f"{source} {what} {', '.join(names[:3])}{more}: the network is not the one that was saved"
            )
    first = next(iter(parameters), None)
    if first is not None and parameters[first].dtype != tensors[first].dtype:
        module.to(tensors[first].dtype)  # takes along buffers that are not in the file
    device = torch.device("cpu") if first is None else parameters[first].device
    for name in own.union(expected):
        if name in parameters:
            parameters[name].data = tensors[name].to(device)
        else:
            owner, _, leaf = name.rpartition(".")
            value = tensors[name].to(device) if name in tensors else None
            module.get_submodule(owner)._buffers[leaf] = value
