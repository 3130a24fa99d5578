"""Documents say what is true."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml


def commands(text: str) -> list[str]:
    """The commands of the console blocks of a document."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_the_two_commands_of_the_readme_are_what_ci_runs(root: Path) -> None:
    readme, script = (root / "README.md").read_text(), (root / ".ci/run").read_text()
    assert "pip install uv && uv run reproduce" in commands(readme)
    assert "uv run pytest" in commands(readme)
    for command in ("uv run reproduce", "uv run pytest", "ruff check", "ruff format --check", "ty check"):
        assert command in script


def test_the_table_of_the_readme_lists_every_package_and_no_other(root: Path) -> None:
    linked = set(re.findall(r"\]\(packages/(\w+)/?(?:README\.md)?\)", (root / "README.md").read_text()))
    assert linked == {path.parent.name for path in root.glob("packages/*/pyproject.toml")}


def test_every_package_readme_has_its_parts(package: Any) -> None:
    text = (package.folder / "README.md").read_text()
    for heading in ("Quickstart", "Command line", "Python", "Results", "Limits", "Citation"):
        assert re.search(rf"^#+ .*{heading}", text, re.MULTILINE), heading
    assert f"{package.name} demo" in text
    assert package.project["version"] in (package.folder / "CHANGELOG.md").read_text()


def test_links_between_documents_lead_somewhere(root: Path) -> None:
    for document in [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *root.glob("packages/*/README.md"),
        root / "shared/README.md",
    ]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"


def test_the_citation_names_the_paper_of_every_package(root: Path) -> None:
    cited = yaml.safe_load((root / "CITATION.cff").read_text())
    papers = {each["notes"].removeprefix("package "): each for each in cited["references"]}
    assert set(papers) == {path.parent.name for path in root.glob("packages/*/pyproject.toml")}
    for name, paper in papers.items():
        entry = (root / "packages" / name / "README.md").read_text().split("## Citation")[1]
        plain = re.sub(r"[{}]", "", entry)
        assert paper["title"] in plain, name
        assert str(paper["year"]) in plain, name
        assert " and ".join(f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]) in plain, (
            name
        )


def test_what_runs_before_a_commit_is_what_ci_runs(root: Path) -> None:
    (local,) = yaml.safe_load((root / ".pre-commit-config.yaml").read_text())["repos"]
    entries = [shlex.split(each["entry"]) for each in local["hooks"]]
    assert all(words[:3] == ["uv", "run", "--locked"] for words in entries)
    script = (root / ".ci/run").read_text()
    for words in entries:
        if words[3] != "reproduce":  # its tables are compared by a test
            assert " ".join(words[:5]) in script


def test_forms_of_issues_are_forms(root: Path) -> None:
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in root.glob(".github/ISSUE_TEMPLATE/*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": True}
    for form in forms.values():
        assert {"name", "description", "body"} <= set(form)
        assert any(each.get("validations", {}).get("required") for each in form["body"])
        assert len({each["id"] for each in form["body"]}) == len(form["body"])
