"""Published protocols, run by the packages' own commands on public data: the tiers that need a GPU and hours.

A protocol trains each of its arms by command lines that a reader can copy. `--steps` runs the same commands on stand-ins, made on the spot in the
layout of the public set, for so many training steps: a test of the path, of which nothing is judged.
"""

import json
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from reproduce.claims import Measurement, Protocol, Task
from tenfold import UserError
from tenfold.files import write_text
from tenfold.reading import read_json_object


def run_protocol(protocol: Protocol, task: Task, place: Path, say: Callable[[str], None]) -> Measurement:
    """Run every arm of a protocol; what an interrupted run had finished is kept.

    Args:
        protocol: which.
        task: on which data, for how long.
        place: a folder; each arm gets a folder in it.
        say: told of every command before it runs.

    Raises:
        UserError: a command failed; its last line says why.
    """
    measured = {}
    for number, arm in enumerate(protocol.arms):
        folder = place / f"arm-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        for command in protocol.commands(task, arm):
            run_command([str(word) for word in command], folder, say)
        measured[arm] = protocol.scores(folder)
    return measured


def run_command(words: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    """Run a command of a package in a folder, in the environment of this interpreter; what it has finished is not run again.

    Args:
        words: the command and its arguments; a command that makes a run folder takes `--resume`.
        folder: where it runs; what it prints goes to `commands.log` there.
        say: told of the command line.

    Raises:
        UserError: it failed.
    """
    line = shlex.join(words)
    done = folder / "finished.json"
    finished = read_json_object(done)["commands"] if done.exists() else []
    if line in finished:
        return
    run = folder / words[words.index("--out") + 1] if "--out" in words else None
    resume = ["--resume"] if run is not None and (run / "config.toml").exists() else []
    say(line)
    with (folder / "commands.log").open("a", encoding="utf-8") as log:
        log.write(f"$ {line}\n")
        log.flush()
        ended = subprocess.run(
            [str(Path(sys.executable).parent / words[0]), *words[1:], *resume],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            check=False,
        )
    if ended.returncode:
        last = (folder / "commands.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1]
        raise UserError(
            f"`{textwrap.shorten(line, 160)}` in {folder} ended with {ended.returncode}: {textwrap.shorten(last, 300)}"
        )
    write_text(done, json.dumps({"commands": [*finished, line]}, indent=1))
