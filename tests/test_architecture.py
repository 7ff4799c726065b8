"""The shape of the code, read from its syntax trees: who imports whom, how long things get."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import json
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("solvers", "sdediff")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
SCRIPTS = sorted(path for folder in ("tests", "examples", "docs") for path in (ROOT / folder).rglob("*.py"))

FILE_LINES, FILE_LINES_HARD, FUNCTION_LINES = 300, 400, 60
# Files allowed up to FILE_LINES_HARD lines of code, each with the reason why a split would make it worse.
LONG_FILES: dict[str, str] = {}

# What reaches for the network, or brings a framework that does, and so may not be imported with the module.
NETWORK = {
    "urllib.request", "http", "ftplib", "socket", "requests", "httpx", "aiohttp", "torch.hub", "torchvision",
    "huggingface_hub", "datasets", "transformers", "diffusers", "wandb", "pooch", "gdown",
}  # fmt: skip
# Standard-library names that Python 3.10, the oldest we declare, does not have.
NEWER_THAN_310 = {
    "tomllib", "enum.StrEnum", "datetime.UTC", "itertools.batched", "contextlib.chdir", "hashlib.file_digest",
    "operator.call", "math.cbrt", "math.exp2", "math.sumprod", "warnings.deprecated", "typing.Self",
    "typing.Never", "typing.LiteralString", "typing.TypeVarTuple", "typing.Unpack", "typing.NotRequired",
    "typing.Required", "typing.assert_never", "typing.assert_type", "typing.override",
    "typing.dataclass_transform",
}  # fmt: skip


def name_of(path: Path) -> str:
    """Dotted name of the module in a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 10))


def absolute(path: Path, node: ast.ImportFrom) -> str:
    """The module an import-from names, with its leading dots resolved."""
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parent.parts
    base = package[: len(package) - node.level + 1]
    return ".".join((*base, *(node.module.split(".") if node.module else ())))


def named_by(path: Path, node: ast.AST) -> Iterator[str]:
    """Dotted names one node imports: modules, names taken from them, strings given to import_module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        module = absolute(path, node)
        yield module
        yield from (f"{module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
            yield node.args[0].value
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PACKAGES:
        yield f"{node.value.id}.{node.attr}"  # sdediff.cli reached as an attribute of `import sdediff`


@cache
def imports(path: Path) -> set[str]:
    """Everything a file imports, wherever in the file."""
    return {name for node in ast.walk(parse(path)) for name in named_by(path, node)}


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run when a module is imported: all but the bodies of functions."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield node
            yield from at_import(node)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@cache
def code_lines(path: Path) -> set[int]:
    """Numbers of the lines that hold code: not blank, not only a comment, not part of a docstring."""
    text = path.read_text(encoding="utf-8")
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Expr) and isinstance(getattr(node.value, "value", None), str):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return lines


def demand_none(offenders: list[str], rule: str) -> None:
    assert not offenders, rule + ":\n  " + "\n  ".join(offenders)


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_something_to_scan(package):
    assert any(within(name_of(path), package) for path in SOURCES), f"no Python file found in {package}/"


def test_solvers_stand_alone():
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if within(name_of(path), "solvers")
        for name in imports(path)
        if within(name, "sdediff")
    ]
    demand_none(offenders, "solvers imports nothing of sdediff")


def test_solvers_need_torch_only():
    offenders = []
    for path in SOURCES:
        if not within(name_of(path), "solvers"):
            continue
        allowed = {"torch", "solvers", "__future__"} | set(sys.stdlib_module_names)
        if within(name_of(path), "solvers.backends"):
            allowed |= {"numpy", "scipy", "diffusers", "torchdiffeq", "torchode", "torchsde"}
        foreign = {name.split(".")[0] for name in imports(path)} - allowed
        offenders += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(foreign)]
    demand_none(offenders, "solvers imports torch; its backends alone numpy and the libraries they wrap")


def test_networks_import_nothing_internal():
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if within(name_of(path), "sdediff.networks")
        for name in imports(path)
        if within(name, *PACKAGES) and not within(name, "sdediff.networks")
    ]
    demand_none(offenders, "networks import nothing internal")


def test_training_imports_neither_sampling_nor_likelihood():
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        if within(name_of(path), "sdediff.training")
        for name in imports(path)
        if within(name, "sdediff.sampling", "sdediff.likelihood")
    ]
    demand_none(offenders, "training imports neither sampling nor likelihood")


def test_nothing_imports_the_command_line():
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in (*SOURCES, *SCRIPTS)
        if not within(name_of(path), "sdediff.cli", "sdediff.__main__")
        and not path.name.startswith(("test_cli", "test_sharding"))
        for name in imports(path)
        if within(name, "sdediff.cli")
    ]
    demand_none(
        offenders,
        "nothing imports sdediff.cli but itself and its tests (tests/test_cli*.py, test_sharding.py)",
    )


def test_importing_reaches_for_no_network():
    offenders = [
        f"{place(path, getattr(node, 'lineno', 0))} imports {name}"
        for path in SOURCES
        for node in at_import(parse(path))
        for name in named_by(path, node)
        if within(name, *NETWORK)
    ]
    demand_none(offenders, "no module imports network or hub code when it is imported")


def test_oldest_declared_python_suffices():
    oldest = 'requires-python = ">=3.10"'
    assert oldest in (ROOT / "pyproject.toml").read_text(encoding="utf-8"), f"this test checks {oldest}"
    offenders = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in SOURCES
        for name in imports(path) & NEWER_THAN_310
    ]
    demand_none(offenders, "nothing newer than Python 3.10 is imported")


def test_files_are_short():
    offenders = []
    for path in SOURCES:
        name, lines = path.relative_to(ROOT).as_posix(), len(code_lines(path))
        allowed = FILE_LINES_HARD if name in LONG_FILES else FILE_LINES
        if lines > allowed:
            offenders.append(f"{name}: {lines} lines of code, {allowed} allowed")
    demand_none(offenders, "split these files, or give the reason in LONG_FILES")


def test_functions_are_short():
    offenders = []
    for path in SOURCES:
        lines = code_lines(path)
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                long = len(lines & set(range(node.lineno, (node.end_lineno or node.lineno) + 1)))
                if long > FUNCTION_LINES:
                    offenders.append(f"{place(path, node.lineno)} {node.name}: {long} lines of code")
    demand_none(offenders, f"functions have at most {FUNCTION_LINES} lines of code")


def test_nothing_is_left_unimplemented():
    offenders = [
        place(path, node.lineno)
        for path in SOURCES
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Raise) and node.exc and "NotImplementedError" in ast.unparse(node.exc)
    ]
    demand_none(offenders, "no NotImplementedError: build it, or do not offer it (abstract methods use abc)")


def test_only_the_command_line_prints():
    offenders = [
        place(path, node.lineno)
        for path in SOURCES
        if not within(name_of(path), "sdediff.cli", "sdediff.demo")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    demand_none(offenders, "only the command line prints")


STATE_OF_THE_PROCESS = """
import json, os, random, sys, warnings
import socket
import numpy, torch

def refuse(*_, **__):
    raise OSError("no network")

socket.socket.connect = refuse

def state():
    return {
        "default dtype": str(torch.get_default_dtype()),
        "default device": str(torch.get_default_device()),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": repr(numpy.random.get_state(legacy=False)),
        "numpy errors": str(numpy.geterr()),
        "python generator": repr(random.getstate()),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "distribution checks": torch.distributions.Distribution._validate_args,
        "warnings filters": [str(entry) for entry in warnings.filters],
        "environment": dict(os.environ),
        "excepthook": repr(sys.excepthook),
    }

before = state()
import solvers, sdediff
after = state()
needless = [m for m in ("matplotlib", "sklearn", "torchdiffeq", "torchsde") if m in sys.modules]
from sdediff import viz
viz.image_grid({"a": torch.rand(2, 8, 8)})
needless += [m for m in ("matplotlib.pyplot",) if m in sys.modules]
print(json.dumps([[name for name in before if before[name] != after[name]], needless]))
"""


def test_importing_leaves_global_state_alone_and_needs_neither_network_nor_plotting():
    """Nor do pictures need pyplot. All in one interpreter, as one costs seconds."""
    command = [sys.executable, "-c", STATE_OF_THE_PROCESS]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    changed, needless = json.loads(done.stdout.splitlines()[-1])
    demand_none(changed, "importing sdediff changes these globally")
    demand_none(needless, "importing sdediff imports these, which only some of it needs")


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_are_documented(package):
    module = importlib.import_module(package)
    assert module.__all__, f"{package}.__all__ is empty"
    assert len(set(module.__all__)) == len(module.__all__), f"{package}.__all__ names something twice"
    offenders = [f"{package}.{name} does not exist" for name in module.__all__ if not hasattr(module, name)]
    for name in set(module.__all__).intersection(dir(module)):
        thing = getattr(module, name)
        if not (inspect.isclass(thing) or inspect.isroutine(thing) or inspect.ismodule(thing)):
            continue
        doc = (thing.__doc__ or "").strip()
        # A dataclass or named tuple without a docstring is given its signature as one.
        if not doc or doc.startswith(f"{name}("):
            offenders.append(f"{package}.{name}")
    demand_none(offenders, "every public name has a docstring")
