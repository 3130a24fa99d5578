"""What weatherkr is measured by (Cheng et al., IEEE TMM 2024)."""

from reproduce.claims import Suite
from reproduce.papers.weatherkr import sequence, shipped, speed

SUITE = Suite(
    "weatherkr",
    experiments=(*sequence.EXPERIMENTS, *shipped.EXPERIMENTS),
    claims=(*sequence.CLAIMS, *shipped.CLAIMS),
    speeds=speed.SPEEDS,
)
"""Everything that `reproduce` runs for weatherkr."""
