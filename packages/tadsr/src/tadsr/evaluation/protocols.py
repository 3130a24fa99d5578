"""Judging models on test sets, with the paper's measures, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from tadsr.data.layouts import Entry
from tadsr.data.transforms import bicubic_down, matlab_resize, to_eight_bits
from tadsr.evaluation.metrics import (
    LEARNED,
    gradient_magnitude_deviation,
    high_frequency_energy_ratio,
    learned_metric,
    low_resolution_error,
    psnr,
    sliced_wasserstein,
    ssim,
)
from tenfold import UserError
from tenfold.data import to_tensor
from tenfold.folders import FolderReport, work_on_files
from tenfold.images import write_image
from tenfold.runs import track

Upscaler = Callable[[Float[Tensor, "1 3 h w"]], Float[Tensor, "1 3 _ _"]]
HIGHER_IS_BETTER = {
    "psnr_y": True,
    "ssim_y": True,
    "psnr_rgb": True,
    "ssim_rgb": True,
    "gmsd": False,
    "hfer": True,
    "swd": False,
    "lrc": False,
}


@dataclass(frozen=True)
class Pair:
    """A test picture in memory.

    Attributes:
        name: of the picture.
        low: (1, 3, h, w) in [0, 1].
        high: four times larger, or None.
    """

    name: str
    low: Float[Tensor, "1 3 h w"]
    high: Float[Tensor, "1 3 _ _"] | None


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found.

    Attributes:
        means: of every measure, by model.
        report: the measures of each picture, and what was passed over.
    """

    means: dict[str, dict[str, float]]
    report: FolderReport[dict[str, dict[str, float]]]


def load_pair(entry: Entry, scale: int = 4) -> Pair:
    """Read a test picture; the low-quality image is made by the bicubic protocol where there is none on disk."""
    high = to_tensor(entry.high)[None] if entry.high else None
    if entry.low:
        return Pair(entry.name, to_tensor(entry.low)[None], high)
    assert high is not None
    height, width = (side // scale * scale for side in high.shape[-2:])
    if not height or not width:
        raise UserError(f"{entry.high}: smaller than {scale} pixels")
    high = high[..., :height, :width]
    return Pair(entry.name, bicubic_down(high, scale), high)


def bicubic(low: Float[Tensor, "1 3 h w"]) -> Float[Tensor, "1 3 _ _"]:
    """The baseline: MATLAB's bicubic enlargement by 4, as published tables have it."""
    return matlab_resize(low, 4.0).clamp(0, 1)


SSIM_WINDOW = 11
"""Pixels of SSIM's window: what is left of a picture inside the border must hold one."""


def measure(result: Tensor, pair: Pair, border: int, learned: dict[str, Callable[..., Tensor]]) -> dict[str, float]:
    """All measures of one enlarged picture, in 8 bits as on disk.

    Args:
        result: the enlarged picture.
        pair: what it is of; without a reference only the measures that need none are taken.
        border: pixels left out of PSNR and SSIM.
        learned: measures from `pyiqa` by name.

    Raises:
        UserError: too small for the measures, or a result of another size than its reference.
    """
    if min(result.shape[-2:]) - 2 * border < SSIM_WINDOW:
        raise UserError(
            f"{pair.name}: {result.shape[-1]} x {result.shape[-2]} pixels without a border of {border} are fewer than {SSIM_WINDOW}"
        )
    if pair.high is not None and result.shape != pair.high.shape:
        sizes = [f"{each.shape[-1]} x {each.shape[-2]}" for each in (pair.high, result)]
        raise UserError(f"{pair.name}: its reference is {sizes[0]} pixels, expected {sizes[1]}")
    result = to_eight_bits(result)
    values = {"lrc": low_resolution_error(result, pair.low).item()}
    if pair.high is not None:
        for channel in ("y", "rgb"):
            values[f"psnr_{channel}"] = psnr(result, pair.high, border, channel).item()
            values[f"ssim_{channel}"] = ssim(result, pair.high, border, channel).item()
        values["gmsd"] = gradient_magnitude_deviation(result, pair.high).item()
        values["hfer"] = high_frequency_energy_ratio(result, pair.high, pair.low).item()
        values["swd"] = sliced_wasserstein(result, pair.high, pair.low).item()
    for name, metric in learned.items():
        if name != "lpips":
            values[name] = float(metric(result))
        elif pair.high is not None:
            values[name] = float(metric(result, pair.high))
    return values


def evaluate(
    entries: Sequence[Entry],
    models: dict[str, Upscaler],
    border: int = 4,
    with_learned: bool = True,
    lpips: Callable[..., Tensor] | None = None,
) -> "Evaluation":
    """Mean of every measure over a set, for every model; pictures that cannot be read are passed over and named.

    Args:
        entries: the set.
        models: by name.
        border: pixels left out of PSNR and SSIM: 4 in the classic protocol, 0 in the paper's.
        with_learned: also LPIPS, CLIPIQA and MUSIQ where `pyiqa` and its weights are there.
        lpips: takes the place of that LPIPS: of two pictures in [0, 1].

    Raises:
        UserError: no picture could be used.
    """
    learned = {name: metric for name in LEARNED if with_learned and (metric := learned_metric(name)) is not None}
    if lpips is not None:
        learned["lpips"] = lpips
    by_file = {entry.file: entry for entry in entries}

    def judge(path: Path) -> dict[str, dict[str, float]]:
        pair = load_pair(by_file[path])
        return {name: measure(model(pair.low), pair, border, learned) for name, model in models.items()}

    report = work_on_files(track(list(by_file), "evaluating"), judge, alone=len(by_file) == 1)
    rows = list(report.results.values())
    means = {name: {key: float(np.mean([row[name][key] for row in rows])) for key in rows[0][name]} for name in models}
    return Evaluation(means, report)


def table(means: dict[str, dict[str, float]]) -> str:
    """Measures as columns, models as rows."""
    keys = list(next(iter(means.values())))
    width = max(map(len, means))
    lines = [f"{'':<{width}}  " + "  ".join(f"{key:>8}" for key in keys)]
    lines += [f"{name:<{width}}  " + "  ".join(f"{row[key]:>8.4f}" for key in keys) for name, row in means.items()]
    return "\n".join(lines)


def comparison_sheet(path: Path, pairs: Sequence[Pair], models: dict[str, Upscaler], crop: int = 192) -> None:
    """Write a sheet: a row per picture, a column per model, the truth last; the crop with the most detail of each.

    Args:
        path: the picture to write.
        pairs: what to show.
        models: by name.
        crop: side of the crops in enlarged pixels.
    """
    rows = []
    for pair in pairs:
        results = {name: model(pair.low) for name, model in models.items()}
        if pair.high is not None:
            results["original"] = pair.high
        side = min(crop, *next(iter(results.values())).shape[-2:])
        top, left = _busiest(next(iter(results.values())), side)
        rows.append(
            [_labelled(image[0, :, top : top + side, left : left + side], name) for name, image in results.items()]
        )
    wide = max(sum(cell.shape[1] for cell in row) for row in rows)
    joined = [np.concatenate(row, axis=1) for row in rows]
    padded = [np.pad(row, ((0, 4), (0, wide - row.shape[1]), (0, 0)), constant_values=1.0) for row in joined]
    write_image(path, np.concatenate(padded).astype(np.float32))


def _busiest(image: Float[Tensor, "1 3 h w"], side: int) -> tuple[int, int]:
    """Upper left corner of the crop with the largest variance, on a grid of half crops."""
    step = max(1, side // 2)
    corners = [
        (top, left)
        for top in range(0, image.shape[-2] - side + 1, step)
        for left in range(0, image.shape[-1] - side + 1, step)
    ]
    return max(corners, key=lambda at: image[..., at[0] : at[0] + side, at[1] : at[1] + side].var().item())


def _labelled(image: Float[Tensor, "3 h w"], name: str) -> np.ndarray:
    """A crop under its name."""
    strip = Image.new("RGB", (image.shape[-1], 16), "white")
    ImageDraw.Draw(strip).text((4, 2), name, fill="black")
    label = np.asarray(strip, dtype=np.float32) / 255
    return np.concatenate([label, image.clamp(0, 1).movedim(0, -1).numpy()])
