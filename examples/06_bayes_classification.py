"""Which digit is it? Classify images by log p(x | c), Bayes' rule with a class-conditional diffusion model.

A small perceptron learns the 8 x 8 digits given their labels; it is never told to classify. The density of
each held-out image under each of the ten labels then gives posterior probabilities, and the evaluation's own
errors (random probes, solver) say which decisions its noise could turn. Settings are coarse on purpose: 33
nodes, two probes a node, loose tolerances, the same probes for all ten labels.

Baselines: chance, the nearest class mean, linear discriminant analysis, the same Bayes' rule with a Gaussian
for each label in the model's place, and the nearest neighbour, which is hard to beat on these images.
"""

from __future__ import annotations

import time

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import Tensor

import sdediff

SETTINGS = {"rtol": 1e-4, "atol": 1e-4, "nodes": 33, "divergence": sdediff.Hutchinson(probes=2)}


def train(images: Tensor, labels: Tensor) -> sdediff.DiffusionModel:
    """A class-conditional model, some seconds."""
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=64, hidden=128, blocks=2, dropout=0.1, num_classes=10)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(1, 8, 8))
    start = time.perf_counter()
    sdediff.fit(
        model, images, cond=labels, steps=600, batch_size=128, augment=sdediff.dequantise, progress=False
    )
    print(f"trained 600 steps in {time.perf_counter() - start:.0f} s")
    return model.eval()


def baselines(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> dict[str, float]:
    """Held-out accuracy of simple classifiers of the same dequantised images."""
    x, x_test = x.flatten(1).double(), x_test.flatten(1).double()
    classes = [x[y == c] for c in range(10)]
    means = torch.stack([rows.mean(dim=0) for rows in classes])
    gaussians = [torch.distributions.MultivariateNormal(rows.mean(dim=0), rows.T.cov()) for rows in classes]
    log_prob = torch.stack([gaussian.log_prob(x_test) for gaussian in gaussians], dim=1)
    linear = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto").fit(x.numpy(), y.numpy())
    predicted = {
        "nearest class mean": torch.cdist(x_test, means).argmin(dim=1),
        "linear discriminant": torch.from_numpy(linear.predict(x_test.numpy())),
        "a Gaussian a label": log_prob.argmax(dim=1),
        "nearest neighbour": y[torch.cdist(x_test, x).argmin(dim=1)],
    }
    return {name: float((labels == y_test).double().mean()) for name, labels in predicted.items()}


def main() -> None:
    """Train, classify, compare."""
    digits = sdediff.data.digits(labels=True)
    model = train(*digits.train)
    images, labels = digits.test
    x = sdediff.dequantise(images, seed=0)

    start = time.perf_counter()
    result = model.classify(x, **SETTINGS)
    right = result.predicted == labels
    accuracy, n = float(right.double().mean()), len(x)
    error = (accuracy * (1 - accuracy) / n) ** 0.5
    print(f"{n} held-out images under 10 labels in {time.perf_counter() - start:.0f} s")
    print(f"  by log p(x | c)          {accuracy:.3f} right, standard error {error:.3f}")
    seen, seen_labels = digits.train
    others = {"chance": 0.1} | baselines(sdediff.dequantise(seen, seed=1), seen_labels, x, labels)
    for name, value in others.items():
        print(f"  {name:24s} {value:.3f}")

    sure = result.sure(0.95)
    print(f"decisions beyond the evaluation's own noise: {int(sure.sum())} of {n},")
    print(f"  of which right {float(right[sure].double().mean()):.3f}; of the rest {int(right[~sure].sum())}")
    second = result.log_joint.topk(2).indices[:, 1]
    odds = result.log_odds(result.predicted, second)
    print(f"log-odds of first against second label: median {odds.log_prob.median():.1f} nats,")
    print(f"  standard error {odds.std_error.median():.2f}, solver error {odds.solver_error.median():.2f}")
    true = result.posterior.gather(1, labels[:, None])
    print(f"mean posterior of the true label {true.mean():.3f}")

    assert accuracy > 0.93 and accuracy > others["a Gaussian a label"], (
        "better than the same rule with Gaussians"
    )
    assert right[sure].double().mean() >= accuracy - 0.01, "sure decisions are no worse than all"
    assert sure.double().mean() > 0.7


if __name__ == "__main__":
    main()
