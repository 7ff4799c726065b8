"""Anomaly scores for rows of a table: train on normal rows only, call a row odd when its log-density is low.

Two real tables that come with scikit-learn. Breast cancer: 30 measurements of cell nuclei; benign samples are
normal, malignant ones odd. Iris: 4 measurements; two species are normal and the third, which lies between
them, is odd. The figure of merit is the area under the ROC curve: the probability that an odd row scores
lower than a normal one that was not trained on. A single Gaussian fitted to the same rows is the yardstick:
hard to beat where normal rows form one cloud, blind where they form two.
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import roc_auc_score
from torch import Tensor

import sdediff


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
    """Print the areas under the curve."""
    for name, (normal, odd) in tables().items():
        order = torch.randperm(len(normal), generator=torch.Generator().manual_seed(0))
        cut = 7 * len(normal) // 10
        seen, unseen = normal[order[:cut]], normal[order[cut:]]
        test = torch.cat([unseen, odd])
        is_odd = torch.cat([torch.zeros(len(unseen)), torch.ones(len(odd))])

        r = train(seen).log_likelihood(test, rtol=1e-4, atol=1e-4)
        area = roc_auc_score(is_odd, -r.log_prob)
        gap = (r.log_prob[is_odd == 0].mean() - r.log_prob[is_odd == 1].mean()).item()

        gaussian = torch.distributions.MultivariateNormal(seen.double().mean(0), seen.double().T.cov())
        baseline = roc_auc_score(is_odd, -gaussian.log_prob(test.double()))
        print(f"{name}: {len(seen)} normal rows to train on, {len(unseen)} normal and {len(odd)} odd to test")
        print(f"  area under the ROC curve: diffusion {area:.3f}, one Gaussian {baseline:.3f}")
        print(
            f"  normal rows score {gap:.1f} nats more; median solver error {r.solver_error.median():.2f} nats"
        )


if __name__ == "__main__":
    main()
