"""Forgery approaches by name (paper, "Forgery Methods"): classical ones written here, neural ones from the user's weights or tools.

Each module registers its approaches when this package is imported. Forged faces of real persons are made for testing
detectors only: consent of the persons, and the licences of images, weights and tools, are the user's to obtain; every
forgery carries its provenance, PNG files also a mark.
"""

from fairfd.data.forgers import diffusion, external, gan_upsample, landmark_swap, region_edit, self_blend, warp_reenact
from fairfd.data.forgers.registry import (
    Forger,
    ForgeResult,
    SkippedFaceError,
    create_forger,
    forger_names,
    parameters_of,
    parse_approach,
    register_forger,
    summary_of,
)

__all__ = [
    "ForgeResult",
    "Forger",
    "SkippedFaceError",
    "create_forger",
    "diffusion",
    "external",
    "forger_names",
    "gan_upsample",
    "landmark_swap",
    "parameters_of",
    "parse_approach",
    "region_edit",
    "register_forger",
    "self_blend",
    "summary_of",
    "warp_reenact",
]
