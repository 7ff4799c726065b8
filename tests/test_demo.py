"""The demonstration, tiny: everything is written, printed and finite. CI runs the real one."""

from __future__ import annotations

import contextlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import sdediff
from sdediff import demo
from sdediff.demo import table
from sdediff.text import aligned

FILES = [
    "likelihood.png",
    "model.safetensors",
    "samples.png",
    "table.json",
    "table.md",
    "trajectories.png",
]


def tiny(row: table.Row) -> table.Row:
    options = {"steps": 4} if "steps" in row.options else {"rtol": 0.1, "atol": 0.1}
    return replace(row, options=options)


TINY = demo.Settings(
    hidden=32,
    blocks=1,
    steps=40,
    batch_size=64,
    rows=tuple(map(tiny, table.ROWS)),
    samples=16,
    likelihoods=4,
    nodes=9,
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any], str]]:
    folder, printed = tmp_path_factory.mktemp("run") / "made" / "here", io.StringIO()
    state = torch.get_rng_state()
    with contextlib.redirect_stdout(printed):
        result = demo.run(folder, seed=3, settings=TINY, progress=False)
    assert torch.equal(torch.get_rng_state(), state)  # the caller's generator is left alone
    yield folder, result, printed.getvalue()


def test_every_file_is_there_and_readable(ran: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, _ = ran
    assert sorted(p.name for p in folder.iterdir()) == FILES
    for name in ("samples", "trajectories", "likelihood"):
        with Image.open(folder / f"{name}.png") as image:
            assert min(image.size) > 400
            low, high = image.convert("L").getextrema()
            assert low < 30 and high > 225
    assert json.loads((folder / "table.json").read_text()) == json.loads(json.dumps(result))
    model = sdediff.load(folder / "model.safetensors")
    assert model.sample(2, "ddim", steps=2).shape == (2, 1, 8, 8)


def test_every_solver_has_a_finite_row(ran: tuple[Path, dict[str, Any], str]) -> None:
    folder, result, printed = ran
    rows = result["samples"]["rows"]
    assert [r["solver"] for r in rows] == [row.title for row in table.ROWS]
    for r in rows:
        numbers = [v for v in r.values() if not isinstance(v, str)]
        assert all(math.isfinite(v) for v in numbers) and r["failed"] == 0
        assert r["nfe"] >= 4 and r["energy_distance"] > 0 and r["nearest_train"] > 0
    nfe = {r["name"]: r["nfe"] for r in rows}
    assert (nfe["euler-maruyama"], nfe["pc"], nfe["ddim"]) == (4, 8, 4)
    for text in (printed, (folder / "table.md").read_text(encoding="utf-8")):
        assert all(row.title in text for row in table.ROWS)
        assert "1350 to train on, 150 to validate, 297 held out" in text
        assert "bits/dim" in text and "Floor" in text


def test_every_kind_of_solver_is_there() -> None:
    names = [row.solver for row in table.ROWS]
    assert {"euler-maruyama", "pc", "ancestral", "ddim", "dopri5"} <= set(names)
    assert {n.split("/")[0] for n in names if "/" in n} == {"torchdiffeq", "torchsde", "scipy"}


def test_likelihoods_are_ordered(ran: tuple[Path, dict[str, Any], str]) -> None:
    likelihood = ran[1]["likelihood"]
    kinds = likelihood["kinds"]
    for value in kinds.values():
        assert value["failed"] == 0
        assert all(math.isfinite(v) for v in value.values() if isinstance(v, float))
        bits = -value["nats"] / (64 * math.log(2))
        assert value["bits_per_dim"] == pytest.approx(bits, rel=1e-6)
    assert [value["count"] for value in kinds.values()] == [4, 4, 2, 2]
    gap = kinds["training digits"]["nats"] - kinds["held-out digits"]["nats"]
    assert likelihood["gap"]["nats"] == pytest.approx(gap)
    assert kinds["held-out digits"]["nats"] > kinds["uniform noise"]["nats"]


def test_levels_undo_dequantisation() -> None:
    x = sdediff.data.digits().val
    assert torch.equal(table.levels(sdediff.dequantise(x, seed=1)), x / 16)
    assert table.levels(torch.tensor([-0.3, 17.9])).tolist() == [0.0, 1.0]


def test_floor_needs_no_model_and_copies_are_seen() -> None:
    train, _, test = sdediff.data.digits()
    floors = table.floor(train / 16, test / 16, seed=0)
    # 1/n + 1/m of the mean distance between two images is what equal laws give on average.
    pairs = torch.cdist(train.flatten(1) / 16, train.flatten(1) / 16)
    expected = 2 / 297 * float(pairs.sum()) / (1350 * 1349)
    assert float(floors.mean()) == pytest.approx(expected, rel=0.25)
    copies = table.measure(train[:50] + 0.5, test / 16, train / 16)
    assert copies["nearest_train"] == 0


def test_gaussian_has_the_training_moments() -> None:
    model = demo.train(sdediff.data.digits(), 0, replace(TINY, steps=1), progress=False)[0]
    assert not model.training
    x, train = table.gaussian(model, 20000, seed=0), sdediff.data.digits().train
    assert float((x.mean(0) - train.mean(0) - 0.5).abs().max()) < 0.3  # 6 standard errors of the widest pixel
    spread = (x.var(0).sum() / (train.double().var(0).sum() + 64 / 12)).item()
    assert spread == pytest.approx(1, rel=0.03)


def test_columns_are_aligned() -> None:
    text = aligned([("a", "b", "c", "d"), ("long", "b", "c", "1.25")], left=3)
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2].startswith("long") and lines[0].endswith("   d")


def test_a_sample_that_fails_is_counted_and_left_out() -> None:
    def score(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        lost = torch.arange(len(x)).reshape(-1, 1, 1, 1) == 2
        return torch.where(lost, torch.nan, -x)

    model = sdediff.from_callable(score, sdediff.VP(), "score", (1, 8, 8))
    model.set_units(sdediff.data.digits().train)
    rows = (table.Row("Euler", "ODE", "euler", {"steps": 3}),)
    with pytest.warns(UserWarning, match="1 of 5 samples failed, the first at row 2"):
        lines, samples = table.compare(model, sdediff.data.digits(), rows, 5, seed=0, progress=False)
    assert lines["rows"][0]["failed"] == 1 and samples["Euler"].shape == (4, 1, 8, 8)
    assert math.isfinite(lines["rows"][0]["energy_distance"])
