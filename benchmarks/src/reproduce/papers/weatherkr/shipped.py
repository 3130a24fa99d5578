"""The model that ships: what it gains on weather of a setting it was not trained on, and what a large picture costs."""

import json
import subprocess
import sys
from pathlib import Path

from reproduce.claims import Experiment, Measurement, claim, higher, lower

KINDS = ("haze", "rain", "snow")
MEGAPIXELS = 12
WORDS = {
    f"{kind}, {setting}": f"{kind}, {setting} setting" for setting in ("standard", "shifted") for kind in KINDS
} | {
    "tiles of 128, global gates": "tiles of 128 pixels with the whole picture's gates",
    "tiles of 128, local gates": "tiles of 128 pixels with gates of their own",
    "tiles of 512": "tiles of 512 pixels",
    "tiles of 1024": "tiles of 1024 pixels",
    "whole": "the whole picture at once",
}
METRICS = {
    "PSNR": "PSNR (dB)",
    "SSIM": "SSIM",
    "gain": "gain in PSNR over the weathered picture (dB)",
    "seam error": "largest difference from the whole picture (white = 1)",
    "megapixels per second": "megapixels a second",
    "megapixels per CPU second": "megapixels a CPU second",
    "peak MiB": "peak memory (MiB)",
    "MiB above the start": "memory above the start (MiB)",
}


def gains(seed: int, _tier: str, place: Path) -> Measurement:
    """Weather of both settings on photographs that ship with libraries, removed by the compact model."""
    from tenfold.data import embedded_pictures
    from tenfold.figures import image_grid
    from tenfold.images import write_image
    from weatherkr import SyntheticPairs, evaluate, load_model, restore_image, seam_error

    net = load_model("compact", "cpu")
    files = [path for name, path in embedded_pictures().items() if name not in ("ihc", "retina")]
    arms = {}
    for setting in ("standard", "shifted"):
        for kind in KINDS:
            pairs = SyntheticPairs(files, kind, setting, seed, keep=False)
            score = evaluate(net, pairs)
            arms[f"{kind}, {setting}"] = {"PSNR": score.psnr, "SSIM": score.ssim, "gain": score.gain}
            degraded, clean = (each[:, :320, :320] for each in pairs.pair(1))
            write_image(place / f"{kind}-{setting}.png", image_grid([[degraded, restore_image(net, degraded), clean]]))
    hazy = SyntheticPairs(files, "haze", "standard", seed, keep=False).pair(0)[0][None]
    for gates in ("global", "local"):
        arms[f"tiles of 128, {gates} gates"] = {"seam error": seam_error(net, hazy, 128, gates, "float32")}
    return arms


_RESTORE_LARGE = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from weatherkr import load_model, restore_tensor
net = load_model("compact", "cpu")
torch.manual_seed(int(sys.argv[2]))
small = torch.rand(1, 3, 30, 40)
image = torch.nn.functional.interpolate(small, (3000, 4000), mode="bicubic").clamp(0, 1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started, worked = time.perf_counter(), time.process_time()
restore_tensor(net, image, "off" if sys.argv[1] == "whole" else int(sys.argv[1]))
seconds, worked = time.perf_counter() - started, time.process_time() - worked
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"megapixels per second": 12 / seconds, "megapixels per CPU second": 12 / worked, "peak MiB": peak / 1024, "MiB above the start": (peak - before) / 1024}))
"""


def large_picture(seed: int, _tier: str, _place: Path) -> Measurement:
    """12 MP restored in tiles of 512 and 1024 pixels and whole, each in a process of its own on one thread."""
    arms = {}
    for arm, tile in (("tiles of 512", "512"), ("tiles of 1024", "1024"), ("whole", "whole")):
        command = [sys.executable, "-c", _RESTORE_LARGE, tile, str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        arms[arm] = json.loads(done.stdout)
    return arms


def first_gain(_seed: int, _tier: str, _place: Path) -> Measurement:
    """Haze and rain of the training's setting on two photographs, and tiles against the whole picture."""
    from tenfold.data import embedded_pictures
    from weatherkr import SyntheticPairs, evaluate, load_model, seam_error

    net = load_model("compact", "cpu")
    found = embedded_pictures()
    files = [found[name] for name in ("astronaut", "coffee")]
    arms: dict[str, dict[str, float]] = {
        f"{kind}, standard": {"gain": evaluate(net, SyntheticPairs(files, kind, "standard", 0, keep=False)).gain}
        for kind in ("haze", "rain")
    }
    hazy = SyntheticPairs(files, "haze", "standard", 0, keep=False).pair(0)[0][None, :, :256, :256]
    arms["tiles of 128, global gates"] = {"seam error": seam_error(net, hazy, 128, "global", "float32")}
    return arms


EXPERIMENTS = (
    Experiment(
        "two photographs",
        "The compact model on two photographs it has not seen, with haze and rain of its training's setting.",
        {"smoke": 1},
        first_gain,
        WORDS,
        METRICS,
    ),
    Experiment(
        "shipped-model",
        "The compact model on seven photographs it has not seen, with weather of its training's setting and of another.",
        {"small": 5},
        gains,
        WORDS,
        METRICS,
    ),
    Experiment(
        "large-picture",
        f"One picture of {MEGAPIXELS} MP on one CPU thread: speed and peak memory, in tiles and whole.",
        {"small": 2},
        large_picture,
        WORDS,
        METRICS,
    ),
)

CLAIMS = (
    *(
        claim(
            f"weatherkr/first-gain-{kind}",
            f"On two photographs the shipped compact model gains at least 3 dB on {kind}.",
            higher("gain", f"{kind}, standard", than=3.0),
            experiment="two photographs",
            source="our README",
            deterministic=True,
        )
        for kind in ("haze", "rain")
    ),
    claim(
        "weatherkr/first-tiles-agree",
        "With the whole picture's gates, tiles differ from the whole picture by less than a tenth of an 8-bit level.",
        lower("seam error", "tiles of 128, global gates", than=0.1 / 255),
        experiment="two photographs",
        source="our README",
        deterministic=True,
    ),
    *(
        claim(
            f"weatherkr/ships-{kind}-{setting}",
            f"The compact model gains at least 3 dB on {kind} ({setting} setting) after learning all three in sequence.",
            higher("gain", f"{kind}, {setting}", than=3.0),
            experiment="shipped-model",
            source="our README",
        )
        for setting in ("standard", "shifted")
        for kind in KINDS
    ),
    claim(
        "weatherkr/tiles-agree",
        "With the whole picture's gates, tiles differ from the whole picture by less than a tenth of an 8-bit level.",
        lower("seam error", "tiles of 128, global gates", than=0.1 / 255),
        experiment="shipped-model",
        source="our README",
    ),
    claim(
        "weatherkr/global-gates-agree-better",
        "Tiles that share the whole picture's gates agree with it better than tiles with gates of their own.",
        lower("seam error", "tiles of 128, global gates", than="tiles of 128, local gates"),
        experiment="shipped-model",
        source="our README",
    ),
    claim(
        "weatherkr/tiles-bound-memory",
        "A 12 MP picture in tiles of 512 takes less memory than whole.",
        lower("MiB above the start", "tiles of 512", than="whole"),
        experiment="large-picture",
        source="our README",
        deterministic=True,
    ),
)
