"""Numbers out of range are refused on the command line, in TOML and in Python."""

import math
from dataclasses import dataclass
from typing import Any

import pytest

from tenfold.config import from_dict
from tenfold.errors import UserError
from tenfold.options import Count, NonNegative, OpenShare, Positive, Seed, Share, Size, check_fields, check_number


@dataclass(frozen=True)
class Choices:
    rate: Positive = 0.1
    weight: NonNegative = 0.0
    share: Share = 0.5
    momentum: OpenShare = 0.9
    epochs: Count = 1
    workers: Size = 0
    seed: Seed = 0
    widths: tuple[Count, ...] = (1,)
    limit: Positive | None = None
    plain: float = -1.0
    whole: int = -1

    def __post_init__(self) -> None:
        check_fields(self)


BAD: list[tuple[str, Any]] = [
    *((name, value) for name in ("rate", "weight", "share", "momentum", "limit", "plain") for value in (math.nan, math.inf)),
    *((name, -1) for name in ("epochs", "workers", "seed")),
    *((name, 10**23) for name in ("epochs", "workers", "seed", "whole")),
    *((name, -1.0) for name in ("rate", "weight", "share", "momentum", "limit")),
    ("rate", 0.0),
    ("share", 1.01),
    ("momentum", 1.0),
    ("momentum", 0.0),
    ("epochs", 0),
    ("seed", 2**32),
    ("widths", (3, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UserError, match=f"^{name}: "):
        Choices(**{name: value})
    with pytest.raises(UserError, match=name):
        from_dict({name: value}, Choices, "file.toml")


def test_the_limits_themselves_are_fine() -> None:
    chosen = Choices(weight=0, share=1, epochs=1, workers=0, seed=2**32 - 1, limit=None)
    assert (chosen.limit, chosen.share) == (None, 1)


def test_numbers_inside_other_values() -> None:
    for value in ([1.0, math.nan], {"a": math.inf}, (1, (2, 10**30))):
        with pytest.raises(ValueError, match="number"):
            check_number(None, value)
    check_number(None, ["text", b"bytes", None, True, {"a": (1, 2.5)}])


def test_unknown_keys_name_the_nearest() -> None:
    with pytest.raises(UserError, match="unknown epoch; did you mean epochs"):
        from_dict({"epoch": 3}, Choices, "file.toml")
