"""What fairfd is measured by (Liu et al., AAAI 2025)."""

from reproduce.claims import Suite
from reproduce.papers.fairfd import drawn, planted, speed

SUITE = Suite(
    "fairfd",
    "How fair a forgery detector looks depends on how bias is averaged; measured for each kind of forgery, with its utility beside it, bias shows that pooled metrics hide.",
    experiments=(*planted.EXPERIMENTS, *drawn.EXPERIMENTS),
    claims=(*planted.CLAIMS, *drawn.CLAIMS),
    speeds=speed.SPEEDS,
)
