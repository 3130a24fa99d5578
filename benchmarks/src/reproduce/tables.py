"""Tables of READMEs, written from the records, so that no number in them was copied by hand.

A table stands between two comments, which a page does not show:

    <!-- reproduce: claims small -->
    <!-- reproduce: arms small stream accuracy forgetting -->
    <!-- reproduce: across small "stream, " accuracy -->
    ...
    <!-- /reproduce -->

`claims TIER [EXPERIMENT ...]` gives the claims with their verdicts, `arms TIER EXPERIMENT [METRIC ...]` the arms of an experiment with the means of
its metrics over the seeds, `across TIER PREFIX METRIC` one metric of all arms in every experiment whose name begins so.
"""

import re
import shlex
import statistics
from collections.abc import Sequence

from reproduce.claims import TIERS, Experiment, Protocol, Suite
from reproduce.judging import Outcome, judge
from reproduce.records import Record, load_record, measurements_of
from tenfold import UserError

BLOCK = re.compile(r"<!-- reproduce: (?P<what>[^\n]*?) -->\n.*?<!-- /reproduce -->", re.DOTALL)


def fill_tables(text: str, suite: Suite) -> str:
    """A README with every table as the records have it.

    Args:
        text: the README.
        suite: of its package.

    Raises:
        UserError: a comment asks for what is not recorded.
    """
    return BLOCK.sub(
        lambda found: f"<!-- reproduce: {found['what']} -->\n\n{_table(found['what'], suite)}\n\n<!-- /reproduce -->",
        text,
    )


def _table(what: str, suite: Suite) -> str:
    """The table that a comment asks for."""
    asks = f"README of {suite.package}: `reproduce: {what}`"
    kind, tier, *names = words if len(words := shlex.split(what)) > 1 else ("", "")
    least = {"claims": 0, "arms": 1, "across": 2}
    if tier not in TIERS or len(names) < least.get(kind, len(names) + 1):
        raise UserError(
            f"{asks}: say `claims TIER [EXPERIMENT ...]`, `arms TIER EXPERIMENT [METRIC ...]` or `across TIER PREFIX METRIC`"
        )
    record = load_record(suite.package, tier)
    if record is None:
        raise UserError(f"{asks}: not recorded; `reproduce run --only {suite.package} --tier {tier} --record`")
    recorded = {each.experiment for each in record.seeds}
    experiments = {each.name: each for each in suite.experiments if each.name in recorded}
    if kind == "across":
        chosen = [each for name, each in experiments.items() if name.startswith(names[0])]
        if not chosen:
            raise UserError(f"{asks}: {names[0]} is not recorded; there are {', '.join(experiments)}")
        return across_table(chosen, names[0], record, names[1])
    for name in names if kind == "claims" else names[:1]:
        if name not in experiments:
            raise UserError(f"{asks}: {name} is not recorded; there are {', '.join(experiments)}")
    if kind == "claims":
        return claims_table(suite, record, names or list(experiments))
    return arms_table(experiments[names[0]], record, names[1:])


def claims_table(suite: Suite, record: Record, experiments: Sequence[str]) -> str:
    """The claims of some experiments with what was measured, in Markdown.

    Args:
        suite: the package's claims.
        record: of the package.
        experiments: whose claims are shown; all are judged together.
    """
    judged = judge(record.tier, measurements_of(record, suite))
    outcomes = [each for each in judged if each.claim.experiment in experiments]
    rows = [
        f"| {_cell(each.claim.statement)} ({_cell(each.claim.source)}) | {_measured(each)} | {_verdict(each)} |"
        for each in outcomes
    ]
    return "\n".join(["| claim | measured | verdict |", "|---|---|---|", *rows, "", _origin(record)])


def arms_table(experiment: Experiment | Protocol, record: Record, metrics: Sequence[str]) -> str:
    """The arms of an experiment, in Markdown: the mean of each metric, with the standard deviation over the seeds.

    Args:
        experiment: as the suite describes it.
        record: of its package.
        metrics: the columns; all that have words when empty.

    Raises:
        UserError: a metric that the experiment does not have.
    """
    unknown = [each for each in metrics if each not in experiment.metrics]
    if unknown:
        raise UserError(f"{experiment.name} has no metric {unknown[0]}; there are {', '.join(experiment.metrics)}")
    columns = list(metrics or experiment.metrics)
    seeds = [each.measurement for each in record.seeds if each.experiment == experiment.name]
    rows = [
        f"| {_cell(experiment.arms[arm])} | "
        + " | ".join(_mean([each[arm][metric] for each in seeds if metric in each.get(arm, {})]) for metric in columns)
        + " |"
        for arm in experiment.arms
        if any(metric in each.get(arm, {}) for each in seeds for metric in columns)
    ]
    head = [
        "| arm | " + " | ".join(_cell(experiment.metrics[each]) for each in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    return "\n".join([*head, *rows, "", _origin(record, len(seeds))])


def across_table(experiments: Sequence[Experiment | Protocol], prefix: str, record: Record, metric: str) -> str:
    """One metric of all arms over several experiments, in Markdown: a row for each experiment, means over the seeds.

    Args:
        experiments: with the same arms.
        prefix: what their names begin with; the rest names the row.
        record: of their package.
        metric: which.

    Raises:
        UserError: a metric that they do not have.
    """
    arms, words = experiments[0].arms, experiments[0].metrics
    if metric not in words:
        raise UserError(f"{prefix}: no metric {metric}; there are {', '.join(words)}")
    rows = []
    for experiment in experiments:
        seeds = [each.measurement for each in record.seeds if each.experiment == experiment.name]
        means = [_mean([each[arm][metric] for each in seeds if metric in each.get(arm, {})]) for arm in arms]
        rows.append(f"| {experiment.name.removeprefix(prefix)} | " + " | ".join(means) + " |")
    head = [
        f"| {_cell(words[metric])} | " + " | ".join(_cell(each) for each in arms.values()) + " |",
        "|---" * (len(arms) + 1) + "|",
    ]
    count = sum(each.experiment == experiments[0].name for each in record.seeds)
    return "\n".join([*head, *rows, "", _origin(record, count)])


def _origin(record: Record, seeds: int | None = None) -> str:
    counts = sorted(
        {sum(each.experiment == name for each in record.seeds) for name in {each.experiment for each in record.seeds}}
    )
    number = str(seeds) if seeds is not None else f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    plural = "seed" if number == "1" else "seeds"
    return (
        f"`reproduce run --only {record.package} --tier {record.tier}`, {number} {plural}, {record.date}, commit {record.commit}, "
        f"{record.machine.get('processor', 'unknown processor')}, torch {record.versions.get('torch', 'unknown')}."
    )


def _measured(outcome: Outcome) -> str:
    interval = outcome.interval or outcome.student
    bounds = f" [{number(interval[0], signed=True)}, {number(interval[1], signed=True)}]" if interval else ""
    other = outcome.claim.comparison.other
    against = number(outcome.baseline) if isinstance(other, str) else f"{other:g}"
    return f"{number(outcome.method)} against {against}: {number(outcome.effect, signed=True)}{bounds}"


def _verdict(outcome: Outcome) -> str:
    if outcome.verdict.is_conclusive:
        return f"**{outcome.verdict}**"
    needed = f" (about {outcome.needed} seeds needed)" if outcome.needed else ""
    return f"{outcome.verdict}{needed}"


def _mean(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = number(statistics.fmean(values))
    return mean if len(set(values)) == 1 else f"{mean} ± {number(statistics.stdev(values))}"


def number(value: float, signed: bool = False) -> str:
    """Three significant digits, as a person writes them."""
    sign = "+" if signed else ""
    value = round(value, 12) + 0.0  # what is left of two equal numbers is nothing
    return f"{value:{sign}.0f}" if 1000 <= abs(value) < 1e6 else f"{value:{sign}.3g}"


def _cell(words: str) -> str:
    return words.rstrip(".").replace("|", "\\|")
