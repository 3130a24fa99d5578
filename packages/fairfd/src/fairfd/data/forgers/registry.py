"""What a forgery approach is, and the register of the approaches by name (paper, "Forgery Methods")."""

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Float

from tenfold.errors import UserError


class SkippedFaceError(Exception):
    """This face cannot be forged this way; the message is the reason, which the builder counts."""


@dataclass(frozen=True)
class ForgeResult:
    """A forged face.

    Attributes:
        image: RGB in [0, 1], float32, the size of the base.
        mask: how far each pixel was replaced, in [0, 1]; None: all of the image.
        meta: what was drawn at random, for the record.
    """

    image: Float[np.ndarray, "h w 3"]
    mask: Float[np.ndarray, "h w"] | None = None
    meta: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Forger(Protocol):
    """A forgery approach.

    Attributes:
        name: its registered name.
        needs_landmarks: whether it skips faces without landmarks.
        deterministic: same inputs and generator state, same bytes.
    """

    name: ClassVar[str]
    needs_landmarks: ClassVar[bool]
    deterministic: ClassVar[bool]

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],
        base_lm: Float[np.ndarray, "k 2"] | None,
        driving_lm: Float[np.ndarray, "k 2"] | None,
        rng: np.random.Generator,
    ) -> ForgeResult:
        """Forge the base image.

        Args:
            base: the pristine image, RGB in [0, 1], float32.
            driving: image of the partner: of another person of the same group and split.
            base_lm: landmarks of the base in pixels x, y.
            driving_lm: landmarks of the driving image.
            rng: source of all randomness.

        Raises:
            SkippedFaceError: the face cannot be forged this way.
        """
        ...


Class = TypeVar("Class", bound=type)

_FORGERS: dict[str, Callable[..., Forger]] = {}


def register_forger(name: str) -> Callable[[Class], Class]:
    """Class decorator: make a forger available to `build` under `name`.

    The attributes `needs_landmarks` and `deterministic` default to True, `version` to "1". Parameters are dataclass
    fields (or constructor arguments with defaults), so that they can be recorded and set by name.

    Raises:
        UserError: the name is "real", not a plain word, or taken by another class.
    """
    if name == "real" or not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise UserError(f"{name!r} cannot name a forger: a word of letters, digits, _ . -, and not 'real'")

    def register(forger: Class) -> Class:
        taken = _FORGERS.get(name)
        if taken is not None and getattr(taken, "__qualname__", None) != forger.__qualname__:
            raise UserError(f"forger name {name!r} is taken by {taken}")
        for attribute, default in (("needs_landmarks", True), ("deterministic", True), ("version", "1")):
            if not hasattr(forger, attribute):
                setattr(forger, attribute, default)
        forger.name = name  # ty: ignore[missing-attribute]  # classes take any attribute
        _FORGERS[name] = forger
        return forger

    return register


def forger_names() -> tuple[str, ...]:
    """The registered names, sorted."""
    return tuple(sorted(_FORGERS))


def summary_of(name: str) -> str:
    """The first line of a forger's description."""
    return (_FORGERS[name].__doc__ or "").strip().split("\n")[0]


def create_forger(name: str, **parameters: Any) -> Forger:
    """Make a registered forger.

    Raises:
        UserError: unknown name or parameter, or a parameter that the forger refuses.
    """
    if name not in _FORGERS:
        raise UserError(f"approach {name!r} is not one of {', '.join(forger_names())}")
    try:
        return _FORGERS[name](**parameters)
    except TypeError as error:
        raise UserError(f"approach {name!r}: {error}") from error


def parse_approach(text: str) -> tuple[str, Forger]:
    """Read `[LABEL=]NAME[:key=value,...]`, e.g. `landmark_swap:blend=feather` or `SimSwap=external:command=...`.

    Values take the type of the parameter's default. The label, by default the name, is the approach in the manifest.

    Raises:
        UserError: not of this form, or unknown names.
    """
    found = re.fullmatch(r"(?:([A-Za-z][\w.-]*)=)?(\w+)(?::(.*))?", text, flags=re.DOTALL)
    if found is None:
        raise UserError(f"approach {text!r}: write NAME, NAME:key=value,... or LABEL=NAME:key=value,...")
    label, name, arguments = found.groups()
    parameters: dict[str, Any] = {}
    for part in re.split(r",(?=\w+=)", arguments) if arguments else ():
        key, separator, value = part.partition("=")
        if not separator:
            raise UserError(f"approach {text!r}: {part!r} is not key=value")
        parameters[key] = _typed(name, key, value)
    return label or name, create_forger(name, **parameters)


def _typed(name: str, key: str, value: str) -> Any:
    """The value in the type of the field's default."""
    forger = _FORGERS.get(name)
    defaults = {f.name: f.default for f in dataclasses.fields(forger)} if dataclasses.is_dataclass(forger) else {}
    default = defaults.get(key)
    try:
        if isinstance(default, bool):
            return {"true": True, "false": False}[value.lower()]
        return type(default)(value) if isinstance(default, int | float) else value
    except (ValueError, KeyError) as error:
        raise UserError(f"approach {name!r}: {key}={value!r} is not of type {type(default).__name__}") from error


def parameters_of(forger: Forger) -> dict[str, Any]:
    """The forger's parameters, for the record: its dataclass fields, or its public attributes."""
    if dataclasses.is_dataclass(forger) and not isinstance(forger, type):
        return {f.name: getattr(forger, f.name) for f in dataclasses.fields(forger) if not f.name.startswith("_")}
    return {name: value for name, value in vars(forger).items() if not name.startswith("_")}
