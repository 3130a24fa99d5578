"""Three-way guidance of instruction-following editors (Brooks et al., CVPR 2023, eq. 3)."""

from jaxtyping import Float
from torch import Tensor


def combine_guidance(
    e_text: Float[Tensor, "*s"],
    e_image: Float[Tensor, "*s"],
    e_uncond: Float[Tensor, "*s"],
    s_text: float,
    s_image: float,
) -> Float[Tensor, "*s"]:
    """e_uncond + s_image (e_image - e_uncond) + s_text (e_text - e_image).

    The coefficients sum to one, so noise, velocity and clean predictions are all combined rightly.

    Args:
        e_text: prediction with instruction and picture.
        e_image: prediction with the empty instruction and the picture.
        e_uncond: prediction with neither.
        s_text: instruction scale.
        s_image: picture scale.
    """
    return e_uncond + s_text * (e_text - e_image) + s_image * (e_image - e_uncond)
