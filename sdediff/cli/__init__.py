"""The command line, ``sdediff``: one word a job. Its options come from the signatures of what they set."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from sdediff.group import silent

from .parsing import UsageError, nearest

__all__ = ["main"]

#: Commands; each is the module of its name in this package, with a function main(argv) -> status.
COMMANDS = {
    "demo": "train on digits, compare solvers, evaluate likelihoods: all of it in minutes",
    "train": "train a model on the rows of a file",
    "sample": "draw samples of a trained model",
    "logprob": "log-likelihoods of the rows of a file, with their errors",
    "bench": "compare solvers on a model: error against evaluations and seconds",
    "doctor": "what is installed here, and whether it computes what it should",
}
USAGE, FAILURE, INTERRUPTED = 2, 1, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Words after ``sdediff``; those of this process by default. With ``--debug`` among them an error
            keeps its traceback.

    Returns:
        Exit status: 0; 1 after an error in data, model or solve; 2 after one in the command's own words; 130
        after Ctrl-C.

    Example:
        >>> main(["--version"])
        sdediff ...
        0
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words = words[words[:1] == ["--"] :]  # torchrun needs it before options that look like its own
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = _tell
        try:
            return _run(words)
        except SystemExit as leaving:  # --help
            return int(leaving.code or 0)
        except UsageError as error:
            status, message, quiet = USAGE, str(error), silent()
        except KeyboardInterrupt as error:
            status, message, quiet = INTERRUPTED, str(error) or "interrupted", silent()
        except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
            if debug:
                raise
            status, message = FAILURE, " ".join(str(error).split()) or type(error).__name__
            quiet = silent(error)
    prefix = f"sdediff {words[0]}" if words and words[0] in COMMANDS else "sdediff"
    if not quiet:
        print(f"{prefix}: {message}", file=sys.stderr)
    return status


def _run(words: list[str]) -> int:
    from sdediff import __version__

    if not words or words[0] in ("-h", "--help", "help"):
        print(_help(), file=sys.stdout if words else sys.stderr)
        return 0 if words else USAGE
    if words[0] in ("--version", "version"):
        print(f"sdediff {__version__}")
        return 0
    command, *rest = words
    if command not in COMMANDS:
        raise UsageError(
            f"there is no command {command!r}: did you mean {nearest(command, COMMANDS)}? There are "
            f"{', '.join(COMMANDS)}"
        )
    return int(import_module(f"{__name__}.{command}").main(rest))


def _help() -> str:
    lines = [f"  {name:9s}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "usage: sdediff COMMAND [options]",
            "",
            "Score-based generative modelling in continuous time.",
            "",
            *lines,
            "",
            "sdediff COMMAND --help   the options of a command",
            "sdediff --version        the version",
            "--debug                  with any command: the traceback of an error",
        ]
    )


def _tell(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """A warning as a sentence, without the line of code it came from."""
    if not silent():
        print(f"sdediff: warning: {message}", file=sys.stderr)
