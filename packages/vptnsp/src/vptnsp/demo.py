"""The demo and the toy comparison: glyphs in a shifted domain on the embedded backbone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from tenfold.images import write_image
from vptnsp.config import TrainConfig
from vptnsp.data.synthetic import draw_classes, render_glyphs, shift_domain
from vptnsp.evaluation.figures import plot_accuracy_matrix, plot_curves
from vptnsp.training.run import compare

TOY = TrainConfig(
    tasks=5,
    classes_per_task=4,
    samples_per_class=40,
    num_prompts=8,
    epochs=12,
    repeats=1,
    batch_size=40,
    lr=0.01,
    prompt_lr=0.03,
    temperature=1.0,
    schedule="paper",
    precision="float32",
    extendable=False,
    seed=0,
)
"""Five tasks of four glyph classes; 48 steps each."""

DEMO = replace(TOY, tasks=3, samples_per_class=20, epochs=6, batch_size=20)
"""A shorter stream, for seconds: three tasks of 24 steps each."""

DEMO_METHODS = ("nsp2", "seq", "slow", "frozen", "ncm", "ranpac")

REPORTED = ("acc_task_mean", "forgetting", "task_aware_accuracy", "task_aware_forgetting", "drift")
"""What the tables show, in this order."""


def sample_sheet(config: TrainConfig, per_class: int = 6) -> Float[np.ndarray, "h w 3"]:
    """Samples of the first task's kind of pictures: one class a row, the base domain left, the shifted one right."""
    generator = torch.Generator().manual_seed(config.seed)
    classes = draw_classes(4, generator)
    labels = torch.arange(4).repeat_interleave(per_class)
    plain = render_glyphs(classes, labels, generator)
    both = torch.stack([plain, shift_domain(plain, config.shift, generator)])
    # [domain, class, sample, channel, row, column] to rows of classes.
    tiles = both.unflatten(1, (4, per_class)).permute(1, 4, 0, 2, 5, 3)
    sheet = tiles.reshape(4 * plain.shape[2], 2 * per_class * plain.shape[3], 3)
    return sheet.repeat_interleave(3, 0).repeat_interleave(3, 1).numpy()


def toy(config: TrainConfig, methods: Sequence[str], seeds: Sequence[int]) -> dict[str, dict[str, float]]:
    """Mean over seeds of what is reported of each method."""
    totals: dict[str, dict[str, float]] = {}
    for seed in seeds:
        for name, result in compare(replace(config, seed=seed), list(methods)).items():
            row = totals.setdefault(name, dict.fromkeys(REPORTED, 0.0))
            for key in REPORTED:
                row[key] += result[key] / len(seeds)
    return totals


def demonstrate(out: Path, config: TrainConfig = DEMO) -> dict[str, dict[str, Any]]:
    """Run the demo's methods and draw what they did.

    Args:
        out: a folder for `glyphs.png`, `matrix-nsp2.png`, `matrix-seq.png` and `accuracy.png`.
        config: the stream.

    Returns:
        What is reported of each method.
    """
    write_image(out / "glyphs.png", sample_sheet(config))
    results = compare(config, list(DEMO_METHODS))
    for name in ("nsp2", "seq"):
        plot_accuracy_matrix(results[name]["matrix"], out / f"matrix-{name}.png", results[name]["summary"])
    plot_curves(
        {name: result["acc_after_each_task"] for name, result in results.items()},
        out / "accuracy.png",
        results["nsp2"]["source"],
    )
    return results
