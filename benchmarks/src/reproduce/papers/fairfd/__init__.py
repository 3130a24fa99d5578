"""What fairfd is measured by (Liu et al., AAAI 2025)."""

from reproduce.claims import Suite
from reproduce.papers.fairfd import drawn, planted, speed

SUITE = Suite(
    "fairfd",
    experiments=(*planted.EXPERIMENTS, *drawn.EXPERIMENTS),
    claims=(*planted.CLAIMS, *drawn.CLAIMS),
    speeds=speed.SPEEDS,
)
