"""What the tests across packages know about the workspace."""

import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Member:
    """A workspace member: its distribution and where it lies."""

    name: str
    folder: Path
    module: str

    @property
    def project(self) -> dict:
        return tomllib.loads((self.folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    @property
    def source(self) -> Path:
        return self.folder / "src" / self.module

    @property
    def files(self) -> list[Path]:
        return sorted(self.source.rglob("*.py"))


PACKAGES = [
    Member(path.name, path, path.name)
    for path in sorted(each.parent for each in ROOT.glob("packages/*/pyproject.toml"))
]
SHARED = Member("tenfold", ROOT / "shared", "tenfold")
BENCHMARKS = Member("tenfold-benchmarks", ROOT / "benchmarks", "reproduce")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `package` runs for each of the papers, one that takes `member` for the shared parts too."""
    if "package" in metafunc.fixturenames:
        metafunc.parametrize("package", PACKAGES, ids=lambda each: each.name)
    if "member" in metafunc.fixturenames:
        metafunc.parametrize("member", [*PACKAGES, SHARED, BENCHMARKS], ids=lambda each: each.name)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT
