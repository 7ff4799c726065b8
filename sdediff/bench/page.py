"""The report as one HTML page that needs nothing from anywhere else."""

from __future__ import annotations

import io
import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .report import Report

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1180px;
       margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; }
.diagram { overflow-x: auto; } .diagram svg { width: 100%; min-width: 760px; height: auto; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { padding: .3rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }
th:nth-child(-n+3), td:nth-child(-n+3) { text-align: left; }
th button { font: inherit; font-weight: 600; border: 0; background: none; color: inherit; cursor: pointer;
            padding: 0; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
tbody tr:hover { background: #f4f7fb; }
p { max-width: 60rem; color: #444; }
"""

# Cells are sorted as numbers where they have one; a click on the same head turns the order round.
_SCRIPT = """
for (const head of document.querySelectorAll("th")) head.firstChild.onclick = () => {
  const body = document.querySelector("tbody"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending", sign = down ? -1 : 1;
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const order = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  body.append(...[...body.rows].sort(order));
};
"""


def page(report: Report) -> str:
    """The page as text."""
    head, *rows = report.cells()
    titles = "".join(f'<th scope="col"><button type="button">{escape(cell)}</button></th>' for cell in head)
    lines = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in rows)
    notes = "".join(f"<p>{escape(note)}</p>\n" for note in report.notes())
    title = escape(f"Solvers on {report.title}")
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<div class="diagram">{_diagram(report)}</div>\n'
        f'<div class="table"><table>\n<thead><tr>{titles}</tr></thead>\n<tbody>\n{lines}</tbody>'
        "</table></div>\n"
        f"{notes}<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _cell(text: str) -> str:
    leading = re.match(r"(?:tol )?([-+.\de]+)(?: steps)?$", text)
    value = f' data-value="{leading[1]}"' if leading else ""
    return f"<td{value}>{escape(text)}</td>"


def _diagram(report: Report) -> str:
    """The figure as an SVG element."""
    text = io.StringIO()
    report.figure().savefig(text, format="svg", metadata={"Date": None})
    whole = text.getvalue()
    return whole[whole.index("<svg") :].replace(
        "<svg", '<svg role="img" aria-label="work-precision diagram"', 1
    )
