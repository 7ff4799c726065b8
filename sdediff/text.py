"""Tables as text, and what a program ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import Any

import torch

Rows = Sequence[Sequence[str]]


def aligned(rows: Rows, left: int) -> str:
    """Rows in columns of equal width, the head first; the first `left` columns are words.

    Example:
        >>> print(aligned([("name", "n"), ("a", "10")], left=1))
        name   n
        --------
        a     10
    """
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def markdown(rows: Rows, left: int) -> str:
    """Rows as a Markdown table, the head first; the first `left` columns are words."""
    rule = ["---" if i < left else "---:" for i in range(len(rows[0]))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], rule, *rows[1:]))


def machine() -> dict[str, Any]:
    """What this runs on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
