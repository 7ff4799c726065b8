"""Models in files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from sdediff import DiffusionModel, files, from_callable, processes, serialization
from sdediff.networks import MLP, UNet


def make_model(net: nn.Module | None = None, **options: Any) -> DiffusionModel:
    net = net or MLP(dim=3, hidden=8, blocks=1, time_dim=4)
    options = {"process": processes.VP(), "prediction": "eps", "data_shape": (3,), **options}
    model = DiffusionModel(net, **options)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    one, two = a.state_dict(), b.state_dict()
    return one.keys() == two.keys() and all(
        torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype and one[k].shape == two[k].shape
        for k in one
    )


@pytest.mark.parametrize("process", [cls() for cls in processes.REGISTRY.values()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_comes_back_bit_for_bit(tmp_path: Path, process: Any, dtype: torch.dtype) -> None:
    model = make_model(process=process, prediction="edm").to(dtype)
    model.set_units(torch.randn(50, 3, dtype=dtype) * torch.tensor([1, 10, 0.1], dtype=dtype) + 3)
    serialization.save(model, tmp_path / "a.safetensors")
    state = torch.get_rng_state()
    back = serialization.load(tmp_path / "a.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert same(model, back) and back.config == model.config and not back.training
    x, t = torch.randn(4, 3, dtype=dtype), torch.full((4,), 0.5, dtype=dtype)
    with torch.no_grad():
        assert torch.equal(back(x, t), model.eval()(x, t))
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_images_and_mixed_dtypes(tmp_path: Path) -> None:
    net = UNet(channels=1, base=8, multipliers=(1,))
    model = make_model(net, data_shape=(1, 8, 8), prediction="v")
    model.network.half()
    serialization.save(model, tmp_path / "a")
    assert same(model, serialization.load(tmp_path / "a"))


def test_memory_order_is_kept_because_products_round_by_it(tmp_path: Path) -> None:
    tensors = {
        "t": torch.randn(3, 5).T,
        "slice": torch.randn(6, 6)[::2, 1:4],
        "one": torch.randn(4)[:1].expand(3),
    }
    tensors["image"] = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    files.write_tensors(tmp_path / "a", tensors, "model", {})
    back = files.read_tensors(tmp_path / "a", "model")[0]
    for name, tensor in tensors.items():
        assert torch.equal(back[name], tensor) and back[name].stride() == tensor.clone().stride()
        assert back[name].data_ptr() % 64 == 0
    assert back["t"].stride() == (1, 5) and back["image"].is_contiguous(memory_format=torch.channels_last)


class Mine(nn.Module):
    """A user's own network, with tied weights and buffers."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.a = nn.Linear(width, width)
        self.b = self.a
        self.register_buffer("count", torch.tensor([3, 4]))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.b(self.a(x))


def test_a_network_of_ones_own_is_passed(tmp_path: Path) -> None:
    path, model = tmp_path / "a", make_model(Mine())
    serialization.save(model, path)
    with pytest.raises(
        ValueError, match=r"network of your own \(Mine\).*pass the same one, load\(path, network="
    ):
        serialization.load(path)
    mine = Mine()
    mine.count.zero_()
    back = serialization.load(path, network=mine)
    assert back.network is mine and same(model, back) and mine.a is mine.b
    with pytest.raises(ValueError, match=r"has the wrong shape of network\.a\.weight \(3, 3\) for \(4, 4\)"):
        serialization.load(path, network=Mine(4))
    with pytest.raises(ValueError, match=r"lacks network.* and [0-9]+ more: the network is not the one"):
        serialization.load(path, network=MLP(dim=3))
    with pytest.raises(ValueError, match=r"has the unknown network\.b\.bias, network\.b\.weight"):
        plain = Mine()
        del plain.b
        serialization.load(path, network=plain)


def test_a_process_of_ones_own_is_passed(tmp_path: Path) -> None:
    def process() -> processes.GaussianProcess:
        return processes.GaussianProcess(alpha=lambda t: 1 - t, sigma=lambda t: t, t_min=0.01, t_max=0.9)

    path, model = tmp_path / "a", make_model(process=process())
    serialization.save(model, path)
    with pytest.raises(ValueError, match=r"process of your own \(GaussianProcess\).*load\(path, process="):
        serialization.load(path)
    assert same(model, serialization.load(path, process=process()))


class MLPs(nn.Module):
    """A network whose name and config look like one of the library's."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.config = nn.Parameter(torch.ones(())), {"dim": 3}

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.scale * x + t[:, None]


def test_a_name_taken_from_the_library_is_not_mistaken_for_it(tmp_path: Path) -> None:
    impostor = type("MLP", (MLPs,), {})
    serialization.save(make_model(impostor()), tmp_path / "a")
    with pytest.raises(ValueError, match=r"network of your own \(MLP\)"):
        serialization.load(tmp_path / "a")


@pytest.mark.parametrize("fn", [MLPs(), lambda x, t: -x * t[:, None]], ids=["module", "function"])
def test_a_model_from_a_callable_still_sees_raw_input(tmp_path: Path, fn: Any) -> None:
    mean, cov = torch.tensor([1.0, 2.0, 3.0]), torch.eye(3) * 2
    model = from_callable(fn, processes.VE(), "score", (3,), data_mean=mean, data_cov=cov)
    serialization.save(model, tmp_path / "a")
    with pytest.raises(ValueError, match="network of your own"):
        serialization.load(tmp_path / "a")
    back = serialization.load(tmp_path / "a", network=fn)
    x = torch.randn(4, 3)
    assert same(model, back) and torch.equal(model.score(x, 0.7), back.score(x, 0.7))


def test_a_model_class_of_ones_own_is_refused(tmp_path: Path) -> None:
    class Special(DiffusionModel):
        pass

    model = Special(MLP(dim=3), process=processes.VP(), prediction="eps", data_shape=(3,))
    with pytest.raises(TypeError, match="a Special is a model class of your own"):
        serialization.save(model, tmp_path / "a")


def test_damaged_and_foreign_files_get_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    serialization.save(make_model(), path)
    whole = path.read_bytes()
    for content in (b"", b"garbage", whole[: len(whole) // 2], whole[:-1], whole[:8]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors is damaged, cut short or no safetensors file"):
            serialization.load(path)
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="not one of sdediff"):
        serialization.load(path)
    files.write_tensors(path, {}, "checkpoint", {})
    with pytest.raises(ValueError, match="holds a checkpoint where a model is needed"):
        serialization.load(path)
    metadata = {
        "format": "sdediff",
        "version": str(files.VERSION + 1),
        "kind": "model",
        "config": json.dumps({}),
    }
    safetensors.torch.save_file({}, path, metadata)
    with pytest.raises(ValueError, match="update sdediff"):
        serialization.load(path)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        serialization.load(tmp_path / "missing")
    torch.save({"x": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="no safetensors file"):
        serialization.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "a", make_model()
    serialization.save(model, path)

    def half(tensors: dict, name: Path, metadata: dict) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", half)
        with pytest.raises(OSError, match="disk full"):
            serialization.save(make_model(prediction="v"), path)
    assert os.listdir(tmp_path) == ["a"] and same(model, serialization.load(path))


def test_arguments_of_another_version_get_one_sentence(tmp_path: Path) -> None:
    model = make_model()
    serialization.save(model, tmp_path / "a")
    tensors, config = files.read_tensors(tmp_path / "a", "model")
    config["network"]["args"]["novelty"] = 1
    files.write_tensors(tmp_path / "a", tensors, "model", config)
    with pytest.raises(ValueError, match="describes a network MLP that this version of sdediff cannot build"):
        serialization.load(tmp_path / "a")


def test_a_models_file_has_the_modes_of_any_other_file(tmp_path):
    (tmp_path / "plain").touch()
    make_model().save(tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
