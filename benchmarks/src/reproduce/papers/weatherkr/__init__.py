"""What weatherkr is measured by (Cheng et al., IEEE TMM 2024)."""

from reproduce.claims import Suite
from reproduce.papers.weatherkr import sequence, shipped, speed

SUITE = Suite(
    "weatherkr",
    "One network learns to remove haze, then rain, then snow without forgetting, by replaying a few stored patches with the old network's answers and projected features.",
    experiments=(*sequence.EXPERIMENTS, *shipped.EXPERIMENTS),
    claims=(*sequence.CLAIMS, *shipped.CLAIMS),
    speeds=speed.SPEEDS,
)
"""Everything that `reproduce` runs for weatherkr."""
