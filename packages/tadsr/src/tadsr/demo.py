"""The demo: embedded photographs made small by the protocol, then enlarged by everything that ships."""

from pathlib import Path

from tadsr.data.transforms import bicubic_down
from tadsr.evaluation.protocols import Pair, Upscaler, bicubic, comparison_sheet, measure
from tadsr.pipeline.inference import upscaler
from tadsr.pipeline.pipeline import TADSRPipeline
from tenfold.data import embedded_pictures, to_tensor
from tenfold.files import check_writable
from tenfold.images import write_image

PICTURES = {"chelsea": (40, 120), "coffee": (100, 180), "astronaut": (0, 140), "china": (120, 180)}
"""Upper left corners of crops of 192 pixels."""


def demo(out: Path) -> dict[str, dict[str, float]]:
    """Write the pictures and a comparison sheet; returns the mean measures of each model."""
    check_writable(out / "comparison.png")
    paths = embedded_pictures()
    pairs = []
    for name, (top, left) in PICTURES.items():
        high = to_tensor(paths[name])[None, :, top : top + 192, left : left + 192]
        pairs.append(Pair(name, bicubic_down(high), high))
    models: dict[str, Upscaler] = {"bicubic": bicubic}
    models |= {name: upscaler(TADSRPipeline.load(name)) for name in ("teacher", "perceptual", "fidelity")}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for pair in pairs:
        write_image(out / f"{pair.name}-small.png", pair.low[0].movedim(0, -1).numpy())
        for name, model in models.items():
            result = model(pair.low)
            rows[name].append(measure(result, pair, border=4, learned={}))
            write_image(out / f"{pair.name}-{name}.png", result[0].movedim(0, -1).numpy())
    comparison_sheet(out / "comparison.png", pairs, models)
    return {name: {key: sum(row[key] for row in each) / len(each) for key in each[0]} for name, each in rows.items()}
