"""The workflows and `.ci/run`: what they run exists, what they promise is written, and their shell does what it says."""

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

GITHUB = Path(__file__).parents[1] / ".github"
FLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted((GITHUB / "workflows").glob("*.yml"))}
JOBS = [(flow, name, job) for flow in FLOWS for name, job in FLOWS[flow]["jobs"].items()]
PINNED = re.compile(r"^\s*-? *uses: ([\w.-]+/[\w.-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)$", re.MULTILINE)
PULL_REQUEST = "${{ github.event_name == 'pull_request' }}"
GOES_ON = {"${{ !cancelled() }}", "always()"}


def steps(*keys: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Every step that has all of the keys, with its job."""
    for flow, name, job in JOBS:
        for step in job["steps"]:
            if all(key in step for key in keys):
                yield f"{flow}/{name}", job, step


def step_of(flow: str, job: str, sought: str) -> str:
    """The shell of the step of that id or name."""
    return next(
        each["run"] for each in FLOWS[flow]["jobs"][job]["steps"] if sought in {each.get("id"), each.get("name")}
    )


def shell(script: str, cwd: Path, **variables: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a step as the runner does: `bash -e` on a file of its lines."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    return subprocess.run(
        ["bash", "-e", "-c", script], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


def stub(folder: Path, name: str, script: str) -> str:
    """Put a command before all others: the PATH to use."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/usr/bin/env bash\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def packages(root: Path) -> list[str]:
    return sorted(path.parent.name for path in root.glob("packages/*/pyproject.toml"))


def test_every_action_is_pinned_to_the_commit_of_a_release() -> None:
    releases = set()
    for path in (GITHUB / "workflows").glob("*.yml"):
        text = path.read_text()
        found = PINNED.findall(text)
        assert len(found) == len(re.findall(r"\buses:", text)), path
        releases |= set(found)
    actions = [action for action, _, _ in releases]
    assert len(actions) == len(set(actions)), f"one release of each action everywhere: {sorted(releases)}"


def test_no_checkout_leaves_its_token_behind() -> None:
    checkouts = [step for _, _, step in steps("uses") if step["uses"].startswith("actions/checkout@")]
    assert checkouts
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_a_workflow_may_read_and_only_publishing_may_do_more() -> None:
    assert all(flow["permissions"] == {"contents": "read"} for flow in FLOWS.values())
    extra = {(flow, name): job["permissions"] for flow, name, job in JOBS if "permissions" in job}
    assert extra == {
        ("release", "publish"): {"id-token": "write"},
        ("reproduce", "records"): {"contents": "write"},
        ("reproduce", "publish"): {"pages": "write", "id-token": "write"},
    }


def test_only_runs_of_pull_requests_are_cancelled() -> None:
    for name, flow in FLOWS.items():
        assert flow["concurrency"]["cancel-in-progress"] in {False, PULL_REQUEST}, name
    # Of one group GitHub keeps one waiting run and drops the others: every commit of main needs a group of its own.
    assert FLOWS["ci"]["concurrency"]["group"].endswith("github.ref || github.sha }}")


def test_workflows_start_when_they_should() -> None:
    assert set(FLOWS) == {"ci", "reproduce", "release"}
    # `on:` reads as the boolean in YAML 1.1.
    starts = {name: flow[True] for name, flow in FLOWS.items()}
    assert set(starts["ci"]) == {"push", "pull_request"}
    assert "schedule" in starts["reproduce"]
    assert set(starts["release"]) == {"push"}
    assert set(starts["release"]["push"]) == {"tags"}


def test_every_job_ends_by_itself_and_no_failure_is_hidden() -> None:
    for flow, name, job in JOBS:
        assert job["timeout-minutes"] <= 350, f"{flow}/{name}"
        assert "continue-on-error" not in str(job), f"{flow}/{name}"


def test_what_is_referred_to_exists() -> None:
    for flow, name, job in JOBS:
        needs = [job["needs"]] if isinstance(job.get("needs"), str) else job.get("needs", [])
        jobs = FLOWS[flow]["jobs"]
        assert set(needs) <= set(jobs), f"{flow}/{name}"
        text = json.dumps(job)
        for other, output in re.findall(r"needs\.(\w+)\.outputs\.(\w+)", text):
            assert other in needs, f"{flow}/{name}"
            assert output in jobs[other]["outputs"], f"{flow}/{name}"
        scripts = {step["id"]: step["run"] for step in job["steps"] if "id" in step}
        for step, output in re.findall(r"steps\.(\w+)\.outputs\.(\w+)", text):
            assert f'"{output}=' in scripts[step], f"{flow}/{name}"
        for key in re.findall(r"matrix\.(\w+)", text):
            assert key in job["strategy"]["matrix"], f"{flow}/{name}"


def test_the_shell_is_shell_and_takes_nothing_but_variables(tmp_path: Path) -> None:
    for where, _, step in steps("run"):
        # A `${{ }}` inside of a script is pasted before the shell reads it: a tag's name could be code.
        assert "${{" not in step["run"], where
        checked = shell(f"bash -n <<'SCRIPT'\n{step['run']}\nSCRIPT", tmp_path)
        assert checked.returncode == 0, f"{where}: {checked.stderr}"


def uv_runs(script: str) -> Iterator[list[str]]:
    """The command lines that a script gives to `uv run`, without uv's own options."""
    for line in script.splitlines():
        for found in re.findall(r"\buv run ((?:\"[^\"]*\"|[^\"|;&()])+)", line):
            words = [word for word in shlex.split(found) if word not in {"--locked", "--no-sync"}]
            while words[0] == "--with":
                words = words[2:]
            yield words


def test_what_is_run_exists(root: Path) -> None:
    from reproduce.cli import app

    folders = {"$PACKAGE": packages(root), "$FOLDER": ["shared", *(f"packages/{name}" for name in packages(root))]}
    seen = set()
    for where, _, step in steps("run"):
        for command, *words in uv_runs(step["run"]):
            seen.add(command)
            assert command == "coverage" or shutil.which(command, path=str(Path(sys.executable).parent)), where
            if command == "reproduce" and words:
                assert words[0] in app, where
            if command == "pytest":
                named = [word for word, before in zip(words, [command, *words], strict=False) if before != "-k"]
                for word in named:
                    if word.startswith(("-", "${sources")):
                        continue
                    variable = next((each for each in folders if each in word), "")
                    for value in folders.get(variable, [""]):
                        assert (root / word.replace(variable, value)).exists(), f"{where}: {word}"
    assert seen == {"pytest", "ruff", "ty", "reproduce", "coverage"}


def test_the_matrix_is_the_packages(root: Path, tmp_path: Path) -> None:
    done = shell(step_of("ci", "packages", "list"), root, GITHUB_OUTPUT=tmp_path / "output")
    assert done.returncode == 0, done.stderr
    name, _, value = (tmp_path / "output").read_text().strip().partition("=")
    assert name == "names"
    assert json.loads(value) == packages(root)
    assert step_of("reproduce", "packages", "list") == step_of("ci", "packages", "list")
    for flow, job in (("ci", "test"), ("ci", "lowest"), ("ci", "pip"), ("reproduce", "reproduce")):
        matrix = FLOWS[flow]["jobs"][job]["strategy"]["matrix"]
        assert matrix["package"] == "${{ fromJSON(needs.packages.outputs.names) }}"


def test_the_pythons_begin_where_the_packages_do(package: Any) -> None:
    versions = [
        tuple(map(int, each.split("."))) for each in FLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    ]
    assert package.project["requires-python"] == f">={versions[0][0]}.{versions[0][1]}"
    assert all(later == (3, earlier[1] + 1) for earlier, later in itertools.pairwise(versions))


def test_coverage_is_asked_for_and_shown_of_every_package(root: Path, tmp_path: Path) -> None:
    path = stub(tmp_path / "bin", "uv", 'echo "$*" >> "$CALLS"; echo 87')
    files = {"CALLS": tmp_path / "calls", "GITHUB_STEP_SUMMARY": tmp_path / "summary"}
    for step in ("Tests, with the lines that they reach", "A row for each package"):
        done = shell(step_of("ci", "coverage", step), root, PATH=path, **files)
        assert done.returncode == 0, done.stderr
    tested = files["CALLS"].read_text().splitlines()[0].split()
    assert {f"--cov={name}" for name in [*packages(root), "tenfold", "reproduce"]} <= set(tested)
    shown = files["GITHUB_STEP_SUMMARY"].read_text()
    for name in ["shared", "benchmarks", *(f"packages/{each}" for each in packages(root))]:
        assert f"| {name}/src | 87 |" in shown


def test_a_demo_without_pictures_is_noticed(tmp_path: Path) -> None:
    script = step_of("ci", "pip", "The demo wrote pictures")
    (tmp_path / "demo").mkdir()
    assert shell(script, tmp_path).returncode != 0
    (tmp_path / "demo/page.html").touch()
    assert shell(script, tmp_path).returncode == 0


def test_a_regression_stops_nothing_and_the_night_ends_red() -> None:
    for flow, job in (("reproduce", "reproduce"), ("ci", "workspace")):
        steps_of_job = FLOWS[flow]["jobs"][job]["steps"]
        first = next(number for number, step in enumerate(steps_of_job) if "uv run" in step.get("run", ""))
        after = steps_of_job[first + 1 :]
        assert after
        assert all(step.get("if") in GOES_ON for step in after), flow


def test_records_of_each_night_are_added_to_their_branch(tmp_path: Path) -> None:
    script = step_of("reproduce", "records", "Put this night's records on the branch `records`")
    origin = tmp_path / "origin.git"
    subprocess.run(["git", "init", "--quiet", "--bare", str(origin)], check=True)
    for night in ("2026-01-01", "2026-01-02"):
        runner = tmp_path / night
        for package in ("fairfd", "tadsr"):
            for tier in ("smoke", "small"):
                folder = runner / "artifacts" / f"results-{package}" / "records" / tier
                folder.mkdir(parents=True)
                (folder / f"{package}.json").write_text(night)
        path = stub(tmp_path / "bin", "date", f"echo {night}")
        done = shell(script, runner, PATH=path, REMOTE=origin)
        assert done.returncode == 0, done.stderr
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "records"], cwd=origin, check=True, capture_output=True, text=True
    )
    assert listed.stdout.split() == [
        f"{night}/{tier}/{package}.json"
        for night in ("2026-01-01", "2026-01-02")
        for tier in ("small", "smoke")
        for package in ("fairfd", "tadsr")
    ]
    broken = tmp_path / "broken"
    broken.mkdir()
    assert shell(script, broken, PATH=path, REMOTE=tmp_path / "nowhere.git").returncode != 0


@pytest.mark.parametrize(
    ("tag", "named", "folder"),
    [
        ("fairfd-v{version}", "fairfd", "packages/fairfd"),
        ("tenfold-v{version}", "tenfold", "shared"),
        ("fairfd-v99.0.0", None, None),
        ("tenfold-benchmarks-v{version}", None, None),
        ("nobody-v{version}", None, None),
        ("../shared-v{version}", None, None),
        ("$(touch x)-v{version}", None, None),
    ],
)
def test_a_tag_publishes_the_package_and_version_that_it_names(
    tag: str, named: str | None, folder: str | None, root: Path, tmp_path: Path
) -> None:
    # What uv would say: the version in the pyproject.toml of `--project`.
    path = stub(tmp_path / "bin", "uv", 'sed -n \'s/^version = "\\(.*\\)"$/\\1/p\' "$4/pyproject.toml"')
    version = re.search(r'^version = "(.*)"$', (root / "packages/fairfd/pyproject.toml").read_text(), re.MULTILINE)
    assert version
    output = tmp_path / "output"
    tag = tag.format(version=version[1])
    done = shell(step_of("release", "build", "tag"), root, PATH=path, TAG=tag, GITHUB_OUTPUT=output)
    if named is None:
        assert done.returncode != 0
        assert not output.exists()
        assert "::error::" in done.stdout
    else:
        assert done.returncode == 0, done.stderr
        assert output.read_text().split() == [f"package={named}", f"folder={folder}"]


def test_a_tag_off_main_is_not_published(tmp_path: Path) -> None:
    script = step_of("release", "build", "reviewed")
    author = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]

    def git(where: Path, *words: str) -> None:
        subprocess.run(["git", *author, *words], cwd=where, check=True, capture_output=True)

    origin, clone = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git(origin, "init", "--quiet", "--initial-branch=main")
    for words in (
        ("commit", "--allow-empty", "-m", "first"),
        ("tag", "on-main"),
        ("commit", "--allow-empty", "-m", "second"),
        ("checkout", "-b", "aside"),
        ("commit", "--allow-empty", "-m", "not reviewed"),
        ("tag", "off-main"),
        ("checkout", "main"),
    ):
        git(origin, *words)
    git(tmp_path, "clone", "--quiet", str(origin), str(clone))
    for tag, expected in (("on-main", 0), ("off-main", 1)):
        git(clone, "checkout", "--quiet", tag)
        done = shell(script, clone)
        assert done.returncode == expected, done.stderr
        assert ("::error::" in done.stdout) == bool(expected)
    checkout = FLOWS["release"]["jobs"]["build"]["steps"][0]
    assert checkout["with"]["fetch-depth"] == 0, "without the history nothing can be said of main"


def test_a_release_is_checked_and_tested_before_it_is_built() -> None:
    job = FLOWS["release"]["jobs"]["build"]
    lines = [step.get("id") or step.get("run", "") for step in job["steps"]]
    order = [
        next(number for number, line in enumerate(lines) if line.startswith(begin))
        for begin in ("reviewed", "tag", "uv run --locked pytest", "uv build --package")
    ]
    assert order == sorted(order)
    assert not [step for step in job["steps"] if "if" in step]
    assert FLOWS["release"]["jobs"]["publish"]["needs"] == "build"


def test_dependabot_looks_after_the_actions_and_the_lock() -> None:
    updates = yaml.safe_load((GITHUB / "dependabot.yml").read_text())["updates"]
    assert {each["package-ecosystem"]: each["schedule"]["interval"] for each in updates} == {
        "github-actions": "weekly",
        "uv": "weekly",
    }


@pytest.mark.parametrize("installed", [True, False], ids=["uv on the path", "uv as a module only"])
def test_what_must_be_green_is_run_to_its_end(installed: bool, root: Path, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    note = f'echo "${{ONEDNN_MAX_CPU_ISA:-}} $*" >> {shlex.quote(str(calls))}'
    name, script = ("uv", note) if installed else ("python3", f'if [ "$1 $2" = "-m uv" ]; then shift 2; {note}; fi')
    stub(tmp_path / "bin", name, script)
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    if not installed and shutil.which("uv", path=path):
        pytest.skip("uv is installed with the system")
    done = shell(str(root / ".ci/run"), tmp_path, PATH=path, ONEDNN_MAX_CPU_ISA="")
    assert done.returncode == 0, done.stderr
    *before, last = calls.read_text().splitlines()
    assert [each.strip() for each in before] == [
        "sync --locked",
        "run --locked ruff check",
        "run --locked ruff format --check",
        "run --locked ty check",
        "run reproduce",
        "run pytest",
    ]
    setting, *words = last.split()
    assert (setting, words[:3]) == ("AVX2", ["run", "--locked", "pytest"])
    assert [Path(each).parts[1] for each in words[3:]] == packages(root)
    assert all((root / each).is_file() for each in words[3:])
