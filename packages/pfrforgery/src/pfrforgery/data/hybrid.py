"""Several sets as one: the hybrid domain, `LAYOUT:FOLDER` each (specification §6)."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pfrforgery.data.layouts import Layout, scan
from pfrforgery.data.manifest import Row, check_rows
from tenfold import UserError


def gather(roots: Sequence[str], folder: Path, train_share: float = 0.7) -> list[Row]:
    """List the crops of several sets, with paths relative to where the manifest will lie.

    Args:
        roots: `LAYOUT:FOLDER`, or `FOLDER` for one folder per client.
        folder: of the manifest to be.
        train_share: of the videos, where a set does not say.

    Raises:
        UserError: an unknown layout, a missing or empty folder, or one image in two sets.
    """
    rows: list[Row] = []
    for root in roots:
        name, colon, rest = root.partition(":")
        layout, path = (name, Path(rest)) if colon and name in get_args(Layout) else ("folders", Path(root))
        if colon and name not in get_args(Layout) and not path.exists():
            raise UserError(f"{root}: no layout {name}; use {', '.join(get_args(Layout))}")
        base = Path(os.path.relpath(path.resolve(), folder.resolve()))
        found = scan(path, layout, train_share)  # ty: ignore[invalid-argument-type]  # one of the layouts
        rows += [replace(row, path=(base / row.path).as_posix()) for row in found]
    check_rows(rows, " and ".join(roots))
    return rows
