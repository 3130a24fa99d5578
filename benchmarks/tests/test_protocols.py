"""Published protocols: their commands run in order, are taken up where they stopped, and say what they need."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from reproduce import cli, registry
from reproduce.claims import Command, Protocol, Suite, Task, claim, higher
from reproduce.protocols import run_command
from reproduce.registry import suites
from tenfold import UserError
from tenfold.reading import read_json_object

TRAIN = """
import json, pathlib, sys
data, arm, seed = sys.argv[1:4]
pathlib.Path("ran.txt").open("a").write(arm + "\\n")
if pathlib.Path(data, "broken").exists():
    sys.exit("the disk is full")
pictures = len(list(pathlib.Path(data).glob("*.txt")))
json.dump({"score": pictures + (arm == "ours")}, open("scores.json", "w"))
"""


def commands(task: Task, arm: str) -> list[Command]:
    return [["python", "-c", TRAIN, task.data, arm, task.seed]]


def scores(folder: Path) -> Mapping[str, float]:
    return read_json_object(folder / "scores.json")


def stand_in(root: Path, steps: int) -> None:
    root.mkdir(parents=True)
    for number in range(steps):
        (root / f"{number}.txt").touch()


PROTOCOL = Protocol(
    "public set",
    "A protocol.",
    "a set that everybody has",
    "an hour",
    {"medium": 1},
    {"ours": "ours", "rival": "the rival"},
    {"score": "score"},
    commands,
    scores,
    stand_in,
)
CLAIM = claim(
    "fairfd/wins", "Ours wins.", higher("score", "ours", than="rival"), experiment="public set", source="Table 1"
)


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> Suite:
    made = Suite("fairfd", "An idea.", (PROTOCOL,), (CLAIM,))
    monkeypatch.setattr(registry, "suites", lambda *_: [made])
    return made


def reproduce(*tokens: str) -> object:
    return cli.app(["run", "--tier", "medium", *tokens])


@pytest.mark.usefixtures("suite")
def test_a_few_steps_on_stand_ins_run_every_arm_and_judge_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("--steps", "3", "--out", str(tmp_path)) == 0
    printed = capsys.readouterr()
    assert "fairfd/public set: the path works (ours, rival)" in printed.out
    assert not (tmp_path / "medium.json").exists()
    place = tmp_path / "runs" / "medium-3-steps" / "fairfd" / "public set" / "seed-0"
    assert read_json_object(place / "result.json")["measurement"] == {"ours": {"score": 4.0}, "rival": {"score": 3.0}}
    assert "python -c" in printed.err


@pytest.mark.usefixtures("suite")
def test_without_data_the_protocol_says_what_it_needs(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"fairfd/public set needs --data FOLDER with fairfd/: a set that everybody has"
    ):
        reproduce("--out", str(tmp_path))


@pytest.mark.usefixtures("suite")
def test_what_had_finished_before_a_failure_is_not_run_again(tmp_path: Path) -> None:
    data = tmp_path / "data" / "fairfd"
    stand_in(data, 2)
    options = ("--data", str(tmp_path / "data"), "--out", str(tmp_path / "out"))
    place = tmp_path / "out" / "runs" / "medium" / "fairfd" / "public set" / "seed-0"
    assert reproduce(*options) == 0
    (place / "result.json").unlink()
    (place / "arm-1" / "finished.json").unlink()
    (data / "broken").touch()
    with pytest.raises(UserError, match=r"in .*arm-1 ended with 1: the disk is full"):
        reproduce(*options)
    (data / "broken").unlink()
    assert reproduce(*options) == 0
    assert (place / "arm-0" / "ran.txt").read_text() == "ours\n"
    assert (place / "arm-1" / "ran.txt").read_text() == "rival\n" * 3
    report = read_json_object(tmp_path / "out" / "medium.json")
    assert [each["verdict"] for each in report["outcomes"]] == ["too few seeds"]


def test_a_run_folder_that_is_there_is_resumed(tmp_path: Path) -> None:
    echo = ["python", "-c", "import sys; open('words.txt', 'w').write(' '.join(sys.argv[1:]))", "--out", "run"]
    run_command(echo, tmp_path, lambda _: None)
    assert (tmp_path / "words.txt").read_text() == "--out run"
    (tmp_path / "finished.json").unlink()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").touch()
    run_command(echo, tmp_path, lambda _: None)
    assert (tmp_path / "words.txt").read_text() == "--out run --resume"


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        (["--tier", "smoke", "--steps", "2"], "--data and --steps are for"),
        (["--tier", "small", "--data", "."], "--data and --steps are for"),
        (["--tier", "medium", "--steps", "2", "--record"], "leave out --seeds and --steps"),
    ],
)
def test_options_that_do_not_fit_are_refused(tokens: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=says):
        cli.app(["run", *tokens, "--out", str(tmp_path)])


@pytest.mark.parametrize("suite", suites(), ids=lambda suite: suite.package)
def test_every_package_has_a_published_protocol_with_claims(suite: Suite, tmp_path: Path) -> None:
    (protocol,) = [each for each in suite.experiments if isinstance(each, Protocol)]
    assert protocol.seeds.keys() >= {"medium", "paper"}
    assert [each for each in suite.claims if each.experiment == protocol.name]
    protocol.stand_in(tmp_path / "data", 1)
    for tier in ("medium", "paper"):
        for steps in (1, None):
            for arm in protocol.arms:
                for command in protocol.commands(Task(tmp_path / "data", tier, 0, steps), arm):
                    assert command[0] == suite.package
