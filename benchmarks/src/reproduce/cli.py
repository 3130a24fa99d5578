"""`reproduce`: check the claims of the ten packages."""

import importlib.metadata
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, Parameter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tenfold import UserError
from tenfold import cli as conventions
from tenfold.cli import EXIT_LIMIT_BROKEN, verb
from tenfold.files import check_writable, write_text
from tenfold.options import Count, check_number

if TYPE_CHECKING:
    from reproduce.claims import Suite
    from reproduce.judging import Outcome
    from reproduce.records import Agreement, Record
    from reproduce.running import Run, SeedResult

SMOKE_BUDGET_SECONDS = 25.0
"""What each package may take of the smoke tier on two cores."""

app = App(
    name="reproduce",
    help="Check the claims of the papers, and of our README, against this code.\n\nWithout a verb: the smoke tier of every installed package.",
    help_format="plaintext",
    help_epilogue="`reproduce VERB --help` explains a verb and shows examples.",
    version=lambda: importlib.metadata.version("tenfold-benchmarks"),
    # No option takes a number beyond 64 bits, NaN or infinity; `Count` says more.
    default_parameter=Parameter(validator=check_number),
    print_error=False,
    exit_on_error=False,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)
app.meta.suppress_keyboard_interrupt = False

Tier = Literal["smoke", "small", "medium", "paper"]
Only = Annotated[tuple[str, ...], Parameter(negative=(), consume_multiple=True)]


@app.default
@verb(app, "reproduce run --only fairfd", "reproduce run --only fairfd --tier small --seeds 5")
def run(
    *,
    only: Only = (),
    tier: Tier = "smoke",
    seeds: Count | None = None,
    out: Path = Path("results"),
    fresh: bool = False,
    record: bool = False,
    data: Path | None = None,
    steps: Count | None = None,
) -> int:
    """Measure the claims of a tier; finished seeds are kept and not measured again.

    The result is held against the record in the repository. Leaves with 3 where a claim contradicts it, otherwise with 0.
    Protocols of the tiers medium and paper run the packages' own commands on public data, for hours; `reproduce list` says what they need.

    Args:
        only: Packages to check; all installed ones by default.
        tier: smoke (seconds), small (minutes), medium (one GPU), paper (full scale).
        seeds: How many seeds; each experiment's own number by default.
        out: Where results and the report go.
        fresh: Measure again what is stored.
        record: Write what was measured as the record that later runs are held against.
        data: Folder with one folder for each package that holds the public data of its protocol.
        steps: Try a protocol's path: so many training steps on stand-ins made on the spot; nothing is judged.
    """
    from reproduce.records import RECORDS, load_record
    from reproduce.registry import suites
    from reproduce.report import load_tier
    from reproduce.running import Run, missing_data, outcomes

    chosen = suites(only)
    if record and (seeds is not None or steps is not None):
        raise UserError("--record keeps each experiment's own number of seeds and steps; leave out --seeds and --steps")
    if (data is not None or steps is not None) and tier not in ("medium", "paper"):
        raise UserError("--data and --steps are for the protocols of --tier medium and paper")
    # Refused before minutes of measuring, not after.
    check_writable(out / f"{tier}.json")
    if record:
        check_writable(RECORDS / tier)
    load_tier(out, tier)
    records = {suite.package: load_record(suite.package, tier) for suite in chosen}
    progress = Console(stderr=True)

    def say(line: str) -> None:
        progress.print(line, markup=False, highlight=False)

    how = Run(tier, out, fresh, data, steps, say)
    lacking = missing_data(chosen, how)
    for line in lacking:
        say(line)
    measured = _measure(chosen, seeds, how)
    if steps is not None:
        return _print_path(measured)
    judged = outcomes(chosen, tier, measured)
    if not judged and lacking:
        raise UserError(f"--tier {tier}: {lacking[0]}; or try the path with --steps 2")
    if not judged:
        raise UserError(
            f"--tier {tier}: no claim of {', '.join(each.package for each in chosen) or 'any package'} has it"
        )
    _save(chosen, tier, judged, measured, out, record)
    contradicted = _print_result(chosen, judged, measured, records)
    print(f"{len(judged)} claims -> {out / 'report.html'}")
    return EXIT_LIMIT_BROKEN if contradicted and not record else 0


def _measure(chosen: "list[Suite]", seeds: int | None, how: "Run") -> "list[SeedResult]":
    from reproduce.running import run_suites

    measured = []
    for step in run_suites(chosen, seeds, how):
        measured.append(step.result)
        stored = "stored" if step.was_stored else f"{step.result.seconds:.1f} s"
        how.say(
            f"[{step.number}/{step.total}] {step.result.package}/{step.result.experiment} seed {step.result.seed}: {stored}"
        )
    return measured


def _save(
    chosen: "list[Suite]",
    tier: str,
    judged: "list[Outcome]",
    measured: "list[SeedResult]",
    out: Path,
    record: bool,
) -> None:
    """The results, the page, this run's records beside them and, where asked for, in the repository."""
    from reproduce.records import RECORDS, save_record
    from reproduce.report import machine, save_tier, write_html

    save_tier(out, tier, judged, measured)
    for folder in (out / "records", *([RECORDS] if record else [])):
        for suite in chosen:
            mine = [each for each in judged if each.claim.package == suite.package]
            theirs = [each for each in measured if each.package == suite.package]
            if mine:
                save_record(suite.package, tier, mine, theirs, machine(), folder)
    if record:
        print(f"recorded -> {RECORDS / tier}")
    write_html(out)


def _print_result(
    chosen: "list[Suite]",
    judged: "list[Outcome]",
    measured: "list[SeedResult]",
    records: "Mapping[str, Record | None]",
) -> bool:
    """Claims, seconds, and what contradicts its record; whether anything does."""
    from reproduce.records import Agreement, agreement

    agreements = {each.claim.id: agreement(each, records[each.claim.package]) for each in judged}
    _print_outcomes(chosen, judged, agreements)
    for suite in chosen:
        spent = [each.seconds for each in measured if each.package == suite.package]
        is_over = judged[0].tier == "smoke" and sum(spent) > SMOKE_BUDGET_SECONDS
        over = f", over the {SMOKE_BUDGET_SECONDS:.0f} s budget" if is_over else ""
        if spent:
            print(f"{suite.package}: {sum(spent):.1f} s{over}")
    contradicted = [each for each in judged if agreements[each.claim.id] is Agreement.CONTRADICTS]
    for each in contradicted:
        print(f"contradicts its record: {each.claim.id} ({each.verdict}, {each.effect:+.4g})")
    return bool(contradicted)


def _print_path(measured: "list[SeedResult]") -> int:
    """What a few steps on stand-ins left: that every arm got through."""
    for each in measured:
        arms = ", ".join(each.measurement)
        print(f"{each.package}/{each.experiment}: the path works ({arms}), {each.seconds:.0f} s; nothing was judged")
    return 0


COLORS = {"holds": "green", "does not hold": "red", "inconclusive": "yellow", "too few seeds": "yellow"}


def _print_outcomes(chosen: "list[Suite]", judged: "list[Outcome]", agreements: "dict[str, Agreement]") -> None:
    """What a reader sees first: each paper's idea, its claims as sentences with what was measured, and a count at the end."""
    from reproduce.judging import count_verdicts

    console = Console(width=None if sys.stdout.isatty() else 140)
    for suite in chosen:
        mine = [each for each in judged if each.claim.package == suite.package]
        if not mine:
            continue
        console.print(f"\n[bold]{suite.package}[/]: {suite.idea}", highlight=False)
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=14)
        table.add_column(ratio=1, overflow="fold")
        table.add_column(justify="right", overflow="fold")
        table.add_column(overflow="fold")
        for each in mine:
            bounds = f" [{each.interval[0]:+.3g}, {each.interval[1]:+.3g}]" if each.interval else ""
            table.add_row(
                f"[{COLORS[each.verdict]}]{each.verdict}[/]",
                escape(each.claim.statement),
                escape(f"{each.effect:+.4g}{bounds}"),
                "" if agreements[each.claim.id] == "agrees" else agreements[each.claim.id].value,
            )
        console.print(table)
    counts = count_verdicts(judged)
    print(
        f"\nOf {len(judged)} claims {counts['hold']} hold, {counts['do not hold']} do not hold, {counts['open']} are open."
    )


@app.command(name="list", help_epilogue="Examples:\n  $ reproduce list --only fairfd cskopt")
def list_claims(*, only: Only = ()) -> None:
    """List the claims, with what is recorded of each.

    Args:
        only: Packages to list; all installed ones by default.
    """
    from reproduce.claims import TIERS, Protocol
    from reproduce.records import load_record
    from reproduce.registry import suites

    chosen = suites(only)
    records = {suite.package: {tier: load_record(suite.package, tier) for tier in TIERS} for suite in chosen}
    for suite in chosen:
        for claim in suite.claims:
            found = {tier: record.claim(claim.id) for tier, record in records[suite.package].items() if record}
            recorded = ", ".join(f"{tier}: {each.verdict}" for tier, each in found.items() if each)
            print(f"{claim.id}\n    {claim.statement} ({claim.source})\n    {recorded or 'not recorded'}")
        for each in suite.experiments:
            if isinstance(each, Protocol):
                print(f"{suite.package}, {each.name}\n    {each.summary}\n    needs {each.needs}; takes {each.hours}")
        for speed in suite.speeds:
            print(f"{speed.id}\n    {speed.statement}; aim {speed.target:g}x\n    speed")


@verb(app, "reproduce speed --only fairfd")
def speed(*, only: Only = (), out: Path = Path("results")) -> None:
    """Time ours against the straightforward way, in one process, and report ratios.

    Args:
        only: Packages to time; all installed ones by default.
        out: Where results and the report go.
    """
    from reproduce.registry import suites
    from reproduce.report import load_speed, save_speed, write_html
    from reproduce.timing import time_speed

    chosen = suites(only)
    check_writable(out / "speed.json")
    load_speed(out)
    timings = []
    for suite in chosen:
        for each in suite.speeds:
            started = time.perf_counter()
            timing = time_speed(each)
            save_speed(out, [timing])
            timings.append(timing)
            memory = (
                f", peak {timing.our_peak:.0f} / {timing.their_peak:.0f} MiB" if timing.our_peak is not None else ""
            )
            missed = "" if timing.reaches_target else f" (aim {timing.target:g}x missed)"
            print(
                f"{timing.id}: {timing.ratio:.1f}x{missed}, {timing.ours:.3g} s / {timing.theirs:.3g} s per {timing.unit}{memory}"
                f"  [{time.perf_counter() - started:.0f} s]"
            )
    if not timings:
        raise UserError("no speed comparison to run")
    print(f"{len(timings)} comparisons -> {write_html(out)}")


@verb(app, "reproduce report --out results")
def report(*, out: Path = Path("results"), history: Path | None = None) -> None:
    """Render the report again from the results on disk, or from records over time.

    Args:
        out: The results folder.
        history: Records over time, HISTORY/DATE/TIER/PACKAGE.json (a run leaves its own in OUT/records); draws how each claim went.
    """
    from reproduce.report import write_html

    check_writable(out / "report.html")
    print(write_html(out, history))


@verb(app, "reproduce tables", "reproduce tables --only fairfd --write")
def tables(*, only: Only = (), write: bool = False) -> int:
    """Compare the tables of the packages' READMEs, and their badges, with the records; leaves with 3 where one differs.

    Args:
        only: Packages to look at; all installed ones by default.
        write: Write tables and badges anew.
    """
    from reproduce.badges import badge
    from reproduce.records import RECORDS
    from reproduce.registry import suites
    from reproduce.tables import fill_tables

    root = RECORDS.parents[1]
    if not (root / "packages").is_dir():
        raise UserError("the READMEs are not here: run this in a checkout of the repository")
    wanted = {}
    for suite in suites(only):
        readme = root / "packages" / suite.package / "README.md"
        wanted[readme] = fill_tables(readme.read_text(encoding="utf-8"), suite)
        wanted[root / ".github" / "badges" / f"{suite.package}.svg"] = badge(suite)
    stale = [path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path.relative_to(root)}: {'written' if write else 'differs from the records'}")
        if write:
            write_text(path, wanted[path])
    return EXIT_LIMIT_BROKEN if stale and not write else 0


@app.meta.default
def launch(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    debug: Annotated[bool, Parameter(negative=())] = False,  # noqa: ARG001  # `run` of the conventions looks for it
) -> Any:
    """Run a verb.

    Args:
        tokens: the verb and its arguments.
        debug: Show the traceback of an error.
    """
    return app(tokens, result_action="return_value")


def main() -> NoReturn:
    """Entry point of `reproduce`."""
    # One process, steady numbers: the experiments are small, and two cores are what CI has.
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    conventions.run(app)
