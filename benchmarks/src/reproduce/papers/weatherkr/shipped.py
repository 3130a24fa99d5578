"""The model that ships: what it gains on weather of a setting it was not trained on, and what a large picture costs."""

import json
import subprocess
import sys
from pathlib import Path

from reproduce.claims import Claim, Experiment, Measurement, Verdict

KINDS = ("haze", "rain", "snow")
MEGAPIXELS = 12


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


EXPERIMENTS = (
    Experiment(
        "weatherkr",
        "shipped-model",
        "The compact model on seven photographs it has not seen, with weather of its training's setting and of another.",
        {"small": 5},
        gains,
    ),
    Experiment(
        "weatherkr",
        "large-picture",
        f"One picture of {MEGAPIXELS} MP on one CPU thread: speed and peak memory, in tiles and whole.",
        {"small": 2},
        large_picture,
    ),
)

CLAIMS = (
    *(
        Claim(
            id=f"weatherkr/ships-{kind}-{setting}",
            statement=f"The compact model gains at least 3 dB on {kind} ({setting} setting) after learning all three in sequence.",
            source="our README",
            experiment="shipped-model",
            metric="gain",
            method=f"{kind}, {setting}",
            baseline=3.0,
            better="higher",
            # Rain of the unfamiliar setting gains 2.6 dB on the mean, less than the 3 dB asked for, and varies by 1.5 dB.
            recorded={"small": Verdict.INCONCLUSIVE if (kind, setting) == ("rain", "shifted") else Verdict.HOLDS},
        )
        for setting in ("standard", "shifted")
        for kind in KINDS
    ),
    Claim(
        id="weatherkr/tiles-agree",
        statement="With the whole picture's gates, tiles differ from the whole picture by less than a tenth of an 8-bit level.",
        source="our README",
        experiment="shipped-model",
        metric="seam error",
        method="tiles of 128, global gates",
        baseline=0.1 / 255,
        better="lower",
        recorded={"small": Verdict.HOLDS},
    ),
    Claim(
        id="weatherkr/global-gates-agree-better",
        statement="Tiles that share the whole picture's gates agree with it better than tiles with gates of their own.",
        source="our README",
        experiment="shipped-model",
        metric="seam error",
        method="tiles of 128, global gates",
        baseline="tiles of 128, local gates",
        better="lower",
        recorded={"small": Verdict.HOLDS},
    ),
    Claim(
        id="weatherkr/tiles-bound-memory",
        statement="A 12 MP picture in tiles of 512 takes less memory than whole.",
        source="our README",
        experiment="large-picture",
        metric="MiB above the start",
        method="tiles of 512",
        baseline="whole",
        better="lower",
        recorded={"small": Verdict.HOLDS},
    ),
)
