"""Work against precision: what a solver's samples cost, and how far off they are.

:func:`compare` runs any set of solvers on a trained or closed-form model; its :class:`Report` is a table, a
picture and a page.
"""

from .comparison import DEFAULT_SOLVERS, compare
from .entry import Entry
from .report import Report, Row
from .target import REFERENCES, reference_model

__all__ = ["DEFAULT_SOLVERS", "REFERENCES", "Entry", "Report", "Row", "compare", "reference_model"]
