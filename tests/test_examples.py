"""Examples are short, explained and named in the README. `.ci/run` runs them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("[0-9]*.py"))


def test_there_are_examples_with_numbers_of_their_own():
    numbers = [path.name[:2] for path in EXAMPLES]
    assert numbers and numbers == [f"{i:02d}" for i in range(1, len(numbers) + 1)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_explained_and_linked(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 100
    assert ast.get_docstring(ast.parse(text))
    assert f"examples/{path.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
