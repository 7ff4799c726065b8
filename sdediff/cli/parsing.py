"""Parsers derived from signatures, and their complaints in one sentence."""

from __future__ import annotations

import difflib
import inspect
import re
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace


class UsageError(Exception):
    """A mistake in the words of a command, in one sentence."""


def nearest(word: str, known: Iterable[str], count: int = 1) -> str:
    """The known words nearest to a word, joined by "or".

    Example:
        >>> nearest("samples", ["train", "sample"])
        'sample'
    """
    return " or ".join(difflib.get_close_matches(word, list(known), n=count, cutoff=0.0))


class Parser(ArgumentParser):
    """jsonargparse's parser, whose help has no marks of the docstrings it comes from."""

    def format_help(self, *args: Any, **options: Any) -> str:
        """The help, without roles such as ``:class:`` and backquotes."""
        return re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", super().format_help(*args, **options)).replace(
            "``", ""
        )


def make_parser(command: str, description: str) -> ArgumentParser:
    """A parser that raises its complaints."""
    return Parser(prog=f"sdediff {command}", description=description, exit_on_error=False, allow_abbrev=False)


def default(function: Callable[..., Any], name: str) -> Any:
    """Default of a parameter.

    Example:
        >>> default(sorted, "reverse")
        False
    """
    return inspect.signature(function).parameters[name].default


def parse(parser: ArgumentParser, argv: list[str], config: Mapping[str, Any] | None = None) -> Namespace:
    """Options from the words of a command, over those of a configuration, over the defaults.

    Raises:
        UsageError: Naming the option and what it needs.
    """
    try:
        if config is not None:
            stored = parser.parse_object(dict(config))
            parser.set_defaults({key: stored[key] for key in keys(parser) if key in stored})
        return parser.parse_args(_expand_flags(parser, argv))
    except ArgumentError as error:
        raise UsageError(_sentence(parser, str(error))) from error


def keys(parser: ArgumentParser) -> list[str]:
    """Dotted names of all options."""
    return list(parser.get_defaults().keys())


def read_config(path: str) -> dict[str, Any]:
    """A YAML file of options.

    Raises:
        UsageError: If it is not one.
    """
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}: give a YAML file, such as the config.yaml of another run")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is no YAML text ({' '.join(str(error).split())}): mend it") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path} holds no options: write lines such as steps: 2000")
    return content


def check_config(parser: ArgumentParser, config: Mapping[str, Any], path: str) -> None:
    """Raise UsageError for a key that is no option, with the nearest that is."""
    known = keys(parser)
    for key in _flat(config):
        if key not in known:
            raise UsageError(f"{path} sets {key}, which is no option: did you mean {nearest(key, known)}?")


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    names = []
    for key, value in config.items():
        names += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
    return names


def value_of(argv: list[str], option: str) -> str | None:
    """The value of an option, before any parser knows it; the last one counts.

    Example:
        >>> value_of(["--process", "VE", "--seed=3"], "--seed")
        '3'
    """
    found: str | None = None
    for word, following in zip_longest(argv, argv[1:]):
        if word == option:
            found = following
        elif word.startswith(option + "="):
            found = word[len(option) + 1 :]
    return found


def _expand_flags(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """``--resume`` alone means ``--resume true``, and so for all that is true or false."""
    flags = {f"--{key}" for key, value in parser.get_defaults().items() if isinstance(value, bool)}
    return [
        f"{word}=true" if word in flags and following not in ("true", "false") else word
        for word, following in zip_longest(argv, argv[1:])
    ]


_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "Sequence": "a list such as [1,2]",
    "list": "a list such as [1,2]",
    "tuple": "a list such as [1,2]",
}


def _sentence(parser: ArgumentParser, complaint: str) -> str:
    """The parser's complaint, which may have many lines, as one sentence."""
    unknown = re.match(r"[Uu]nrecognized arguments: (.*)", complaint)
    if unknown:
        words = unknown.group(1).split()
        option = next((word.split("=")[0] for word in words if word.startswith("--")), None)
        if option is None:
            return f"{words[0]!r} is one word too many: {parser.prog} --help shows what it takes"
        return (
            f"there is no option {option}: did you mean {nearest(option, [f'--{k}' for k in keys(parser)])}?"
        )
    bare = re.match(r"argument (--\S+): expected one argument", complaint)
    if bare:
        return f"{bare.group(1)} needs a value: {parser.prog} --help shows which"
    named = re.findall(r'key "([^"]+)"', complaint)
    value = re.search(r"(?:Got value|Given value): (.*)", complaint)
    if not named or not value:
        return " ".join(complaint.split())
    needed = " or ".join(_kinds(complaint)) or "another value"
    return f"--{named[0]} was given {value.group(1)!r}: give {needed}"


def _kinds(complaint: str) -> list[str]:
    """What a complaint says is expected, in words."""
    kinds = []
    for expected in re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", complaint):
        name = re.search(r"([A-Za-z]+)(?:'>|$|\[)", expected)
        if name and name.group(1) == "Literal":
            kinds.append("one of " + ", ".join(re.findall(r"'([^']*)'", expected)))
        elif name and name.group(1) != "NoneType":  # leaving it out is the easier way to say null
            kinds.append(_KINDS.get(name.group(1), expected))
    return kinds
