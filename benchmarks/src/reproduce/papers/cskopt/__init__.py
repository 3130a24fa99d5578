"""Claims about centre-sensitive kernel optimisation: forgetting, plasticity, memory, and the controls that tie with it.

The paper's body and tables were not available to us: of its numbers only the abstracts' are known. What is claimed here is what
those sentences say, on a small experiment, beside the baselines that decide what they mean: last layer +
prototypes, nearest class mean, another kernel element, random channels.
"""

from reproduce.claims import Suite
from reproduce.papers.cskopt import generated, harder, intensity, memory, speed

MEASURED = (generated, harder, intensity, memory)

SUITE = Suite(
    "cskopt",
    "A network learns new classes on a device in a fraction of the memory when only the centres of its kernels are trained, in the null space of what it knows.",
    experiments=tuple(each for module in MEASURED for each in module.EXPERIMENTS),
    claims=tuple(each for module in MEASURED for each in module.CLAIMS),
    speeds=speed.SPEEDS,
)
