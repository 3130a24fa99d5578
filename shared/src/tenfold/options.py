"""Types of options and configuration fields: what is no number, out of range or huge is refused before any work.

Annotate a verb's parameter or a configuration's field with one of them: the command line, `--config` and presets check it, and so does
`tenfold.config.from_dict`. Without one, a number must still be finite and fit into 64 bits (see `check_number`).

Example:
    >>> @dataclass(frozen=True)  # doctest: +SKIP
    ... class TrainConfig:
    ...     learning_rate: Positive = 1e-4
    ...     seed: Seed = 0
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from cyclopts import Parameter

from tenfold.errors import UserError


def check_number(type_: Any, value: Any) -> None:  # cyclopts hands every validator the type
    """Refuse NaN, infinities and integers beyond 64 bits, alone or in tuples, lists, dictionaries and configurations.

    Raises:
        ValueError: one was met; of a configuration's field it says the name.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # The command line checks a configuration as one value: cyclopts hands default validators no fields.
        for name, each in vars(value).items():
            try:
                check_number(type_, each)
            except ValueError as error:
                raise ValueError(f"--{name.replace('_', '-')}: {error}") from None
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("is too large a number")
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for each in value:
            check_number(type_, each)


def _within(test: Callable[[Any], bool], rule: str) -> Parameter:
    def check(type_: Any, value: Any) -> None:
        check_number(type_, value)
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, int | float) and not test(each):
                raise ValueError(f"{each:g} is not {rule}")

    return Parameter(validator=check)


Positive = Annotated[float, _within(lambda value: value > 0, "above 0")]
"""A finite number above 0: a learning rate, a temperature, a scale."""

NonNegative = Annotated[float, _within(lambda value: value >= 0, "0 or above")]
"""A finite number that is not negative: a weight, a margin, a decay."""

Share = Annotated[float, _within(lambda value: 0 <= value <= 1, "from 0 to 1")]
"""A share, rate or probability."""

OpenShare = Annotated[float, _within(lambda value: 0 < value < 1, "between 0 and 1, without them")]
"""A share that is neither nothing nor everything: a momentum, a split."""

Count = Annotated[int, _within(lambda value: 1 <= value < 2**31, "a whole number from 1 to 2147483647")]
"""How many, at least one: epochs, pictures of a batch, pixels of a side."""

Size = Annotated[int, _within(lambda value: 0 <= value < 2**31, "a whole number from 0 to 2147483647")]
"""How many, perhaps none: workers, warm-up steps."""

Seed = Annotated[int, _within(lambda value: 0 <= value < 2**32, "a whole number from 0 to 4294967295")]
"""What random numbers start from: numpy takes no more than 32 bits."""


def check_fields(config: Any, source: str = "") -> None:
    """Check the numbers of a configuration dataclass against their types; call it from `__post_init__`.

    Args:
        config: the dataclass.
        source: what to call its origin in an error.

    Raises:
        UserError: names the first field out of range.
    """
    for name, hint in typing.get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        if value is None or dataclasses.is_dataclass(value):
            continue
        try:
            for check in _validators(hint) or [check_number]:
                check(hint, value)
        except ValueError as error:
            raise UserError(f"{source + ': ' if source else ''}{name}: {error}") from None


def _validators(hint: Any) -> list[Callable[[Any, Any], None]]:
    """The validators anywhere in a type, such as those of `Positive | None`."""
    own = [
        check
        for extra in getattr(hint, "__metadata__", ())
        if isinstance(extra, Parameter)
        for check in extra.validator  # its converter makes a tuple of it
    ]
    return own + [check for inner in typing.get_args(hint) for check in _validators(inner) if inner is not hint]
