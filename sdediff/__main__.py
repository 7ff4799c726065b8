"""``python -m sdediff``: the command line, as launchers of several processes start it."""

import sys

from sdediff.cli import main

if __name__ == "__main__":
    sys.exit(main())
