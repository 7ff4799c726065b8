"""``sdediff doctor``: what is installed, and whether it computes what it should."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby
from pathlib import Path

import torch

import sdediff
import solvers
from sdediff.training.sources import isolated_rng

from .parsing import make_parser, parse

PACKAGES = (
    "torch", "numpy", "scipy", "torchdiffeq", "torchsde", "safetensors", "scikit-learn", "matplotlib",
    "pillow", "tqdm", "jsonargparse", "pyyaml",
)  # fmt: skip
N = 4000
#: Standard errors that a mean of samples may be off; of the six compared, two in 1e11 right ones are. With
#: the seeds fixed, the outcome is the same at every run.
WITHIN = 7.0


def main(argv: list[str]) -> int:
    """Print what is here and check it; 1 if a check fails."""
    parse(make_parser("doctor", "What is installed here, and whether it computes what it should."), argv)
    print(f"sdediff   {sdediff.__version__}, {Path(sdediff.__file__).parent}")
    print(f"python    {platform.python_version()}, {platform.platform()}")
    print("packages  " + ", ".join(f"{name} {installed(name)}" for name in PACKAGES))
    print("devices   " + ", ".join(devices()))
    print("dtypes    " + ", ".join(f"{device}: {' '.join(dtypes(device))}" for device in devices()))
    print(f"threads   {torch.get_num_threads()}")
    for library, names in groupby(sorted(solvers.available(), key=_library), key=_library):
        print(f"solvers   {library}: {' '.join(name.split('/')[-1] for name in names)}")
    print()
    outcomes = [check(name, body) for name, body in CHECKS.items()]
    return 0 if all(outcomes) else 1


def installed(name: str) -> str:
    """Version of a package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "MISSING"


def devices() -> list[str]:
    """What torch can compute on."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def dtypes(device: str) -> list[str]:
    """Floating types in which a device can multiply matrices."""
    able = []
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        try:
            a = torch.ones(2, 2, dtype=dtype, device=device)
            if bool(((a @ a) == 2).all()):
                able.append(str(dtype).removeprefix("torch."))
        except (RuntimeError, TypeError):
            continue
    return able


def _library(name: str) -> str:
    return name.split("/")[0] if "/" in name else "own"


def check(name: str, body: Callable[[], tuple[bool, str]]) -> bool:
    """Run one check and print its outcome."""
    began = time.perf_counter()
    try:
        good, what = body()
    except Exception as error:
        good, what = False, f"{type(error).__name__}: {' '.join(str(error).split())}"
    print(f"{'OK' if good else 'FAILED':7s}{name}: {what} ({time.perf_counter() - began:.1f} s)")
    return good


# The checks: a mixture of three Gaussians in two dimensions, whose every number is known.


def _mixture() -> sdediff.reference.GaussianMixture:
    means = torch.tensor([[-2.0, 0.0], [1.0, 2.0], [1.5, -1.0]], dtype=torch.float64)
    return sdediff.reference.GaussianMixture(means, covs=[0.3, 0.1, 0.5], weights=[0.5, 0.2, 0.3])


def _likelihood() -> tuple[bool, str]:
    data = _mixture()
    model, x = data.model(sdediff.VP()), data.sample(64, seed=0)
    result = model.log_likelihood(x)
    error = (result.log_prob - data.log_prob(None, x, None)).abs().max().item()
    return error < 1e-3, f"largest error {error:.1e} nats, at most 1e-3 allowed"


def _flow_samples() -> tuple[bool, str]:
    return _moments(_mixture().model(sdediff.VP()).sample(N, solver="dopri5", seed=0))


def _sde_samples() -> tuple[bool, str]:
    return _moments(_mixture().model(sdediff.EDM()).sample(N, solver="ddim", eta=1.0, steps=300, seed=0))


def _moments(x: torch.Tensor) -> tuple[bool, str]:
    """Mean and covariance of samples against the mixture's own."""
    data = _mixture()
    centred = x.double() - data.mean
    products = (centred[:, :, None] * centred[:, None, :]).flatten(1)
    both = torch.cat([centred, products - data.cov.flatten()], dim=1)
    off = (both.mean(dim=0) / (both.std(dim=0) / len(x) ** 0.5)).abs().max().item()
    return off < WITHIN, f"mean and covariance within {off:.1f} standard errors, at most {WITHIN:g} allowed"


def _there_and_back() -> tuple[bool, str]:
    data = _mixture()
    model, x = data.model(sdediff.VP()), data.sample(64, seed=1)
    z = model.encode(x, rtol=1e-8, atol=1e-8)
    error = (model.decode(z, rtol=1e-8, atol=1e-8) - x).abs().max().item()
    return error < 1e-5, f"largest difference {error:.1e}, at most 1e-5 allowed"


def _training() -> tuple[bool, str]:
    """A short training, saved and loaded, computes the same bits."""
    with isolated_rng(0):
        net = sdediff.networks.MLP(dim=2, hidden=32, blocks=2)
    model = sdediff.DiffusionModel(net, process=sdediff.VP(), prediction="edm", data_shape=(2,))
    x = _mixture().sample(512, seed=2).float()
    result = sdediff.fit(model, x, steps=50, batch_size=64, progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        model.save(path)
        again = sdediff.load(path)
    options = {"solver": "ddim", "steps": 5, "seed": 0}
    same = torch.equal(model.eval().sample(8, **options), again.sample(8, **options))
    loss = result.history[-1]["loss"]
    outcome = "the same samples" if same else "OTHER samples"
    return same and 0 < loss < 2, f"loss {loss:.2f} after 50 steps, {outcome} from the file"


CHECKS = {
    "log-likelihood of a mixture": _likelihood,
    "samples by its flow": _flow_samples,
    "samples by its SDE": _sde_samples,
    "to latents and back": _there_and_back,
    "train, save, load": _training,
}
