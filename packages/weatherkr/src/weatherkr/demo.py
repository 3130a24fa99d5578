"""Weather on photographs that ship with libraries, removed by the model that ships with this package. What `weatherkr demo` runs."""

from pathlib import Path

import torch
import torch.nn.functional as F

from tenfold.data import embedded_pictures, to_tensor
from tenfold.errors import UserError
from tenfold.figures import image_grid
from tenfold.files import check_writable
from tenfold.images import write_image
from tenfold.random import keyed_generator
from weatherkr.data.weather import degrade
from weatherkr.evaluation.metrics import psnr, ssim
from weatherkr.evaluation.report import Score
from weatherkr.models.networks import WeatherNet
from weatherkr.pipeline.inference import restore_image

PICTURES = ("astronaut", "chelsea", "china", "coffee", "flower", "rocket")
_SIDE = 320


def demonstrate(
    net: WeatherNet, out: Path, kinds: tuple[str, ...] = ("haze", "rain", "snow"), seed: int = 0
) -> dict[str, Score]:
    """Put each weather on each photograph, remove it, measure, and write `KIND.png`: degraded, restored, clean in rows.

    Args:
        net: the network.
        out: folder for the pictures.
        kinds: of weather.
        seed: of the weather.

    Returns:
        By kind of weather, means over the photographs.
    """
    if out.is_file():
        raise UserError(f"{out}: is a file; choose a folder for the pictures")
    check_writable(out / f"{kinds[0]}.png")
    found = embedded_pictures()
    photographs = {name: _reduced(to_tensor(found[name])) for name in PICTURES}
    scores = {}
    for kind in kinds:
        values, rows = [], []
        for name, clean in photographs.items():
            degraded = degrade(clean, kind, keyed_generator(seed, kind, name))
            restored = restore_image(net, degraded)
            pair = [
                measure(each[None], clean[None]).item() for each in (restored, degraded) for measure in (psnr, ssim)
            ]
            values.append(torch.tensor(pair, dtype=torch.float64))
            rows.append([degraded, restored, clean])
        scores[kind] = Score(*torch.stack(values).mean(0).tolist(), pictures=len(values))
        write_image(out / f"{kind}.png", image_grid(rows[:4]))
    return scores


def _reduced(image: torch.Tensor) -> torch.Tensor:
    """A photograph with a shorter side of 320 pixels, the size that the generators' lengths are given for."""
    scale = _SIDE / min(image.shape[-2:])
    size = [round(side * scale) for side in image.shape[-2:]]
    return F.interpolate(image[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)
