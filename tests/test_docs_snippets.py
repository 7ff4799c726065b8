"""Runs what the documentation shows: the python blocks of each page, in order, in one namespace a page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if path.exists()]
FENCE = re.compile(r"^```(?P<language>[^\n`]*)\n(?P<code>.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[tuple[str, int, str]]:
    """Language, line before the first line of code, and code of each fenced block."""
    for found in FENCE.finditer(text):
        yield found["language"].strip(), text.count("\n", 0, found.start("code")), found["code"]


def test_blocks_are_found_in_order_and_with_their_lines():
    page = "# Title\n```python\na = 1\n```\ntext\n```bash\npip\n```\n```python\nb = a\nc\n```\n"
    assert list(blocks(page)) == [("python", 2, "a = 1\n"), ("bash", 6, "pip\n"), ("python", 9, "b = a\nc\n")]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # what a page writes stays out of the checkout
    namespace: dict[str, object] = {"__name__": path.stem}
    for language, line, code in blocks(path.read_text(encoding="utf-8")):
        # Another spelling of the language would slip past and go stale.
        assert language.lower() not in {"py", "python3", "pycon"}, f"{path.name}:{line}: call it python"
        if language == "python":
            # The blank lines make a traceback point at the line of the page.
            exec(compile("\n" * line + code, str(path), "exec"), namespace)
