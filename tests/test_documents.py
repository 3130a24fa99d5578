"""Documents say what is true."""

import re
from pathlib import Path
from typing import Any


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
