"""What every command line answers, in the same way."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def run(package: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", package, *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_help_names_the_paper_and_the_verbs(package: Any, tmp_path: Path) -> None:
    result = run(package.name, "--help", cwd=tmp_path)
    assert result.returncode == 0
    for word in ("Paper:", "demo", "info", "--version", "--debug"):
        assert word in result.stdout


def test_version_is_the_distributions(package: Any, tmp_path: Path) -> None:
    result = run(package.name, "--version", cwd=tmp_path)
    assert result.stdout.strip() == importlib.metadata.version(package.name) == package.project["version"]


def test_info_cites_the_paper(package: Any, tmp_path: Path) -> None:
    result = run(package.name, "info", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "@inproceedings{" in result.stdout
    assert "device" in result.stdout


def test_the_demo_writes_pictures_without_a_network(package: Any, tmp_path: Path) -> None:
    result = run(package.name, "demo", "--out", str(tmp_path / "demo"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()
    assert [path for path in (tmp_path / "demo").rglob("*") if path.suffix in {".png", ".html"}]


def test_an_unknown_verb_is_one_line(package: Any, tmp_path: Path) -> None:
    result = run(package.name, "frobnicate", cwd=tmp_path)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
