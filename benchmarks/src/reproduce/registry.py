"""Finding the suites: one folder in `reproduce.papers` for each package, read when that package is installed."""

import importlib
import importlib.util
import pkgutil
from dataclasses import replace

from reproduce import papers
from reproduce.claims import Suite
from tenfold import UserError


def suites(only: tuple[str, ...] = ()) -> list[Suite]:
    """The suites of the installed packages, in alphabetical order.

    Args:
        only: packages to keep; all when empty.

    Raises:
        UserError: a package named that is not installed or has no suite.
    """
    names = sorted(each.name for each in pkgutil.iter_modules(papers.__path__))
    here = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in only:
        if name not in here:
            raise UserError(f"--only {name}: not installed or without claims; there are {', '.join(here) or 'none'}")
    return [_suite(name) for name in here if not only or name in only]


def _suite(name: str) -> Suite:
    """The suite of a package, with its published protocol."""
    suite: Suite = importlib.import_module(f"reproduce.papers.{name}").SUITE
    published = importlib.import_module(f"reproduce.papers.{name}.protocol")
    return replace(
        suite,
        experiments=(*suite.experiments, published.PROTOCOL),
        claims=(*suite.claims, *published.CLAIMS),
    )
