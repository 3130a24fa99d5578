"""The knowledge-intensity study (§3.1): at which kernel element new data pulls, raw and per use."""

from pathlib import Path

from reproduce.claims import Experiment, Measurement, claim, lower
from reproduce.papers.cskopt.sessions import train_config
from reproduce.papers.cskopt.words import ARMS, METRICS


def measure_intensity(seed: int, tier: str, folder: Path) -> Measurement:
    """Edge and corner elements against the centre (= 1), in the first and the last block, raw and per use."""
    import torch

    from cskopt.data.datasets import shapes_corpus
    from cskopt.demo import intensity_study
    from cskopt.evaluation.figures import plot_intensity

    torch.set_num_threads(1)
    size = (12, 60, 10) if tier == "smoke" else (20, 120, 10)
    config = train_config(
        seed=seed, class_seed=seed, base_classes=size[0] // 2, base_epochs=4 if tier == "smoke" else 10
    )
    study = intensity_study(shapes_corpus(*size, seed), config, torch.device("cpu"))
    relative = study.relative()
    plot_intensity({k: (m.raw.numpy(), m.per_use.numpy()) for k, m in study.maps.items()}, folder / "intensity.png")

    def block(prefix: str) -> dict[str, float]:
        rows = [values for name, values in relative.items() if name.startswith(prefix)]
        names = ("edge_raw", "corner_raw", "edge_per_use", "corner_per_use")
        return {name: sum(row[i] for row in rows) / len(rows) for i, name in enumerate(names)}

    return {"last block": block("blocks.3"), "first block": block("blocks.0")}


EXPERIMENTS = (
    Experiment(
        "intensity",
        "Knowledge intensity of edge and corner elements of the kernels against the centre's.",
        {"smoke": 1, "small": 5},
        measure_intensity,
        ARMS,
        METRICS,
    ),
)

CLAIMS = (
    claim(
        "cskopt/centre-is-most-sensitive-in-the-last-block",
        "The centre element has the highest knowledge intensity in deep layers.",
        lower("edge_raw", "last block", than=1.0),
        experiment="intensity",
        source="abstract; §3.1",
    ),
    claim(
        "cskopt/depth-makes-the-centre-stand-out",
        "The centre stands out more in deep layers than in early ones.",
        lower("corner_raw", "last block", than="first block"),
        experiment="intensity",
        source="§3.1",
    ),
    claim(
        "cskopt/centre-is-most-sensitive-per-use",
        "The centre is still the most sensitive element once padding is accounted for.",
        lower("edge_per_use", "last block", than=1.0),
        experiment="intensity",
        source="our control",
        remark="Divided by how often each element falls inside the map, the centre has no advantage left: zero padding makes it.",
    ),
)
