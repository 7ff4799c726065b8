"""Runs: what a folder holds, kills at any moment, signals, full disks, pictures and trackers."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sdediff import DiffusionModel, load, processes, training
from sdediff.networks import MLP
from sdediff.training import Preview, fit
from sdediff.training.folder import RunFolder
from sdediff.training.validation import Validation

#: Runs that are killed: in a process of its own, which forks one child a run. Prints what every kill left.
SCRIPT = """
import os, random, signal, sys, time
import torch
torch.set_num_threads(1)
import sdediff
from sdediff.data import dequantise
from sdediff.training import Power, fit
from sdediff.training.folder import RunFolder

class Killer:
    every = 100
    def __call__(self, moment):
        if moment.step == 100:
            os.kill(os.getpid(), signal.SIGKILL)

def run(folder, steps, resume, *callbacks):
    goes_on = RunFolder(folder).latest() is not None
    torch.manual_seed(int(goes_on))  # the weights of a resumed run's network must not matter
    net = sdediff.networks.MLP(dim=2, hidden=16, blocks=1, dropout=0.2)
    model = sdediff.DiffusionModel(net, sdediff.VP(), "edm", (2,))
    x = (4 * sdediff.reference.eight_gaussians().sample(500, seed=0)).round()
    fit(
        model, x, steps=steps, batch_size=32, val=x[:50], loss="likelihood-adaptive", averages=[Power(0.1)],
        augment=dequantise, out=folder, resume=resume, checkpoint_every=20, log_every=10, progress=False,
        callbacks=callbacks,
    )

def child(after, *arguments):
    pid = os.fork()
    if pid == 0:
        run(*arguments)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return RunFolder(arguments[0]).load()

import logging
logging.disable(logging.WARNING)
top, kills = sys.argv[1], int(sys.argv[2])
run(f"{top}/warm", 1, False)  # what is imported late is there for all
began = time.perf_counter()
child(None, f"{top}/straight", 200, False)
span = time.perf_counter() - began
child(None, f"{top}/halved", 200, False, Killer())
print("at", RunFolder(f"{top}/halved").load().step)
child(None, f"{top}/halved", 200, True)
draw = random.Random(0)
for _ in range(kills):
    left = child(draw.uniform(0, 0.5 * span), f"{top}/killed", 200, True)
    print("killed", 0 if left is None else left.step)
if kills:
    child(None, f"{top}/killed", 200, True)
"""


def make_model(seed: int = 0, **options: Any) -> DiffusionModel:
    torch.manual_seed(seed)
    return DiffusionModel(MLP(dim=2, hidden=16, blocks=1, **options), processes.VP(), "edm", (2,))


def make_data(n: int = 200) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0])


def quick(model: DiffusionModel, **options: Any) -> training.TrainingResult:
    given = {"steps": 20, "batch_size": 16, "progress": False, "log_every": 5, "checkpoint_every": 5}
    return fit(model, make_data(), **(given | options))


def same(one: Any, two: Any) -> bool:
    """Equality bit for bit of nested dicts of tensors."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    return torch.equal(one, two) if isinstance(one, Tensor) else one == two


@pytest.mark.parametrize("kills", [0, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_lose_nothing_but_the_steps_since_the_last_checkpoint(kills: int, tmp_path: Path) -> None:
    """One kill at step 100 of 200, and more at random moments: the files end as those of a straight run."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(kills)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    first, *killed = [line.split() for line in done.stdout.splitlines()]
    assert first == ["at", "100"]
    steps = [int(step) for _, step in killed]
    assert len(steps) == kills and steps == sorted(steps) and all(step % 20 == 0 for step in steps)
    assert not kills or len({*steps, 0, 200}) > 2  # some fell between checkpoints
    straight = RunFolder(tmp_path / "straight").load()
    assert straight is not None
    for name in ("halved", "killed")[: 1 + (kills > 0)]:
        folder = RunFolder(tmp_path / name)
        other = folder.load()
        assert other is not None and other.step == 200
        for part in ("weights", "averages", "objective", "optimizer"):
            assert same(getattr(straight, part), getattr(other, part)), part
        history = [[{**line, "seconds": 0} for line in c.progress["history"]] for c in (straight, other)]
        assert history[0] == history[1] and len(history[0]) == 20
        for file in ("model.safetensors", "best.safetensors"):
            models = [load(place / file).state_dict() for place in (tmp_path / "straight", folder.path)]
            assert same(*models)
        assert not list(folder.path.rglob("*.tmp"))
        assert len(json.loads((folder.path / "environment.json").read_text())) > 1


def test_sigterm_ends_the_step_writes_a_checkpoint_and_leaves(tmp_path: Path) -> None:
    class Terminator:
        every = 3

        def __call__(self, moment: training.Moment) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        quick(make_model(), out=tmp_path, callbacks=[Terminator()])
    assert stopped.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) is handler
    stored = RunFolder(tmp_path).load()
    assert stored is not None and stored.step == 4  # it came after step 3, and step 4 was finished


def test_the_last_checkpoints_are_kept_and_the_best_model(tmp_path: Path) -> None:
    model = make_model()
    result = quick(model, out=tmp_path, keep=3, val=make_data(50), lr=lambda step: 1e-3 if step < 10 else 0.3)
    assert [path.stem for path in RunFolder(tmp_path).checkpoints()] == [
        "000000010",
        "000000015",
        "000000020",
    ]
    best = min(line["val_loss"] for line in result.history)
    assert best < result.history[-1]["val_loss"]
    kept = load(tmp_path / "best.safetensors")
    check = Validation(kept, make_data(50), None, training.LOSSES["balanced"].objective(kept), 0)
    assert check.loss() == pytest.approx(best, rel=1e-6)
    assert same(load(tmp_path / "model.safetensors").state_dict(), model.state_dict())


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full at steps 10 and 15: a warning; full to the end: an error that names what is intact."""
    from sdediff import files

    full = {10, 15}
    replace = os.replace

    def failing(source: Any, target: Any) -> None:
        if any(str(target).endswith(f"{step:09d}.safetensors") for step in full):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    with caplog.at_level(logging.WARNING, "sdediff"):
        quick(make_model(), out=tmp_path / "a")
    assert caplog.text.count("could not be written") == 2 and "000000005.safetensors is intact" in caplog.text
    assert [path.stem for path in RunFolder(tmp_path / "a").checkpoints()] == ["000000005", "000000020"]
    full.add(20)
    with pytest.raises(OSError, match=r"of step 20 could not be written .*000000005\.safetensors is intact"):
        quick(make_model(), out=tmp_path / "b")
    stored = RunFolder(tmp_path / "b").load()
    assert stored is not None and stored.step == 5
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_write_cut_short_by_the_system_is_an_oserror(tmp_path: Path) -> None:
    """What the file library makes of a real limit on file sizes, in a process of its own."""
    code = """
import resource, signal, sys, torch
from sdediff import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
files.write_tensors(sys.argv[1], {"a": torch.zeros(10)}, "model", {})
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write_tensors(sys.argv[1], {"a": torch.ones(100000)}, "model", {})
except OSError as error:
    print(type(error).__name__)
print(float(files.read_tensors(sys.argv[1], "model")[0]["a"].sum()))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.safetensors")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["OSError", "0.0"]
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_a_nan_names_the_step_and_the_checkpoint_that_is_intact(tmp_path: Path) -> None:
    model = make_model()

    def poison(x: Tensor, seed: int) -> Tensor:
        poison.calls += 1  # type: ignore[attr-defined]
        if poison.calls == 13:  # type: ignore[attr-defined]  # the first call learns the units
            model.network.output.weight.data[0, 0] = float("nan")
        return x

    poison.calls = 0  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"at step 11: the loss is nan.*000000010\.safetensors is intact"):
        quick(model, out=tmp_path, augment=poison)
    stored = RunFolder(tmp_path).load()
    assert stored is not None and all(bool(torch.isfinite(v).all()) for v in stored.weights.values())


def test_accumulated_parts_are_the_whole_batch() -> None:
    models = [make_model().double(), make_model().double()]
    for model, parts in zip(models, (1, 3), strict=True):
        quick(model, accumulate=parts)
    pairs = zip(models[0].parameters(), models[1].parameters(), strict=True)
    assert all(torch.allclose(p, q, rtol=1e-9, atol=1e-12) for p, q in pairs)


def test_a_time_limit_ends_a_run(tmp_path: Path) -> None:
    result = quick(make_model(), steps=100_000, max_seconds=0.2, out=tmp_path)
    assert result.steps < 100_000 and result.seconds >= 0.2
    assert RunFolder(tmp_path).load().step == result.steps  # type: ignore[union-attr]


def test_previews_show_samples_and_errors(tmp_path: Path) -> None:
    quick(make_model(), out=tmp_path, val=make_data(50), callbacks=[Preview(every=20, n=9, steps=4)])
    names = sorted(path.name for path in (tmp_path / "previews").iterdir())
    assert names == ["000000020-noise.png", "000000020-samples.png"]
    assert all((tmp_path / "previews" / n).read_bytes()[:4] == b"\x89PNG" for n in names)
    with pytest.raises(TypeError, match="give out="):
        quick(make_model(), callbacks=[Preview(every=20)])


def test_trackers_get_every_line(tmp_path: Path) -> None:
    from accelerate.tracking import GeneralTracker

    class Recorder(GeneralTracker):
        name, requires_logging_directory = "recorder", False

        def __init__(self) -> None:
            super().__init__()
            self.lines: list[tuple[int, dict[str, Any]]] = []
            self.stored: dict[str, Any] = {}

        @property
        def tracker(self) -> Recorder:
            return self

        def store_init_configuration(self, values: dict[str, Any]) -> None:
            self.stored = values

        def log(self, values: dict[str, Any], step: int | None = None, **options: Any) -> None:
            self.lines.append((step or 0, values))

    recorder = Recorder()
    result = quick(make_model(), out=tmp_path, val=make_data(50), trackers=[recorder])
    assert [step for step, _ in recorder.lines] == [5, 10, 15, 20]
    assert [values["val_loss"] for _, values in recorder.lines] == [
        line["val_loss"] for line in result.history
    ]
    assert recorder.stored["model.network.name"] == "MLP" and recorder.stored["seed"] == 0


def test_workers_read_ahead_the_same_batches(tmp_path: Path) -> None:
    data = torch.utils.data.TensorDataset(make_data())
    models = [make_model() for _ in range(2)]
    before = torch.get_rng_state()
    for model, workers in zip(models, (0, 1), strict=True):
        fit(model, data, steps=6, batch_size=16, workers=workers, progress=False)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert torch.equal(before, torch.get_rng_state())


def test_bfloat16_trains_close_to_float32_and_keeps_weights_in_float32(tmp_path: Path) -> None:
    """Losses within bfloat16's rounding, 2^-8; weights within 8 such of the way they went (2.8 measured)."""
    from accelerate.state import AcceleratorState

    start = {name: p.detach() for name, p in make_model().named_parameters()}
    model = make_model()
    full = quick(make_model(), out=tmp_path / "full")
    half = quick(model, out=tmp_path / "half", precision="bf16")
    for one, two in zip(full.history, half.history, strict=True):
        assert 0 < abs(one["loss"] - two["loss"]) < 2**-8 * one["loss"]
    moved, apart = (
        sum(float((full.raw_weights[n] - other[n]).square().sum()) for n in start) ** 0.5
        for other in (start, half.raw_weights)
    )
    assert 0 < apart < 8 * 2**-8 * moved
    assert not AcceleratorState._shared_state and all(p.dtype == torch.float32 for p in model.parameters())
    stored = [RunFolder(tmp_path / name).load() for name in ("full", "half")]
    types = [
        {name: v.dtype for part in (c.weights, c.averages) for name, v in part.items()}  # type: ignore[union-attr]
        for c in stored
    ]
    assert types[0] == types[1] and torch.bfloat16 not in types[1].values()
    with pytest.raises(ValueError, match="precision='half' is not known: give one of no, bf16, fp16"):
        quick(model, precision="half")


def test_augmentation_labels_reach_the_network() -> None:
    model = make_model(augment_dim=3)
    seen: list[Tensor] = []

    def augment(x: Tensor, seed: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(indices)
        return x, torch.ones(len(x), 3)

    quick(model, augment=augment, steps=2)
    assert [len(rows) for rows in seen] == [200, 16, 16]
    layer = next(m for n, m in model.named_modules() if n.endswith("augment"))
    assert float(layer.weight.grad.abs().sum()) > 0 if layer.weight.grad is not None else True


def test_held_out_data_and_units_see_the_clean_part_of_an_augmentation() -> None:
    """Flips with labels leave them as they are; dequantisation stays."""
    from sdediff.data import Augment, Compose, dequantise

    x = torch.arange(16.0).reshape(4, 1, 2, 2) % 5
    augment = Compose(dequantise, Augment(flip=True, p=1.0, labels=True))
    models = [
        DiffusionModel(MLP(dim=4, hidden=8, blocks=1, augment_dim=dim), processes.VP(), "edm", (1, 2, 2))
        for dim in (augment.dim, 0)
    ]
    held = []
    for model, each in zip(models, (augment, dequantise), strict=True):
        fit(model, x, val=x, steps=1, batch_size=4, augment=each, progress=False)
        objective = training.LOSSES["balanced"].objective(model)
        held.append(Validation(model, x, None, objective, 0, each).x)
    assert torch.equal(*held) and torch.equal(models[0].scale, models[1].scale)


def test_what_cannot_work_is_refused_before_the_first_step(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"snapshot_every=5 without an average .* averages=\[Power"):
        quick(make_model(), out=tmp_path, snapshot_every=5)
    with pytest.raises(ValueError, match=r"cond_dropout=0.1 .* build MLP\(optional_cond=True\)"):
        quick(make_model(cond_dim=1), cond=torch.zeros(200, 1), cond_dropout=0.1)
    assert not list(tmp_path.iterdir())
