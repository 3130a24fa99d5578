"""The house: which way the arrows point, what is declared, what may not be written."""

import ast
import functools
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

TOP_LEVEL = {
    "CITATION.cff",
    "pyproject.toml",
    "uv.lock",
    "packages",
    "shared",
    "benchmarks",
    "tests",
    "README.md",
    "CONTRIBUTING.md",
    "LICENSE",
}
CARRIERS = {"scikit-image", "scikit-learn"}
"""The embedded pictures are files in their wheels: `tenfold.data` finds them without importing the libraries."""

DRAWERS = {"utils", "util", "helpers", "helper", "common", "misc", "constants"}


ROOMS = ("config", "data", "models", "method", "evaluation", "training", "pipeline", "benchmark", "demo", "cli")
"""What a package consists of; a room imports only from rooms before it. CONTRIBUTING.md says what each holds."""

MODULE_NAMES = 150
"""How many different names the modules of the ten packages may have: the same role has the same name in all."""


@functools.cache
def imports_of(path: Path) -> set[str]:
    """The top-level modules that a file imports anywhere, standard library apart."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found - sys.stdlib_module_names


def module_of(path: Path, member: Any) -> str:
    parts = path.relative_to(member.source.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@functools.cache
def own_imports(path: Path, member: Any) -> frozenset[str]:
    """The modules of its own package that a file imports anywhere, also inside functions and for types only."""
    known = {module_of(each, member) for each in member.files}
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: a relative import hides where it points"
            wholes = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (wholes & known) or {node.module}
    return frozenset((found & known) - {module_of(path, member)})


@functools.cache
def providers() -> Mapping[str, list[str]]:
    """The distributions of each top-level module."""
    return importlib.metadata.packages_distributions()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(project: dict[str, Any]) -> set[str]:
    extras = project.get("optional-dependencies", {}).values()
    lines = [*project.get("dependencies", []), *(line for extra in extras for line in extra)]
    return {normal(re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0]) for line in lines}


def test_no_package_imports_another_and_nothing_imports_the_benchmarks(package: Any, root: Path) -> None:
    others = {path.name for path in (root / "packages").iterdir()} - {package.name} | {"reproduce"}
    for path in package.files:
        assert not imports_of(path) & others, path


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_module_stands_in_a_room_and_imports_from_the_rooms_before_it(package: Any) -> None:
    outside, upward = [], []
    for path in package.files:
        module = module_of(path, package)
        if module in (package.name, f"{package.name}.__main__"):
            continue
        if room_of(module) not in ROOMS:
            outside.append(module)
            continue
        place = ROOMS.index(room_of(module))
        targets = own_imports(path, package) - {package.name}
        upward += [f"{module} -> {target}" for target in targets if ROOMS.index(room_of(target)) > place]
    assert not outside
    assert not upward


def test_no_module_imports_itself_through_others(package: Any) -> None:
    arrows = {module_of(path, package): set(own_imports(path, package)) for path in package.files}
    # Whatever imports nothing more is in no circle, and neither is what imports only such modules.
    while leaves := [module for module, targets in arrows.items() if not targets & arrows.keys()]:
        for module in leaves:
            del arrows[module]
    assert not arrows


def test_the_same_role_has_the_same_name_in_all_packages(root: Path) -> None:
    files = [path for path in root.glob("packages/*/src/**/*.py") if path.name != "__init__.py"]
    assert len({path.stem for path in files}) <= MODULE_NAMES


def test_the_shared_package_imports_no_paper(root: Path) -> None:
    papers = {path.name for path in (root / "packages").iterdir()} | {"reproduce"}
    for path in sorted((root / "shared/src").rglob("*.py")):
        assert not imports_of(path) & papers, path


def test_what_is_imported_is_declared_and_what_is_declared_is_imported(member: Any) -> None:
    used: set[str] = set()
    for path in member.files:
        for module in imports_of(path) - {member.module}:
            names = {normal(name) for name in providers().get(module, [module])}
            assert names & declared(member.project), f"{path}: {module} is not declared"
            used |= names
    unused = {normal(re.split(r"[\s\[<>=!~;]", line, maxsplit=1)[0]) for line in member.project["dependencies"]} - used
    unused -= CARRIERS if member.name == "tenfold" else set()
    assert not unused, f"{member.name} declares {unused} and never imports it"


def test_method_modules_know_nothing_of_the_command_line(package: Any) -> None:
    for path in package.files:
        if path.name not in {"cli.py", "__main__.py"}:
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"^\s*from (tenfold|\w+)\.cli import|^\s*import \w+\.cli\b", text, re.MULTILINE), path


def test_nothing_is_unpickled(member: Any) -> None:
    for path in member.files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "np.load", "numpy.load"}:
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = (
                    options.get("weights_only") == "True"
                    if "torch" in ast.unparse(node.func)
                    else options.get("allow_pickle", "False") == "False"
                )
                assert safe, f"{path}:{node.lineno}"


def test_no_drawers(member: Any) -> None:
    assert not [path for path in member.files if path.stem in DRAWERS]


def test_every_member_names_its_neighbours_by_range(member: Any) -> None:
    for line in member.project.get("dependencies", []):
        if re.match(r"tenfold\b", line):
            assert re.search(r">=\d.*,<\d", line), line


def tracked(root: Path) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, check=False)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [root / name for name in listing.stdout.decode().split("\0") if name]


def test_the_top_level_holds_only_what_belongs_there(root: Path) -> None:
    top = {path.relative_to(root).parts[0] for path in tracked(root)}
    assert {name for name in top if not name.startswith(".")} <= TOP_LEVEL


def test_no_registry_host_outside_the_lock_and_no_large_data(root: Path) -> None:
    hosts = re.compile("|".join(["py" + r"pi\.org", "python" + r"hosted\.org", "registry" + r"\.npmjs"]))
    for path in tracked(root):
        if path.name == "uv.lock" or not path.exists():
            continue
        assert path.stat().st_size < 25 * 2**20, path
        if path.suffix in {".py", ".pyi", ".md", ".toml", ".yml", ".j2", ""}:
            assert not hosts.search(path.read_text(encoding="utf-8", errors="replace")), path
