from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # document this checkout, installed or not

project = "sdediff"
author = "the sdediff authors"
release = re.findall(
    r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE
)[0]

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "myst_parser",
]
exclude_patterns = ["_build"]

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]

# Docstrings write shapes as they are read, (B, *E); to reStructuredText a bare star opens an emphasis.
LITERAL_OR_STAR = re.compile(r"``.*?``|`[^`]*`|(?<=[ (])\*(?=(E|S|(data_|sample_|batch_|event_)?shape)\b)")


def escape_stars(app, what, name, obj, options, lines) -> None:
    """Escape the star of a shape, in place, outside literals."""
    lines[:] = [
        LITERAL_OR_STAR.sub(lambda found: r"\*" if found[0] == "*" else found[0], line) for line in lines
    ]


def skip_aliases(app, what, name, obj, skip, options) -> bool | None:
    """Leave out what namedtuples say of their fields: the class's docstring says it better."""
    return True if (getattr(obj, "__doc__", None) or "").startswith("Alias for field number") else None


def setup(app) -> None:
    app.connect("autodoc-skip-member", skip_aliases)
    app.connect("autodoc-process-docstring", escape_stars, priority=600)  # after napoleon
