"""Geometric augmentation: what is done is told, and is a function of seed and row."""

from __future__ import annotations

import pytest
import torch

from sdediff import data
from sdediff.data.augmentation import _turned


def image(n: int = 64, height: int = 6, width: int = 5) -> torch.Tensor:
    return torch.rand(n, 2, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_flips_and_shifts_are_what_their_labels_say() -> None:
    x = image()
    augment = data.Augment(flip=True, upside_down=True, shift=2, labels=True)
    y, labels = augment(x, seed=3)
    assert augment.dim == 4 and labels.dtype == x.dtype
    for before, after, label in zip(x, y, labels.tolist(), strict=True):
        left, top, across, down = label
        before = before.flip(2) if left else before
        before = before.flip(1) if top else before
        dx, dy = round(2 * across), round(2 * down)
        padded = torch.nn.functional.pad(before[None], (2, 2, 2, 2), mode="replicate")[0]
        assert torch.equal(after, padded[:, 2 - dy : 8 - dy, 2 - dx : 7 - dx])
    clean = (labels == 0).all(dim=1)
    assert torch.equal(y[clean], x[clean]) and 0 < int(clean.sum()) < 20
    made = (data.Augment(flip=True, labels=True, p=0.3)(image(4000), 1)[1] > 0).double().mean()
    assert abs(float(made) - 0.3) < 3.3 * (0.21 / 4000) ** 0.5  # false alarm 1e-3
    shifts = data.Augment(shift=2, labels=True, p=1.0)(image(4000), 1)[1][:, 0]
    counts = torch.bincount((2 * shifts).round().long() + 2, minlength=5).double()
    assert (
        float(((counts - 800) ** 2 / 800).sum()) < 18.5
    )  # chi-squared, 4 degrees of freedom, false alarm 1e-3


def test_rows_are_named_and_integers_stay() -> None:
    x = (255 * image(8)).to(torch.uint8)
    augment = data.Augment(flip=True, shift=1, labels=True)
    y, labels = augment(x, 5)
    part = augment(x[[6, 2]], 5, indices=torch.tensor([6, 2]))
    assert y.dtype == torch.uint8 and torch.equal(part[0], y[[6, 2]]) and torch.equal(part[1], labels[[6, 2]])
    assert not torch.equal(augment(x, 6)[0], y)


def test_rotations_and_zooms_are_about_the_middle() -> None:
    x = image(3, 6, 6)
    angle, one = torch.full((3,), torch.pi / 2, dtype=x.dtype), torch.ones(3, dtype=x.dtype)
    made = torch.tensor([True, True, False])
    turned = _turned(x, angle, one, made)
    assert torch.allclose(turned[:2], torch.rot90(x[:2], -1, (2, 3)), atol=1e-12) and torch.equal(
        turned[2], x[2]
    )
    wide = image(2, 4, 7)
    half = _turned(wide, 2 * angle[:2], one[:2], made[:2])
    assert torch.allclose(half, wide.flip(2, 3), atol=1e-12)
    # Linear images are interpolated exactly: the value at offset r from the middle was at R^T r / zoom.
    height, width, small, zoom = 5, 9, 0.3, 1.6
    down, across = torch.meshgrid(torch.arange(height) - 2.0, torch.arange(width) - 4.0, indexing="ij")
    ramp = (2 * down + 3 * across)[None, None].double()
    found = _turned(ramp, torch.full((1,), small).double(), torch.full((1,), zoom).double(), made[:1])[0, 0]
    c, s = torch.cos(torch.tensor(small)) / zoom, torch.sin(torch.tensor(small)) / zoom
    source_across, source_down = c * across + s * down, c * down - s * across
    inside = (source_across.abs() <= 4) & (source_down.abs() <= 2)
    expected = (2 * source_down + 3 * source_across).double()
    assert int(inside.sum()) > 30 and torch.allclose(found[inside], expected[inside], atol=1e-6)


def test_labels_of_turns_are_cosine_sine_and_zoom() -> None:
    augment = data.Augment(rotate=30, scale=2, labels=True, p=0.5)
    x = image(500)
    y, labels = augment(x, 0)
    cosine, sine, zoom = labels.T
    assert torch.allclose((cosine + 1) ** 2 + sine**2, torch.ones(500, dtype=x.dtype), atol=1e-6)
    assert float(sine.abs().max()) <= 0.5 and 0.9 < float(zoom.abs().max()) <= 1
    clean = (labels == 0).all(dim=1)
    assert torch.equal(y[clean], x[clean]) and not torch.equal(y[~clean], x[~clean])


def test_augmentations_compose_with_dequantisation() -> None:
    x = (16 * image(40)).floor()
    first = data.Compose(data.dequantise, data.Augment(flip=True, labels=True))
    y, labels = first(x, 7)
    flipped = torch.where(labels[:, 0, None, None, None] == 1, x.flip(3), x)
    assert torch.equal(y.floor(), flipped) and first.dim == 1
    assert first.clean is not None and torch.equal(first.clean(x, 7), data.dequantise(x, 7))
    turned = data.Compose(data.Augment(rotate=20, levels=True), data.dequantise)
    y = turned(x, 7)
    assert isinstance(y, torch.Tensor) and y.shape == x.shape and turned.dim == 0
    twice = data.Compose(data.Augment(shift=1, labels=True), data.Augment(shift=1, labels=True))
    labels = twice(x, 0)[1]
    assert labels.shape == (40, 4) and not torch.equal(labels[:, :2], labels[:, 2:])
    assert data.Augment(flip=True).clean is None and twice.clean is None


def test_wrong_augmentations_are_refused() -> None:
    for options, words in (
        ({}, "nothing is to be changed"),
        ({"shift": -1}, "give whole pixels"),
        ({"rotate": 200}, "180 degrees"),
        ({"scale": 0.5}, "give a zoom of at least 1"),
        ({"flip": True, "p": 0.0}, "0 < p <= 1"),
    ):
        with pytest.raises(ValueError, match=words):
            data.Augment(**options)
    with pytest.raises(ValueError, match=r"shape \(3, 4\), but images"):
        data.Augment(flip=True)(torch.zeros(3, 4))
