"""``sdediff demo``: all of it on the digits of scikit-learn."""

from __future__ import annotations

import sys

from sdediff import demo

from .parsing import make_parser, parse


def main(argv: list[str]) -> int:
    """Run :func:`sdediff.demo.run`."""
    parser = make_parser("demo", "Train on digits, compare solvers, evaluate likelihoods; takes minutes.")
    parser.add_argument("--out", type=str, default="sdediff-demo", help="folder for what it writes")
    parser.add_function_arguments(demo.run, skip={"out", "settings"}, as_group=False)
    parser.set_defaults(progress=sys.stderr.isatty())
    options = parse(parser, argv)
    demo.run(**options.as_dict())
    return 0
