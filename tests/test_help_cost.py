"""Help comes at once: no command line loads torch and its like before a verb needs them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HEAVY = {
    "torch",
    "torchvision",
    "timm",
    "diffusers",
    "transformers",
    "sklearn",
    "scipy",
    "flwr",
    "pandas",
    "matplotlib",
}

SHOW_ALL_HELP = """
import contextlib, importlib, io, json, sys

name, *heavy = sys.argv[1:]
command = importlib.import_module(name + ".cli")

def pages(app, path):
    yield path
    for each in app:
        if not each.startswith("-"):
            yield from pages(app[each], [*path, each])

answers = {}
for path in list(pages(command.app, [])):
    sys.argv = [name, *path, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as text:
        try:
            command.main()
        except SystemExit as leaving:
            code = leaving.code or 0
    loaded = sorted(set(heavy) & set(sys.modules))
    answers[" ".join(sys.argv)] = {"code": code, "text": text.getvalue(), "loaded": loaded}
print(json.dumps(answers))
"""


def helped(name: str, folder: Path) -> dict[str, Any]:
    """What each page of help of a command says, and what had been loaded by then."""
    command = [sys.executable, "-c", SHOW_ALL_HELP, name, *sorted(HEAVY)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def check(name: str, folder: Path) -> None:
    answers = helped(name, folder)
    assert len(answers) > 4, "the verbs were found"
    for command, answer in answers.items():
        assert answer["code"] == 0, command
        assert f"Usage: {command.removesuffix(' --help')}" in answer["text"]
        assert answer["loaded"] == [], command


def test_no_page_of_help_loads_torch(package: Any, tmp_path: Path) -> None:
    check(package.name, tmp_path)


def test_the_claims_command_answers_as_quickly(tmp_path: Path) -> None:
    check("reproduce", tmp_path)
