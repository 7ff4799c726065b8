"""The tables of the documentation say what the code says."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import solvers

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


@pytest.fixture(scope="module")
def make_tables():
    spec = importlib.util.spec_from_file_location("make_tables", DOCS / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_methods_are_listed_by_what_they_do(make_tables):
    rows = [line.split(" | ") for line in make_tables.foreign_table().splitlines()[2:]]

    def of(name):
        return next(row[1:3] for row in rows if f"`{name}`" in row[3])

    assert of("diffusers/DDPM") == ["SDE", "no"] and of("diffusers/UniPCMultistep") == ["ODE", "no"]
    assert of("torchdiffeq/rk4") == ["ODE", "no"] and of("torchdiffeq/dopri5") == ["ODE", "yes"]
    assert of("torchsde/srk") == ["SDE", "with `adaptive=True`"] and of("torchsde/euler") == ["SDE", "no"]


def test_sources_are_one_sentence_of_markdown(make_tables):
    def source(name):
        return make_tables.source(solvers.get(name))

    assert source("seeds-3").endswith('"3b")') and source("pc") == (
        "Song et al. (2021), arXiv 2011.13456, algorithm 1"
    )
    assert source("bosh3") == "Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321-325"
    assert make_tables.marked_up(r"a :math:`\varphi_2` of :class:`~solvers.DDIM`") == (
        r"a $\varphi_2$ of `solvers.DDIM`"
    )
    assert ":`" not in make_tables.solver_table()
