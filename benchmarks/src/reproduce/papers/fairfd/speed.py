"""Speed of fairfd against the straightforward way."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from reproduce.claims import Speed

if TYPE_CHECKING:
    from fairfd import RateTable

REPLICATES = 1000
"""Ours draws this many in one call; fairlearn draws one."""

PEOPLE, APPROACHES, GROUPS = 11_430, 12, 4
"""The size of the published benchmark: 11,430 people, real faces and eleven forgeries, about five images of each."""

ROWS = 684_000


def _scores() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    cells = PEOPLE * APPROACHES
    cell = np.sort(np.concatenate([np.arange(cells), rng.integers(0, cells, ROWS - cells)]))
    identity, approach = np.divmod(cell, APPROACHES)
    label = (approach > 0).astype(np.int64)
    score = np.clip(rng.normal(0.35 + 0.3 * label, 0.2), 0, 1)
    return {
        "scores": score,
        "labels": label,
        "groups": identity % GROUPS,
        "approaches": approach,
        "identities": identity,
    }


def _counted(data: dict[str, np.ndarray]) -> "RateTable":
    import fairfd

    return fairfd.RateTable.from_scores(
        data["scores"], data["labels"], data["groups"], data["approaches"], data["identities"]
    )


def bootstrap_against_metric_frame() -> tuple[Callable[[], object], Callable[[], object]]:
    """The twelve metrics with 1,000 replicates, and one replicate of one metric by `fairlearn.metrics.MetricFrame`."""
    from fairlearn.metrics import MetricFrame, selection_rate

    import fairfd

    data = _scores()

    def ours() -> object:
        return fairfd.bootstrap(_counted(data), n_boot=REPLICATES, seed=0)

    def theirs() -> object:
        # One row resample and one metric (the per-approach range of positive rates), as its own n_boot loop does.
        rows = np.random.default_rng(0).integers(0, ROWS, ROWS)
        frame = MetricFrame(
            metrics=selection_rate,
            y_true=data["labels"][rows],
            y_pred=data["scores"][rows] >= 0.5,
            sensitive_features=data["groups"][rows],
            control_features=data["approaches"][rows],
        )
        return frame.difference().mean()

    return ours, theirs


def bootstrap_against_rows() -> tuple[Callable[[], object], Callable[[], object]]:
    """The same 1,000 replicates, and one replicate of the twelve metrics from resampled rows in numpy."""
    import fairfd

    data = _scores()

    def ours() -> object:
        return fairfd.bootstrap(_counted(data), n_boot=REPLICATES, seed=0)

    def theirs() -> object:
        rows = np.random.default_rng(0).integers(0, ROWS, ROWS)
        drawn = {name: column[rows] for name, column in data.items()}
        return fairfd.fairness(
            fairfd.RateTable.from_scores(drawn["scores"], drawn["labels"], drawn["groups"], drawn["approaches"])
        )

    return ours, theirs


def ucf_inference() -> tuple[Callable[[], object], Callable[[], object]]:
    """UCF's prediction from the one encoder it reads, and with the content encoder run as well, as in training."""
    import torch

    import fairfd

    torch.manual_seed(0)
    detector = fairfd.create_detector("ucf", in_size=128).eval()
    content_encoder = detector.get_submodule("encoder_c")
    images = torch.rand(2, 3, 128, 128)

    @torch.inference_mode()
    def both_encoders() -> object:
        content_encoder(images * 2 - 1)
        return detector.predict_proba(images)

    return (lambda: detector.predict_proba(images)), both_encoders


SPEEDS = (
    Speed(
        "fairfd/bootstrap-vs-fairlearn",
        f"A bootstrap replicate on {ROWS:,} rows: the whole family clustered by person, against one metric by a row bootstrap of fairlearn's MetricFrame",
        bootstrap_against_metric_frame,
        target=100,
        repeats=1,
        scale=REPLICATES,
        unit="replicate",
    ),
    Speed(
        "fairfd/bootstrap-vs-rows",
        f"A bootstrap replicate of the whole family on {ROWS:,} rows: from counts per person, against resampling rows in numpy",
        bootstrap_against_rows,
        target=20,
        repeats=3,
        scale=REPLICATES,
        unit="replicate",
    ),
    Speed(
        "fairfd/ucf-inference",
        "UCF scoring 2 images of 128 pixels without the encoder that only training needs, against with it",
        ucf_inference,
        target=1.5,
        repeats=5,
        unit="batch",
    ),
)
