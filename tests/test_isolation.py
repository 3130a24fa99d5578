"""Each package runs where nothing is installed but what it declares: its imports, its command, its demonstration."""

import ast
import importlib.metadata
import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FORKS = sys.platform == "linux"


def projects() -> dict[str, dict[str, Any]]:
    """The `[project]` tables of the published members, by name."""
    files = [ROOT / "shared/pyproject.toml", *sorted(ROOT.glob("packages/*/pyproject.toml"))]
    tables = [tomllib.loads(file.read_text(encoding="utf-8"))["project"] for file in files]
    return {table["name"]: table for table in tables}


PAPERS = sorted(set(projects()) - {"tenfold"})


def requirements(name: str, members: dict[str, Any]) -> list[str]:
    """What a distribution declares: a member of the workspace in its pyproject.toml, another one in its metadata."""
    if name in members:
        extras = members[name].get("optional-dependencies", {})
        marked = [f"{line}; extra == '{extra}'" for extra, lines in extras.items() for line in lines]
        return [*members[name].get("dependencies", []), *marked]
    return importlib.metadata.requires(name) or []


def closure(name: str, members: dict[str, Any]) -> set[str]:
    """The distributions that come along when one is installed without extras."""
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(name), "")]
    while todo:
        current, extra = todo.pop()
        if (current, extra) in seen:
            continue
        seen.add((current, extra))
        for line in requirements(current, members):
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(need.name), each) for each in ("", *need.extras)]
    return {each for each, _ in seen}


class Process:
    """The process of `alone.py`: one for all packages where it can fork, else one for each."""

    def __init__(self) -> None:
        members = projects()
        self.allowed = {name: closure(name, members) for name in members}
        self.common = set.intersection(*self.allowed.values())
        self.running: subprocess.Popen[str] | None = None

    def send(self, **request: Any) -> None:
        if self.running is None:
            command = [sys.executable, str(Path(__file__).with_name("alone.py"))]
            environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
            self.running = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        assert self.running.stdin
        self.running.stdin.write(json.dumps(request) + "\n")
        self.running.stdin.flush()

    def begin(self, package: str) -> None:
        self.send(allowed=sorted(self.allowed[package]), common=sorted(self.common))

    def ask(self, call: str, folder: Path, **arguments: Any) -> dict[str, Any]:
        self.send(call=call, folder=str(folder), **arguments)
        assert self.running
        assert self.running.stdout
        line = self.running.stdout.readline()
        assert line, f"{call} {arguments} ended the process"
        return json.loads(line)

    def end(self, last: bool = False) -> None:
        """End a package; the process too when it was the last, or when the next one needs a process of its own."""
        if self.running and not last:
            self.send()
        if self.running and (last or not FORKS):
            self.running.communicate()
            self.running = None


@dataclass(frozen=True)
class Alone:
    """A package in the process."""

    name: str
    process: Process
    folder: Path

    def ask(self, call: str, *arguments: str) -> dict[str, Any]:
        """Make one of the calls of `alone.py`, with arguments where it is a command."""
        more = {} if call == "import_everything" else {"arguments": list(arguments)}
        return self.process.ask(call, self.folder, package=self.name, **more)


@pytest.fixture(scope="module")
def process() -> Iterator[Process]:
    one = Process()
    yield one
    one.end(last=True)


@pytest.fixture(scope="module")
def alone(
    request: pytest.FixtureRequest, process: Process, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Alone]:
    process.begin(request.param)
    yield Alone(request.param, process, tmp_path_factory.mktemp(request.param))
    process.end()


def of(names: Iterable[str]) -> pytest.MarkDecorator:
    """Run a test for each name, and all tests of one name before those of the next."""
    return pytest.mark.parametrize("alone", list(names), indirect=True, scope="module")


@of(projects())
def test_all_modules_and_names_can_be_imported(alone: Alone) -> None:
    """And the public names are those of the stub, and no module takes the place of a function."""
    found = alone.ask("import_everything")
    assert found["code"] == 0, found["err"]
    assert found["intruders"] == []
    source = ROOT / ("shared/src" if alone.name == "tenfold" else f"packages/{alone.name}/src") / alone.name
    names = [
        alias.asname or alias.name
        for node in ast.parse((source / "__init__.pyi").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert names
    assert sorted(found["value"]) == sorted(names)
    # Importing a module of the same name would put it where the function was.
    functions = {name for name, is_callable in found["value"].items() if is_callable}
    assert not functions & {path.stem for path in source.iterdir() if path.is_dir() or path.suffix == ".py"}


@of(PAPERS)
def test_the_installed_command_answers(alone: Alone) -> None:
    helped = alone.ask("run_command", "--help")
    assert helped["code"] == 0, helped["err"]
    assert "Usage:" in helped["out"]
    assert helped["err"] == ""


@of(PAPERS)
def test_info_cites_the_paper(alone: Alone) -> None:
    result = alone.ask("run_command", "info")
    assert result["code"] == 0, result["err"]
    assert "@inproceedings{" in result["out"]
    assert "device" in result["out"]


@of(PAPERS)
def test_the_demo_writes_pictures_without_a_network(alone: Alone) -> None:
    # Where rounds can be chosen one is enough to see that all of it works.
    short = ["--rounds", "1"] if "--rounds" in alone.ask("run_command", "demo", "--help")["out"] else []
    out = alone.folder / "demo"
    result = alone.ask("run_module", "demo", "--out", str(out), *short)
    assert result["code"] == 0, result["err"]
    assert result["out"].strip()
    assert [path for path in out.rglob("*") if path.suffix in {".png", ".html"}]
    assert result["intruders"] == []
