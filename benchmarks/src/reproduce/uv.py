"""Finding uv, which `uv run` names in the environment."""

import os
import shutil
import sys


def uv() -> list[str]:
    """The command that starts uv: the one that started this process, the one on the path, or the installed module."""
    found = os.environ.get("UV") or shutil.which("uv")
    return [found] if found else [sys.executable, "-m", "uv"]
