"""What a detector's outputs mean: logit or probability, and which way is fake. Knows tensors only."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tenfold import UserError

HeadKind = Literal["logit", "probability", "logits", "probabilities"]
"""One logit or one sigmoid probability; two logits or two probabilities that sum to one."""

SQUASHING = ("Sigmoid", "Softmax")
LINEAR = ("Addmm", "Mm", "Linear", "Convolution", "LogSoftmax")
"""Operations, as autograd names them, whose result is a probability; and those whose result is none."""

PASSING = ("View", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "ToCopy", "Transpose", "Permute", "T")
"""Operations that keep the values: what matters lies before them."""

ENOUGH = 4
"""Faces whose values in [0, 1] are taken for probabilities where no operation tells."""


def last_operation(output: Tensor) -> str | None:
    """The last operation that made these values, as autograd names it; None where there is no graph."""
    node = output.grad_fn
    while node is not None:
        name = type(node).__name__.split("Backward")[0].removeprefix("Unsafe").removeprefix("_")
        if name not in PASSING and not name.startswith("ReshapeAlias"):
            return name
        node = node.next_functions[0][0] if node.next_functions else None
    return None


def head_kind(output: Float[Tensor, "b k"], operation: str | None) -> HeadKind:
    """How outputs are to be read.

    Two outputs are probabilities when each row sums to one. One output is a logit as soon as a value lies outside [0, 1];
    inside, the last operation decides, and where nothing is known of it, the values of enough faces.

    Args:
        output: of some faces.
        operation: what made them, from `last_operation`.

    Raises:
        UserError: two sigmoid outputs that are no pair of real and fake; one output that can be read both ways.
    """
    inside = bool(((output >= 0) & (output <= 1)).all())
    squashed = operation is not None and operation.startswith(SQUASHING)
    if output.shape[1] == 2:
        if inside and bool(((output.sum(1) - 1).abs() <= 1e-3).all()):
            return "probabilities"
        if squashed:
            raise UserError(
                "its two outputs are probabilities that do not sum to one: real and fake exclude each other"
            )
        return "logits"
    if not inside or (operation is not None and operation.startswith(LINEAR)):
        return "logit"
    if squashed or len(output) >= ENOUGH:
        return "probability"
    raise UserError(
        f"its output lies in [0, 1] on {len(output)} faces and may be a logit or a probability:"
        " say which with Detector(head=), or give more faces"
    )


def check_kind(kind: HeadKind, output: Float[Tensor, "b k"], operation: str | None) -> None:
    """Refuse a reading that outputs contradict.

    Raises:
        UserError: they do.
    """
    single = kind in ("logit", "probability")
    if single != (output.shape[1] == 1):
        raise UserError(f"head {kind!r} was said, and it has {output.shape[1]} outputs")
    inside = bool(((output >= 0) & (output <= 1)).all())
    if kind.startswith("logit") and operation is not None and operation.startswith(SQUASHING):
        raise UserError(f"head {kind!r} was said, and its last operation ({operation}) gives probabilities")
    if kind.startswith("probabilit") and not inside:
        low, high = float(output.min()), float(output.max())
        raise UserError(f"head {kind!r} was said, and its outputs go from {low:.3g} to {high:.3g}")


def pair_of_logits(output: Float[Tensor, "b k"], kind: HeadKind, fake_index: int) -> Float[Tensor, "b 2"]:
    """Logits of real and fake whose softmax is the detector's probability.

    Args:
        output: as it comes.
        kind: how it is read.
        fake_index: of two outputs the one that means fake; of one output 1 when high means fake, 0 when high means real.
    """
    tiny = torch.finfo(output.dtype).tiny
    if kind == "probability":
        output = output.clamp(min=tiny).log() - (1 - output).clamp(min=tiny).log()
    elif kind == "probabilities":
        output = output.clamp(min=tiny).log()
    if output.shape[1] == 1:
        return torch.cat([torch.zeros_like(output), output if fake_index == 1 else -output], 1)
    return output if fake_index == 1 else output.flip(1)


@dataclass(frozen=True)
class Calibration:
    """What labelled faces say of the order of real and fake.

    Attributes:
        faces: how many there were.
        auc: chance that a fake scores above a real face (ties count half); NaN without both.
        order: kept or reversed where the scores tell real from fake; undecided where they do not, or the faces are few.
    """

    faces: int
    auc: float
    order: Literal["kept", "reversed", "undecided"]


def calibrate(score: Float[Tensor, " n"], labels: Int64[Tensor, " n"]) -> Calibration:
    """Whether scores that should be high on fakes are high on real faces instead.

    The order is decided when the area under the ROC curve is below 0.3 or above 0.7 and chance is ruled out by the
    Mann-Whitney statistic (|z| > 2.58, which needs five faces of each kind at least): a weak detector is not turned round.

    Args:
        score: logit of fake minus logit of real.
        labels: 0 real, 1 fake.
    """
    fake: Bool[Tensor, " n"] = labels == 1
    above, below = score[fake].double(), score[~fake].double()
    m, n = len(above), len(below)
    if not m or not n:
        return Calibration(m + n, float("nan"), "undecided")
    wins = (above[:, None] > below).double() + (above[:, None] == below).double() / 2
    auc = float(wins.mean())
    z = (auc - 0.5) * m * n / (m * n * (m + n + 1) / 12) ** 0.5
    if abs(auc - 0.5) < 0.2 or abs(z) < 2.58:
        return Calibration(m + n, auc, "undecided")
    return Calibration(m + n, auc, "kept" if auc > 0.5 else "reversed")
