"""``sdediff demo``: all of it on a small problem."""

from __future__ import annotations

from .parsing import make_parser, parse


def main(argv: list[str]) -> int:
    """Run :func:`sdediff.demo.run`."""
    parser = make_parser("demo", "Train, sample and compute likelihoods on a small problem.")
    parser.add_argument("--out", type=str, default="sdediff-demo", help="folder for what it writes")
    parser.add_argument("--seed", type=int, default=0, help="seed of all randomness")
    options = parse(parser, argv)
    from sdediff import demo

    demo.run(out=options.out, seed=options.seed)
    return 0
