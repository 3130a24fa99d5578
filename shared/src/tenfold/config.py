"""Configurations: frozen dataclasses, TOML presets, TOML files.

A configuration is a frozen dataclass whose fields are documented in its `Attributes:` section; the command line shows
them as options. A preset is a TOML file in the package's `presets/` folder. Keys at the top of a file apply to every verb of
the command line, a table named after a verb holds that verb's.
"""

import dataclasses
import difflib
from collections.abc import Collection
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from tenfold.errors import UserError
from tenfold.reading import parse_toml

Config = TypeVar("Config")


def to_toml(config: Any) -> str:
    """Write a configuration dataclass as TOML; fields that are None are left out (TOML has no null)."""
    import tomli_w

    return tomli_w.dumps(_without_none(dataclasses.asdict(config)))


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_none(value) if isinstance(value, dict) else str(value) if isinstance(value, Path) else value
        for key, value in values.items()
        if value is not None
    }


def from_dict(values: dict[str, Any], cls: type[Config], source: str) -> Config:
    """Build a configuration from plain values, refusing unknown keys and wrong types.

    Args:
        values: as read from TOML or JSON.
        cls: the dataclass.
        source: what to call the origin in an error.

    Raises:
        UserError: an unknown key, a missing one, a value of another type (the message names all of them), or a number out
            of its range.
    """
    import cattrs

    from tenfold.options import check_fields

    unknown = sorted(map(str, values.keys() - {field.name for field in dataclasses.fields(cls)}))  # ty: ignore[invalid-argument-type]
    if unknown:
        known = [field.name for field in dataclasses.fields(cls)]  # ty: ignore[invalid-argument-type]
        raise UserError(f"{source}: unknown {', '.join(unknown)}{nearest(unknown[0], known)}")

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _exact_int)
    converter.register_structure_hook(bool, _exact_bool)
    converter.register_structure_hook(float, _exact_float)
    converter.register_structure_hook(str, _exact_text)
    converter.register_structure_hook(Path, lambda value, _: Path(_exact_text(value, str)))
    converter.register_structure_hook_factory(
        lambda kind: get_origin(kind) is tuple and get_args(kind)[-1:] == (...,),
        lambda kind: partial(_exact_list, converter, get_args(kind)[0]),
    )
    converter.register_structure_hook_func(lambda kind: get_origin(kind) is Literal, _exact_choice)
    try:
        config = converter.structure(values, cls)
    except cattrs.BaseValidationError as error:
        own = error.split(UserError)[0]  # what a configuration's own checks said
        if own is not None:
            raise UserError(f"{source}: {_first(own)}") from None
        said = cattrs.transform_error(error, path="", format_exception=_fault)
        faults = "; ".join(said).replace(" @ .", " for ").replace(" @ ", "")
        raise UserError(f"{source}: {faults}") from None
    check_fields(config, source)
    return config


def _first(group: BaseExceptionGroup) -> BaseException:
    """The first error in a group of groups."""
    inner = group.exceptions[0]
    return _first(inner) if isinstance(inner, BaseExceptionGroup) else inner


def _exact_int(value: Any, _: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{value!r} is not a whole number")
    return value


def _exact_bool(value: Any, _: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is not true or false")
    return value


def _exact_float(value: Any, _: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value)


def _exact_text(value: Any, _: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _exact_list(converter: Any, kind: Any, value: Any, _: Any) -> tuple[Any, ...]:
    """A list, of which each element is of a kind; text would be taken letter by letter."""
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is not a list")
    return tuple(converter.structure(each, kind) for each in value)


def _exact_choice(value: Any, kind: Any) -> Any:
    choices = get_args(kind)
    if not any(value == choice and type(value) is type(choice) for choice in choices):
        raise ValueError(
            f"{value!r} is not one of {', '.join(map(str, choices))}{nearest(str(value), [*map(str, choices)])}"
        )
    return value


def _fault(error: BaseException, kind: Any) -> str:
    """What is wrong with a value, in the words of the checks above where one of them said it."""
    import cattrs.v

    return str(error) if type(error) is ValueError else cattrs.v.format_exception(error, kind)


def from_toml(text: str, cls: type[Config], source: str = "configuration") -> Config:
    """Read a configuration from TOML text; see `from_dict`."""
    return from_dict(parse_toml(text, source), cls, source)


def preset_names(package: str) -> list[str]:
    """The presets that a package ships, smallest name first."""
    folder = resources.files(package) / "presets"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def preset_values(package: str, name: str, verb: str) -> dict[str, Any]:
    """The values that preset `name` of `package` sets for `verb`.

    Raises:
        UserError: no such preset; the message lists the ones there are.
    """
    names = preset_names(package)
    if name not in names:
        raise UserError(f"--preset {name!r}: {package} has {', '.join(names)}{nearest(name, names)}")
    text = (resources.files(package) / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return for_verb(parse_toml(text, f"preset {name}"), verb)


def nearest(name: str, known: Collection[str]) -> str:
    """The end of an error about an unknown name: the known one that looks most like it, or nothing."""
    found = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def for_verb(values: dict[str, Any], verb: str) -> dict[str, Any]:
    """What a configuration file says about one verb: the top keys, then the verb's own table over them."""
    common = {key: value for key, value in values.items() if not isinstance(value, dict)}
    return common | values.get(verb, {})


def load_preset(package: str, name: str, cls: type[Config], verb: str = "train", **overrides: Any) -> Config:
    """Build the configuration of a preset, with single fields replaced.

    Example:
        >>> load_preset("fairfd", "tiny", TrainConfig, epochs=1)  # doctest: +SKIP
    """
    return from_dict(preset_values(package, name, verb) | overrides, cls, f"preset {name}")
