"""How much a server trusts its clients: the options, which a configuration repeats as fields of its own."""

from dataclasses import dataclass
from typing import Literal

from tenfold.errors import UserError

Aggregation = Literal["mean", "median", "trimmed-mean"]


@dataclass(frozen=True)
class Safeguards:
    """What limits the harm of a client that is broken or means ill.

    Attributes:
        aggregation: `mean` weighs clients by their samples. `median` and `trimmed-mean` count every client once, value by value, and
            survive a minority of clients that lie within all bounds; they need at least three clients to do more than the mean.
        trim: share of the clients that `trimmed-mean` leaves out at each end, rounded up to a whole client.
        clip_norm: an update (what a client sends minus what it was sent) longer than this is shortened to it; 0 leaves it.
        max_update_norm: a reply whose update is longer than this is refused; 0 refuses none.
        max_samples: a client that says it has more samples is refused.
    """

    aggregation: Aggregation = "mean"
    trim: float = 0.2
    clip_norm: float = 0.0
    max_update_norm: float = 1e6
    max_samples: int = 10_000_000

    def __post_init__(self) -> None:
        if not 0 < self.trim < 0.5:
            raise UserError(f"--trim {self.trim:g}: must be above 0 and below 0.5, so that some clients are left")
        for name in ("clip_norm", "max_update_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name):g}: must be 0 or above")
        if self.max_samples < 1:
            raise UserError(f"--max-samples {self.max_samples}: must be at least 1")
