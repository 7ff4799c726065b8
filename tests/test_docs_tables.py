"""The tables of the documentation say what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"

# In a process of its own, where no test has registered a solver.
CHECK = """
import sys; sys.path.insert(0, sys.argv[1])
import pathlib, make_tables
pages = sorted(pathlib.Path(sys.argv[1]).glob("*.md"))
texts = {page.name: page.read_text(encoding="utf-8") for page in pages}
assert sum(make_tables.MARKED.search(text) is not None for text in texts.values()) >= 2, "no page has a table"
print(*[name for name, text in texts.items() if make_tables.filled(text) != text])
"""


def test_tables_are_up_to_date():
    done = subprocess.run(
        [sys.executable, "-c", CHECK, str(DOCS)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), f"run `python docs/make_tables.py`: out of date in {done.stdout.strip()}"
