"""Write the tables of the documentation from the code: `python docs/make_tables.py` (a test says when to).

Between a line `<!-- table: name -->` and the next `<!-- end -->` of a page, the table of that name is put.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import torch

import sdediff
import solvers

FOLDER = Path(__file__).resolve().parent
MARKED = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
# A semicolon, or a full stop before a capital letter, save that of an abbreviation such as "Appl. Math."
SENTENCE_END = re.compile(r";|(?<!\S)(?![A-Z][a-z]*\.)\S+\.(?= [A-Z])")
STEPS = 8


def evaluations_per_step(solver: solvers.Solver) -> str:
    """Network evaluations of one step, counted."""
    if solver.adaptive:
        return "–"
    process = sdediff.VP()
    problem = solvers.SemiLinear(process, lambda t, x: torch.zeros_like(x), eta=solver.default_eta)
    solution = solvers.solve(problem, torch.ones(1, 2), solver=solver, steps=STEPS)
    return f"{int(solution.nfe[0]) / STEPS:g}"


def number(value: float | None) -> str:
    """An order; None means that there is none to state."""
    return "–" if value is None else f"{value:g}"


def orders(solver: solvers.Solver) -> list[str]:
    """Cells of the stated orders: ODE, strong, weak; one for diagonal noise behind a slash."""
    o = solver.orders
    pairs = ((o.strong, o.strong_diagonal), (o.weak, o.weak_diagonal))
    both = [number(a) if b is None else f"{number(a)} / {number(b)}" for a, b in pairs]
    return [number(o.ode), *both]


def requires(solver: solvers.Solver) -> str:
    """What a problem must have."""
    if solver.needs_linear_part:
        return "a diffusion"
    if solver.stochastic and solver.noises == ("additive",):
        return "additive noise"
    return "–"


def source(solver: solvers.Solver) -> str:
    """The first reference of the docstring."""
    text = inspect.getdoc(type(solver)) or ""
    found = re.search(r"References:\n((?: +.*\n?)+)", text)
    where = found[1] if found else (re.search(r"\(([^()]*\d{4}[^()]*)\)", text) or ["", "textbook"])[1]
    words = marked_up(" ".join(where.split()))
    end = SENTENCE_END.search(words)
    return (words[: end.end()] if end else words).rstrip(".;")


def marked_up(text: str) -> str:
    """A docstring's words as Markdown: formulas between dollars, other roles as code."""
    text = re.sub(r":math:`([^`]*)`", r"$\1$", text)
    return re.sub(r":[\w:]+:`~?([^`]*)`", r"`\1`", text)


def kind(solver: solvers.Solver) -> str:
    """What it solves when no eta is given, and what else."""
    if solver.default_eta:
        return "SDE"
    return "ODE, SDE by `eta=`" if solver.stochastic else "ODE"


def solver_table() -> str:
    """Native solvers by name."""
    lines = [
        "| name | class | kind | ODE | strong | weak | evaluations a step | adaptive | requires | source |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name in solvers.available():
        if "/" in name:
            continue
        solver = solvers.get(name)
        cells = [f"`{name}`", f"`{type(solver).__name__}`", kind(solver), *orders(solver)]
        cells += [
            evaluations_per_step(solver),
            "yes" if solver.adaptive else "–",
            requires(solver),
            source(solver),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def coupling(name: str) -> str:
    """Whether the samples of a batch share their steps: by default, or where steps are made adaptive."""
    solver = solvers.get(name)
    if solver.batch_coupled:
        return "yes"
    if not solver.adaptive and "adaptive" in inspect.signature(type(solver)).parameters:
        try:
            return "with `adaptive=True`" if solvers.get(name, adaptive=True).batch_coupled else "no"
        except ValueError:  # this method cannot be adaptive
            pass
    return "no"


def foreign_table() -> str:
    """Other libraries' methods."""
    lines = ["| library | equation | batch shares its steps | methods |", "|---|---|---|---|"]
    names = [name for name in solvers.available() if "/" in name]
    for library in sorted({name.split("/")[0] for name in names}):
        groups: dict[tuple[str, str], list[str]] = {}
        for name in names:
            if name.startswith(library + "/"):
                groups.setdefault((kind(solvers.get(name)), coupling(name)), []).append(f"`{name}`")
        for (equation, shared), methods in groups.items():
            lines.append(f"| {library} | {equation} | {shared} | {', '.join(methods)} |")
    return "\n".join(lines) + "\n"


def process_table() -> str:
    """Processes with their intervals."""
    lines = [
        "| class | alpha(t) | sigma(t) | g(t)^2 | t_min | t_max | lam at the ends | default grid |",
        "|---|---|---|---|---|---|---|---|",
    ]
    formulas = {
        "VP": (r"$e^{-B/2}$", r"$\sqrt{1-e^{-B}}$", r"$\beta$"),
        "SubVP": (r"$e^{-B/2}$", r"$1-e^{-B}$", r"$\beta(1-e^{-2B})$"),
        "VE": (
            r"$1$",
            r"$\sigma_{\min}(\sigma_{\max}/\sigma_{\min})^t$",
            r"$2\sigma^2\ln(\sigma_{\max}/\sigma_{\min})$",
        ),
        "Cosine": (r"$\cos(\pi t/2)$", r"$\sin(\pi t/2)$", r"$\pi\tan(\pi t/2)$"),
        "EDM": (r"$1$", r"$t$", r"$2t$"),
        "RectifiedFlow": (r"$1-t$", r"$t$", r"$2t/(1-t)$"),
    }
    for name, (alpha, sigma, square) in formulas.items():
        process = getattr(sdediff, name)()
        ends = ", ".join(f"{float(process.lam(t)):.2f}" for t in (process.t_min, process.t_max))
        lines.append(
            f"| `{name}` | {alpha} | {sigma} | {square} | {process.t_min:g} | {process.t_max:g} | {ends} "
            f"| {process.grid} |"
        )
    return "\n".join(lines) + "\n"


TABLES = {"solvers": solver_table, "foreign": foreign_table, "processes": process_table}


def filled(text: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def main() -> None:
    """Rewrite the pages whose tables changed."""
    for path in sorted(FOLDER.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        new = filled(old)
        if new != old:
            path.write_text(new, encoding="utf-8")
            print(f"rewrote {path.name}")


if __name__ == "__main__":
    main()
