"""Configurations: frozen dataclasses, TOML presets, TOML files.

A configuration is a frozen dataclass whose fields are documented in its `Attributes:` section; the command line shows
them as options. A preset is a TOML file in the package's `presets/` folder. Keys at the top of a file apply to every verb of
the command line, a table named after a verb holds that verb's.
"""

import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from tenfold.errors import UserError

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
        UserError: an unknown key, a missing one, or a value of another type; the message names all of them.
    """
    import cattrs

    converter = cattrs.Converter(forbid_extra_keys=True)
    converter.register_structure_hook(int, _exact_int)
    converter.register_structure_hook(bool, _exact_bool)
    converter.register_structure_hook(float, _exact_float)
    try:
        return converter.structure(values, cls)
    except cattrs.BaseValidationError as error:
        faults = "; ".join(cattrs.transform_error(error, path="")).replace(" @ .", " for ").replace(" @ ", "")
        raise UserError(f"{source}: {faults}") from None


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


def from_toml(text: str, cls: type[Config], source: str = "configuration") -> Config:
    """Read a configuration from TOML text; see `from_dict`."""
    return from_dict(parse_toml(text, source), cls, source)


def parse_toml(text: str, source: str) -> dict[str, Any]:
    """Parse TOML, turning a syntax error into one line that names `source`."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{source}: not valid TOML ({error})") from None


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, turning a missing or undecodable file into one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot read ({getattr(error, 'strerror', None) or 'not UTF-8 text'})") from None
    return parse_toml(text, str(path))


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
        raise UserError(f"--preset {name}: {package} has {', '.join(names)}")
    text = (resources.files(package) / "presets" / f"{name}.toml").read_text(encoding="utf-8")
    return for_verb(parse_toml(text, f"preset {name}"), verb)


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
