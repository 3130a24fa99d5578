"""Each package runs in an environment that holds only what it declares."""

import subprocess
from pathlib import Path
from typing import Any

from reproduce.uv import uv

IMPORT_EVERYTHING = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for each in pkgutil.walk_packages(package.__path__, sys.argv[1] + "."):
    if not each.name.endswith("__main__"):
        importlib.import_module(each.name)
for name in package.__all__:
    getattr(package, name)
"""


def test_a_package_alone_answers_and_imports_all_of_itself(package: Any, root: Path) -> None:
    alone = [*uv(), "run", "--isolated", "--frozen", "--offline", "--quiet", "--package", package.name, "--no-dev"]
    helped = subprocess.run([*alone, package.name, "--help"], cwd=root, capture_output=True, text=True, check=False)
    assert helped.returncode == 0, helped.stderr
    assert "Usage:" in helped.stdout
    imported = subprocess.run(
        [*alone, "python", "-c", IMPORT_EVERYTHING, package.name], cwd=root, capture_output=True, text=True, check=False
    )
    assert imported.returncode == 0, imported.stderr
