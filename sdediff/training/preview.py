"""Pictures of a run while it lasts: samples, and the error by noise level."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sdediff.training.folder import dispensable

if TYPE_CHECKING:
    from sdediff.training.trainer import Moment


@dataclass(frozen=True)
class Preview:
    """A callback for :func:`fit` that draws samples and the held-out error by noise level.

    It writes ``previews/000001000-samples.png`` and ``-noise.png`` into the run's folder, always from the
    same seed, so that the pictures of a run show the same samples getting better.

    Args:
        every: Steps between pictures; there is one at the end too.
        n: Number of samples.
        solver: Any solver's name or object.
        steps: Steps of a fixed-grid solver; None for its default.
        cond: Conditions of the samples, (n, ...), or one for all.

    Example:
        >>> Preview(every=500, n=16).solver
        'dpm++2m'
    """

    every: int = 1000
    n: int = 64
    solver: Any = "dpm++2m"
    steps: int | None = 20
    cond: Any = None

    def __call__(self, moment: Moment) -> None:
        """Draw and write.

        Pictures that cannot be written are a warning.

        Raises:
            ValueError: If the run has no folder.
        """
        from sdediff import viz

        folder = moment.trainer.folder
        if folder is None:
            raise ValueError("a Preview is written into the run's folder: give out=")
        options = {} if self.steps is None else {"steps": self.steps}
        x = moment.model.sample(self.n, solver=self.solver, seed=0, cond=self.cond, **options)
        title, name = f"step {moment.step}", f"{moment.step:09d}"
        validation = moment.trainer.validation
        figures = {
            "samples": viz.samples(
                x, data=None if validation is None else validation.x[: self.n], title=title
            )
        }
        if validation is not None:
            figures["noise"] = viz.noise_levels(validation.noise_levels(), title=title)
        place = folder.path / "previews"
        with dispensable(place):
            place.mkdir(exist_ok=True)
            for kind, figure in figures.items():
                viz.save(figure, place / f"{name}-{kind}.png")
