"""Several methods on the same partition with the same seed, in one go."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold import UserError
from tenfold.reading import read_json_object
from tenfold.runs import RunFolder
from twinsight.config import METHODS, FederationConfig
from twinsight.pipeline.simulation import simulate


def compare(
    config: FederationConfig,
    arms: Sequence[str],
    out: Path | None = None,
    *,
    resume: bool = False,
    device: str = "auto",
) -> dict[str, dict[str, Any]]:
    """Run each arm and collect its result.

    Args:
        config: what all arms share.
        arms: names of `METHODS`; `twin-sight:official` is Twin-sight under the official normalisation, `lower-bound:all` the
            lower bound with every labelled client in every round.
        out: where the run folders go; nowhere when None.
        resume: continue arms that were interrupted, and take the results of those that are finished.
        device: see `simulate`.

    Returns:
        The result of each arm, by its name.

    Raises:
        UserError: an unknown arm.
    """
    place = Path(tempfile.mkdtemp(prefix="twinsight-")) if out is None else out
    try:
        return {arm: _result(place / arm.replace(":", "-"), arm_config(config, arm), resume, device) for arm in arms}
    finally:
        if out is None:
            shutil.rmtree(place)


def _result(place: Path, config: FederationConfig, resume: bool, device: str) -> dict[str, Any]:
    if resume and (place / "result.json").exists():
        RunFolder.create(place, config, resume)
        return read_json_object(place / "result.json")
    return simulate(place, config, resume=resume, device=device).result


def arm_config(config: FederationConfig, arm: str) -> FederationConfig:
    """The configuration of an arm; see `compare`."""
    name, _, variant = arm.partition(":")
    changes: dict[str, Any] = {
        "": {},
        "official": {"normalisation": "official"},
        "all": {"labelled_per_round": config.labelled},
        "fixmatch": {"pseudo_labels": "fixmatch"},
    }.get(variant, {})
    if name not in METHODS or (variant and not changes):
        raise UserError(
            f"{arm}: no such arm; there are {', '.join(METHODS)}, twin-sight:official, twin-sight:fixmatch and lower-bound:all"
        )
    return replace(config, method=name, **changes)
