"""Audits as one HTML page for an auditor and one JSON file for a machine."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from fairfd.evaluation.audit.limits import Limit, check_limits
from fairfd.evaluation.audit.record import FORMAT_VERSION, Audit, decode_audit, parse_audit_json, strict_json
from fairfd.evaluation.report.page import make_page
from tenfold.errors import UserError
from tenfold.files import write_text
from tenfold.reading import read_text


class Report:
    """One or more audits, and the limits they are held against.

    Example:
        >>> Report(audit(scores)).to_html("report.html")  # doctest: +SKIP

    Attributes:
        audits: one per detector.
        limits: shown as met or not met on the page.
    """

    def __init__(self, *audits: Audit, limits: Iterable[Limit] = ()) -> None:
        """Collect audits.

        Raises:
            UserError: no audit, or two of one name.
        """
        if not audits:
            raise UserError("a report needs at least one audit")
        names = [audit.detector for audit in audits]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"two audits are named {twice[0]}: give each detector its own name")
        self.audits = audits
        self.limits = tuple(limits)

    @classmethod
    def read(cls, *paths: str | Path, limits: Iterable[Limit] = ()) -> "Report":
        """Collect the audits of one or more files written by `to_json` or holding a single audit.

        Raises:
            UserError: a file is missing or not an audit file (named).
        """
        return cls(*(audit for path in paths for audit in read_audits(Path(path))), limits=limits)

    def html(self) -> str:
        """The page: one self-contained document without script or any reference to something outside it."""
        environment = Environment(
            loader=PackageLoader("fairfd"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        page = make_page(self.audits, self.limits, check_limits(self.audits, self.limits))
        return environment.get_template("report.html.j2").render(page=page)

    def to_html(self, path: str | Path) -> None:
        """Write the page, whole or not at all."""
        write_text(path, self.html())

    def json(self) -> str:
        """Strict JSON: the format version, then the audits. Reads back equal."""
        return strict_json({"version": FORMAT_VERSION, "audits": [asdict(audit) for audit in self.audits]})

    def to_json(self, path: str | Path) -> None:
        """Write the JSON, whole or not at all."""
        write_text(path, self.json())


def read_audits(path: Path) -> Sequence[Audit]:
    """The audits in a file: a report's, or a single one.

    Raises:
        UserError: the file is missing or not an audit file (named).
    """
    try:
        parsed = parse_audit_json(read_text(path))
        if isinstance(parsed, dict) and isinstance(parsed.get("audits"), list):
            return [decode_audit(one) for one in parsed["audits"]]
        return [decode_audit(parsed)]
    except UserError as error:
        raise UserError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error
