"""What every picture shares."""

from __future__ import annotations

import os

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sdediff import files

#: Colours that stay apart for every kind of colour vision (Okabe & Ito 2008), the first ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Args:
        figure: The figure.
        path: The file.
        dpi: Pixels per inch.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def plain(axes: Axes) -> None:
    """Axes without a frame, in small print."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)
