"""What tadsr is measured by (He et al., arXiv 2408.07476)."""

from reproduce.claims import Suite
from reproduce.papers.tadsr import speed, stripes, upscaling

SUITE = Suite(
    "tadsr",
    "A diffusion model that enlarges pictures in fifteen steps is distilled into one step that keeps its texture, by scores and a discriminator that know the time.",
    experiments=(*stripes.EXPERIMENTS, *upscaling.EXPERIMENTS),
    claims=(*stripes.CLAIMS, *upscaling.CLAIMS),
    speeds=speed.SPEEDS,
)
