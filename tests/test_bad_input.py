"""Bad input for every verb of every package, found through the command lines themselves: one line, exit code 2, nothing left behind.

What is spoilt is the first example of each verb's help. What cannot be an answer to any question (NaN, numbers beyond 64 bits, unknown
options, presets, devices and configurations) must be refused before the verb looks at its input; files and folders that are not what the
verb asks for must be refused before it writes anything.
"""

import importlib
import itertools
import os
import pickle
import shlex
import signal
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
from cyclopts import App

from tenfold.testing import Answer, run_command

CONFIGS = {
    "unknown.toml": b"no_such_key = 1\n",
    "table.toml": b"[no-such-verb]\nseed = 1\n",
    "syntax.toml": b"a = = 1\n",
    "deep.toml": b"x = " + b"[" * 20000,
    "big.toml": b"key = 1\n" * 200_000,
    "binary.toml": bytes(range(128, 256)) * 8,
}
NUMBERS = ("inf", "1e400", "99999999999999999999999")
# What a verb's first word is called when it names no input.
NO_INPUT = {"--out", "--repository", "--data"}
# The one verb whose first word is called as elsewhere an input is, and is where it writes.
WRITES_ITS_ROOT = {"bench make"}
SECONDS = 20  # of one case; what is refused takes well below one, a training that was started by mistake takes more


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def verbs(app: App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], App]]:
    for name in app:
        if not name.startswith("-"):
            here = (*path, name)
            if any(not each.startswith("-") for each in app[name]):
                yield from verbs(app[name], here)
            else:
                yield here, app[name]


def example(verb: App, path: tuple[str, ...]) -> list[str]:
    """The arguments of the first example of the verb itself in its help, without the program."""
    lines = [line.strip() for line in (verb.help_epilogue or "").splitlines()]
    commands = [shlex.split(line.removeprefix("$ "))[1:] for line in lines if line.startswith("$ ")]
    return next((words for words in commands if words[: len(path)] == list(path)), list(path))


def numeric_options(verb: App) -> Iterator[str]:
    """The long options of a verb that take one number and nothing else."""
    for argument in verb.assemble_argument_collection():
        kinds = set(get_args(argument.hint)) or {argument.hint}  # of `int | None` both
        if kinds - {NoneType} and kinds <= {int, float, NoneType}:
            yield from (name for name in argument.names if name.startswith("--"))


def without(arguments: list[str], option: str) -> list[str]:
    """The arguments without an option and its value: a later value would not replace it."""
    if option not in arguments:
        return arguments
    at = arguments.index(option)
    return [*arguments[:at], *arguments[at + 2 :]]


def impossible(verb: App, good: list[str], bad: Path) -> Iterator[list[str]]:
    """The example, each time with one thing that no verb accepts."""
    yield [*good, "--no-such-option", "1"]
    numeric = list(numeric_options(verb))
    for name in numeric:
        yield [*without(good, name), name, "nan"]
    for number in NUMBERS if numeric else ():
        yield [*without(good, numeric[0]), numeric[0], number]
    known = {name for argument in verb.assemble_argument_collection() for name in argument.names}
    if "--preset" in known:
        for name in ("nosuch", "../../../etc/passwd", ""):
            yield [*without(good, "--preset"), "--preset", name]
    if "--config" in known:
        for name in (*CONFIGS, "none.toml", "folder"):
            yield [*without(good, "--config"), "--config", str(bad / name)]


def wrong_files(verb: App, path: tuple[str, ...], good: list[str], bad: Path) -> Iterator[list[str]]:
    """The example with its first input replaced by what it cannot be."""
    words = good[len(path) :]
    first = next(iter(verb.assemble_argument_collection()), None)
    if first is None or first.index != 0 or first.names[0] in NO_INPUT or " ".join(path) in WRITES_ITS_ROOT:
        return
    # Values of options follow them: only a word in the first place is surely an input.
    if words and not words[0].startswith("-"):
        for name in ("none", "text.png", "empty.png", "evil.pth", "deep.json", "binary.csv", "loop", "new\nline"):
            yield [*path, str(bad / name), *words[1:]]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad")
    for name, content in CONFIGS.items():
        (root / name).write_bytes(content)
    (root / "folder").mkdir()
    (root / "text.png").write_text("no picture")
    (root / "empty.png").write_bytes(b"")
    (root / "evil.pth").write_bytes(pickle.dumps(Payload()))
    (root / "deep.json").write_text("[" * 100_000)
    (root / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (root / "loop").symlink_to("loop")
    return root


def fault_of(answer: Answer, name: str, folder: Path) -> str:
    """What is wrong with an answer to bad input; empty when nothing is."""
    lines = [line for line in answer.err.splitlines() if "warning:" not in line]
    if answer.code != 2:
        return f"exit code {answer.code}"
    if len(lines) != 1 or not lines[0].startswith(f"{name}: "):
        return f"not one line: {answer.err[-300:]!r}"
    left = [path.name for path in folder.rglob("*")]
    return f"left behind {left}" if left else ""


def answer_or_fault(app: App, name: str, arguments: list[str], folder: Path) -> str:
    """Run one case; a traceback and a case that does not end are faults too."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"not refused within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        return fault_of(run_command(app, arguments, folder), name, folder)
    except Exception as error:  # noqa: BLE001  # a traceback is what is looked for
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(name: str, least: int, bad: Path, place: Path) -> None:
    """Run every case of a command line; at least so many must have been tried."""
    app = importlib.import_module(f"{name}.cli").app
    faults, tried = [], 0
    for path, verb in verbs(app):
        good = example(verb, path)
        for arguments in itertools.chain(impossible(verb, good, bad), wrong_files(verb, path, good, bad)):
            folder = place / str(tried)
            folder.mkdir()
            tried += 1
            if fault := answer_or_fault(app, name, arguments, folder):
                faults.append(f"{shlex.join(arguments)[:200]}: {fault}"[:400])
    assert tried >= least
    assert not faults, f"{len(faults)} of {tried}:\n" + "\n".join(faults[:40])


def test_bad_input_is_refused_in_one_line(package: Any, bad: Path, tmp_path: Path) -> None:
    check(package.name, 20, bad, tmp_path)


def test_reproduce_refuses_bad_input_in_one_line(bad: Path, tmp_path: Path) -> None:
    check("reproduce", 6, bad, tmp_path)
