"""The house of CONTRIBUTING.md: who imports whom, how large the parts are, what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "twophase"
MODULES = sorted(PACKAGE.rglob("*.py"))
METHOD = [
    *(path for path in PACKAGE.glob("*.py") if path.name != "__main__.py"),
    *(PACKAGE / "line_search").glob("*.py"),
]
# second phases, switch rules, objectives, optimizers and precisions to choose from
CHOICES = [
    path
    for name in (
        "directions",
        "least_squares",
        "switching",
        "objectives",
        "optimizers",
        "precision",
    )
    for path in (PACKAGE / name).glob("*.py")
]
# each may import itself and what is listed
MAY_IMPORT = {
    "method": set(),
    "problems": {"method"},
    "experiments": {"method", "problems"},
    "figures": {"method", "problems", "experiments"},
    "reporting": {"method"},
    "integrations": {"method"},
}
FROM_REPORTING = {f"twophase.experiments.{name}" for name in ("files", "provenance", "progress")}


def part(module):
    """The part of the house that a module, such as "twophase.problems.toys", belongs to."""
    names = module.split(".")
    return names[1] if len(names) > 1 and names[1] in MAY_IMPORT else "method"


def dotted(path):
    return ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")


def imported(path):
    """The modules of the package that a module names in its imports, with the line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                inside = PROJECT.joinpath(*node.module.split("."), f"{name.name}.py")
                full = f"{node.module}.{name.name}"
                is_module = inside.exists() or inside.with_suffix("").is_dir()
                yield node.lineno, full if is_module else node.module


def allowed(path, module):
    own, other = part(dotted(path)), part(module)
    if own == "reporting" and module in FROM_REPORTING:
        return True
    return other == own or other in MAY_IMPORT[own]


def test_everybody_imports_only_whom_they_may():
    wrong = [
        f"{path.relative_to(PROJECT)}:{line} imports {module}"
        for path in MODULES
        if path.name != "__main__.py"
        for line, module in imported(path)
        if module.split(".")[0] == "twophase" and not allowed(path, module)
    ]
    assert not wrong, "\n".join(wrong)


def length(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_method_fits_in_one_sitting():
    assert sum(map(length, METHOD)) <= 4040
    own = METHOD + CHOICES
    too_long = {str(path.relative_to(PROJECT)): length(path) for path in own if length(path) > 350}
    assert not too_long


def test_the_package_is_small():
    assert sum(map(length, CHOICES)) <= 4720
    assert sum(length(path) for path in MODULES if path not in CHOICES) <= 19_590


def functions(path):
    """Name and lines, without the docstring, of each function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            yield f"{path.relative_to(PROJECT)}:{node.lineno} {node.name}", lines


def test_no_function_of_the_method_is_long():
    too_long = {name: n for path in METHOD + CHOICES for name, n in functions(path) if n > 40}
    assert not too_long


@pytest.mark.slow
def test_importing_the_package_loads_torch_and_little_else():
    """What torch itself loads, such as tqdm, is not ours to avoid."""
    program = (
        "import sys, torch; before = set(sys.modules); import twophase; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "twophase" in loaded, done.stderr
    assert not loaded & {"tqdm", "pandas", "matplotlib", "torchvision", "scipy", "seaborn"}


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "README.md"])
def test_texts_name_files_that_are_there(name):
    text = (PROJECT / name).read_text(encoding="utf-8")
    named = [word.strip("`,;.:()") for word in text.split() if word.startswith("`")]
    paths = [word for word in named if "/" in word and word.endswith((".py", ".md", ".csv", "/"))]
    missing = [word for word in paths if not list(PROJECT.glob(word))]
    assert not missing
