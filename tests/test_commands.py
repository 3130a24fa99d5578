"""What every command line answers, in the same way."""

import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(package: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """The package's command in this process: its exit code, standard output and error."""
    monkeypatch.setenv("COLUMNS", "120")
    # The command line shows warnings in its own way, for the rest of its process.
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)

    def answer(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [package.name, *arguments])
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(f"{package.name}.cli").main()
        return int(stopped.value.code or 0), *capsys.readouterr()

    return answer


def test_help_names_the_paper_and_the_verbs(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    for word in ("Paper:", "demo", "info", "--version", "--debug"):
        assert word in out


def test_version_is_the_distributions(package: Any, call: Call) -> None:
    _, out, _ = call("--version")
    assert out.strip() == importlib.metadata.version(package.name) == package.project["version"]


def test_an_unknown_verb_is_one_line(call: Call) -> None:
    code, out, err = call("frobnicate")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert out == ""
