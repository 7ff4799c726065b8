"""Anomaly scores for rows of a table: train on normal rows only, call a row odd when it is unlikely.

Two real tables that come with scikit-learn. Breast cancer: 30 measurements of cell nuclei; benign samples are
normal, malignant ones odd. Iris: 4 measurements; two species are normal and the third, which lies between
them, is odd. The figure of merit is the area under the ROC curve: the probability that an odd row scores
higher than a normal one that was not trained on, with an interval for the choice of test rows. A single
Gaussian fitted to the same rows is the yardstick: hard to beat where normal rows form one cloud, blind where
they form two. Writes roc.png.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer, load_iris
from torch import Tensor

import sdediff
from sdediff import viz


def tables() -> dict[str, tuple[Tensor, Tensor]]:
    """Normal and odd rows by name."""
    cells, benign = (torch.as_tensor(a) for a in load_breast_cancer(return_X_y=True))
    flowers, species = (torch.as_tensor(a) for a in load_iris(return_X_y=True))
    return {
        "breast cancer": (cells[benign == 1].float(), cells[benign == 0].float()),
        "iris": (flowers[species != 1].float(), flowers[species == 1].float()),
    }


def train(rows: Tensor) -> sdediff.DiffusionModel:
    """A model of the normal rows; dropout, because there are few of them."""
    columns = rows.shape[1]
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=columns, hidden=64, blocks=2, dropout=0.1)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(columns,))
    sdediff.fit(model, rows, steps=250, batch_size=128, progress=False)
    return model.eval()


def main() -> None:
    """Print the areas under the curves, and how often a threshold errs."""
    curves = {}
    for name, (normal, odd) in tables().items():
        order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(0))
        seen, unseen = normal[order].tensor_split([7 * len(normal) // 10])
        print(f"{name}: {len(seen)} normal rows to train on, {len(unseen)} normal and {len(odd)} odd to test")

        # Normal rows that were not trained on are the reference: what their log-density is on average, and
        # which scores they have. Odd rows are compared with it.
        model, settings = train(seen), {"rtol": 1e-4, "atol": 1e-4}
        reference = model.log_likelihood(unseen, **settings)
        score = model.anomaly_score(odd, reference, **settings)
        curve = curves[name] = sdediff.roc(-reference.log_prob, score.value)

        gaussian = torch.distributions.MultivariateNormal(seen.double().mean(0), seen.double().T.cov())
        baseline = sdediff.roc(*(-gaussian.log_prob(rows.double()) for rows in (unseen, odd)))
        curves[f"{name}, one Gaussian"] = baseline
        for method, c in (("diffusion", curve), ("one Gaussian", baseline)):
            low, high = c.interval(0.95)
            print(f"  area under the ROC curve, {method:12s} {c.auc:.3f}, 95 % from {low:.3f} to {high:.3f}")

        low, high = score.interval(0.95)
        width = float((high - low).median()) / 2
        gap = float(reference.log_prob.mean() + score.value.mean())
        print(f"  normal rows score {gap:.1f} nats less; a score is known to {width:.2f} nats (median)")
        caught = float((score.p_value() <= 0.05).double().mean())
        print(f"  where one normal row in 20 is called odd, {caught:.0%} of the odd rows are")
        assert gap > 1 and curve.interval()[0] > 0.6, "odd rows are told from normal ones"

    cells, flowers = curves["breast cancer"], curves["iris"]
    assert abs(cells.auc - curves["breast cancer, one Gaussian"].auc) < 0.05, "one cloud: no better, no worse"
    assert flowers.interval()[0] > curves["iris, one Gaussian"].interval()[1], "two clouds: beyond the errors"
    viz.save(viz.roc_curves(curves), "roc.png")


if __name__ == "__main__":
    main()
