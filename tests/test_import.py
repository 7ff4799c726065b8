"""What importing does, and what it says when it cannot work."""

import subprocess
import sys
from pathlib import Path

import sdediff
import solvers

ROOT = Path(__file__).resolve().parent.parent


def python(code, cwd):
    """Run code in a fresh interpreter that starts in `cwd`, with this checkout on its path."""
    setup = f"import sys; sys.path.append({str(ROOT)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", setup + code], cwd=cwd, capture_output=True, text=True, check=False
    )


def test_solvers_is_one_package_under_two_names():
    assert sdediff.solvers is solvers
    from sdediff.solvers import Heun

    assert Heun is solvers.Heun


def test_a_users_own_solvers_module_is_named_in_one_sentence(tmp_path):
    (tmp_path / "solvers.py").write_text("answer = 42\n")
    done = python("import sdediff", tmp_path)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "sdediff needs its own package solvers" in message
    assert str(tmp_path / "solvers.py") in message
