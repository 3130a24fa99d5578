"""What is built holds what it needs, and names its neighbours by version range."""

import email
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from reproduce.uv import uv


@pytest.fixture(scope="module")
def wheels(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, zipfile.ZipFile]:
    out = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [*uv(), "build", "--all-packages", "--wheel", "--out-dir", out, "--quiet", "--offline"], cwd=root, check=True
    )
    return {path.name.split("-")[0]: zipfile.ZipFile(path) for path in out.glob("*.whl")}


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    name = next(each for each in wheel.namelist() if each.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_every_source_file_and_data_file_is_in_the_wheel(member: Any, wheels: dict[str, zipfile.ZipFile]) -> None:
    inside = set(wheels[member.name.replace("-", "_")].namelist())
    for path in member.source.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert path.relative_to(member.folder / "src").as_posix() in inside


def test_the_metadata_names_the_shared_package_by_range(package: Any, wheels: dict[str, zipfile.ZipFile]) -> None:
    about = metadata(wheels[package.name])
    needs = about.get_all("Requires-Dist") or []
    assert [each for each in needs if each.startswith("tenfold")] == ["tenfold>=0.1,<0.2"]
    assert not [each for each in needs if "@" in each or "file:" in each]
    always = {Requirement(each) for each in needs if "extra" not in each}
    assert always == {Requirement(each) for each in package.project["dependencies"]}
    assert about["License-Expression"] == "Apache-2.0"
    assert about["Requires-Python"] == ">=3.11"
    assert len(str(about.get_payload())) > 2000, "the README is the package's page"


def test_the_licence_and_the_command_are_in_the_wheel(package: Any, wheels: dict[str, zipfile.ZipFile]) -> None:
    names = wheels[package.name].namelist()
    assert any(each.endswith("licenses/LICENSE") for each in names)
    entry = next(each for each in names if each.endswith("entry_points.txt"))
    assert f"{package.name} = {package.name}.cli:main" in wheels[package.name].read(entry).decode()
    assert f"{package.name}/presets/tiny.toml" in names
