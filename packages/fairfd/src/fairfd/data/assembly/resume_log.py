"""The journal of a build: what has been made, so that an interrupted build goes on where it stopped.

One JSON object a line, appended as results arrive. An entry counts only if its recipe (a digest of everything that
determines the result) is the one asked for and the file on disk still has the recorded SHA-256.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from fairfd.data.manifest.manifest import file_sha256
from tenfold.files import write_errors, write_text
from tenfold.reading import read_text

JOURNAL_LIMIT = 2**34
"""Bytes: a line of half a kilobyte for each of thirty million images."""


def recipe_of(*facts: Any) -> str:
    """Digest of JSON-able facts."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


class Journal:
    """Entries by key; used as a context manager, which opens the file for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, dict[str, Any]] = {}
        if path.is_file():
            for line in read_text(path, JOURNAL_LIMIT).split("\n"):
                # The last line may be cut short by a crash.
                with contextlib.suppress(ValueError, RecursionError):
                    entry = json.loads(line)
                    if isinstance(entry, dict) and isinstance(entry.get("key"), str):
                        self.entries[entry["key"]] = entry

    def __enter__(self) -> "Journal":
        with write_errors(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with write_errors(self.path):
            self._file.close()

    def find(self, key: str, recipe: str, file: Path) -> dict[str, Any] | None:
        """The result recorded under `key`, if it is the one that the recipe would give and its file is intact."""
        entry = self.entries.get(key)
        if entry is None or entry.get("recipe") != recipe:
            return None
        result = entry.get("result")
        if not isinstance(result, dict):
            return None
        if result.get("skipped"):
            return result
        intact = file.is_file() and file_sha256(file) == result.get("sha256")
        return result if intact else None

    def add(self, key: str, recipe: str, result: Mapping[str, Any]) -> None:
        """Record a result at once."""
        self.entries[key] = {"key": key, "recipe": recipe, "result": dict(result)}
        with write_errors(self.path):
            self._file.write(json.dumps(self.entries[key], ensure_ascii=False) + "\n")
            self._file.flush()

    def tidy(self) -> None:
        """Rewrite the file with one line per key, sorted: the same for any order of arrival."""
        lines = (json.dumps(self.entries[key], ensure_ascii=False) + "\n" for key in sorted(self.entries))
        write_text(self.path, "".join(lines))
