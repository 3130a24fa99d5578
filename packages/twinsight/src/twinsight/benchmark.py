"""Several methods on the same partition with the same seed, in one go."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tenfold import UserError
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
        arms: names of `METHODS`; `twin-sight:official` and `twin-sight:mean` are Twin-sight under either normalisation, `lower-bound:all` is the
            lower bound with every labelled client in every round.
        out: where the run folders go; nowhere when None.
        resume: continue arms that were interrupted, and take the results of those that are finished.
        device: see `simulate`.

    Returns:
        The result of each arm, by its name.

    Raises:
        UserError: an unknown arm or one named twice, or a run that is there without `resume`: before any is run.
    """
    if len(set(arms)) < len(arms):
        twice = next(arm for index, arm in enumerate(arms) if arm in arms[:index])
        raise UserError(f"{twice}: is named twice; name each arm once")
    configs = {arm: arm_config(config, arm) for arm in arms}
    place = Path(tempfile.mkdtemp(prefix="twinsight-")) if out is None else out
    try:
        places = {arm: place / arm.replace(":", "-") for arm in arms}
        taken = [each for each in places.values() if (each / "config.toml").exists()]
        if taken and not resume:
            raise UserError(f"{taken[0]}: already holds a run; continue it with --resume or choose another --out")
        return {arm: simulate(places[arm], each, resume=resume, device=device).result for arm, each in configs.items()}
    finally:
        if out is None:
            shutil.rmtree(place)


def arm_config(config: FederationConfig, arm: str) -> FederationConfig:
    """The configuration of an arm; see `compare`."""
    name, _, variant = arm.partition(":")
    changes: dict[str, Any] = {
        "": {},
        "official": {"normalisation": "official"},
        "mean": {"normalisation": "mean"},
        "all": {"labelled_per_round": config.labelled},
        "fixmatch": {"pseudo_labels": "fixmatch"},
    }.get(variant, {})
    if name not in METHODS or (variant and not changes):
        raise UserError(
            f"{arm}: no such arm; there are {', '.join(METHODS)}, twin-sight:official, twin-sight:mean, twin-sight:fixmatch and lower-bound:all"
        )
    return replace(config, method=name, **changes)
