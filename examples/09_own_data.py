"""Your own data: a folder of images, an array on disk, a Parquet table with words for labels.

Makes one of each in a temporary folder, opens them with the same function, splits them, and trains a small
model on each for some seconds. Nothing is read before it is asked for: an image is decoded when its batch
comes, and of the array only the rows of a batch are read. The images are shifted and turned at random, and
the network is told how, so that it also knows them as they are. The table's words become labels, and the
model is asked for the log-density of held-out rows given their own label and given another. Needs pyarrow:
`pip install 'sdediff[parquet]'`.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image
from sklearn.datasets import load_iris

import sdediff
from sdediff import data


def make(folder: Path) -> None:
    """A folder of images with a subfolder a digit, 70 000 patches of photographs, a table of flowers."""
    digits, labels = data.digits(labels=True).train
    for i, (image, label) in enumerate(zip(digits.byte(), labels.tolist(), strict=True)):
        (folder / "digits" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(folder / "digits" / str(label) / f"{i}.png")
    np.save(folder / "patches.npy", data.patches(8, stride=2).train.numpy())
    iris = load_iris()
    columns = dict(zip(iris.feature_names, iris.data.T, strict=True))
    table = pyarrow.table({**columns, "species": iris.target_names[iris.target]})
    pyarrow.parquet.write_table(table, folder / "iris.parquet")


def train(
    rows: data.RowDataset, steps: int, augment: data.Compose | None = None, **conditions: int
) -> tuple[sdediff.DiffusionModel, data.RowDataset]:
    """A model of nine tenths of the rows, and the others."""
    seen, unseen = data.split(rows, val_fraction=0.1, seed=0)
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=math.prod(rows.shape), hidden=128, blocks=2, dropout=0.1, **conditions)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=rows.shape)
    options = {"steps": steps, "batch_size": 64, "log_every": 50, "progress": False}
    result = sdediff.fit(model, seen, augment=augment, **options)
    first, last = result.history[0]["loss"], result.history[-1]["loss"]
    print(f"  {len(seen)} rows of shape {rows.shape}: loss from {first:.3f} to {last:.3f} in {steps} steps")
    assert last < first
    return model.eval(), unseen


def main() -> None:
    """Open, train, and show what was learned."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder)

        print("a folder of images")
        augment = data.Compose(data.dequantise, data.Augment(shift=1, rotate=10, labels=True))
        images = data.open_dataset(folder / "digits")
        model, unseen = train(images, 150, augment, augment_dim=augment.dim)
        grey, ink = (
            x.float().mean() for x in (model.sample(64, solver="ddim", steps=20), unseen.take(range(99))[0])
        )
        print(
            f"  mean level of samples {grey:.2f}, of held-out images with half a level added {ink + 0.5:.2f}"
        )

        print("an array on disk")
        train(data.open_dataset(folder / "patches.npy"), 150, data.Compose(data.dequantise))

        print("a table with words for labels")
        table = data.open_dataset(folder / "iris.parquet", cond="species")
        model, unseen = train(table, 300, num_classes=len(table.classes or ()))
        x, species = unseen.take(range(len(unseen)))
        own, other = (float(model.log_prob(x, cond=c).mean()) for c in (species, (species + 1) % 3))
        print(f"  {', '.join(table.columns or ())} of {', '.join(table.classes or ())}")
        print(f"  log-density of held-out rows {own:.1f} nats given their species, {other:.1f} given another")
        assert own > other + 2


if __name__ == "__main__":
    main()
