"""A process in which a package finds what it declares and nothing else. `test_isolation.py` starts and asks it.

Everything is installed in one environment here; what a package does not declare is hidden from `import` and from
`importlib.metadata`, as if it had been installed alone. Loading torch and its like takes longest: that is done once, and each
package is then looked at in a fork, where there are forks.

One JSON object a line on standard input, one on standard output:
`{"allowed": [distributions], "common": [distributions]}` begins a package, `{"call": name, ...}` asks, `{}` ends it.
"""

import contextlib
import importlib
import importlib.metadata
import json
import os
import pkgutil
import re
import runpy
import sys
import sysconfig
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FORKS = sys.platform == "linux"
SLOW = ("torch", "torchvision", "torchmetrics", "sklearn.cluster", "skimage.transform")
"""What takes longest to load, of what the shared package declares and every package thus may import."""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def modules_of(distribution: importlib.metadata.Distribution) -> set[str]:
    """The top-level modules that a distribution installs; of an editable one, those of the folder that it points to."""
    found = set()
    for file in distribution.files or ():
        first = file.parts[0]
        if len(file.parts) > 1 or file.suffix in {".py", ".so", ".pyd"}:
            found.add(first.split(".")[0])
        elif file.suffix == ".pth":
            folder = Path(str(file.locate())).read_text(encoding="utf-8").strip()
            if Path(folder).is_dir():
                found |= {each.stem for each in Path(folder).iterdir()}
    return found


# The list has no place for what is named after a machine, such as `_sysconfigdata__linux_x86_64-linux-gnu`.
STANDARD = sys.stdlib_module_names | {
    each.stem for each in Path(sysconfig.get_path("stdlib")).glob("_sysconfigdata*.py")
}


class OnlyDeclared:
    """A finder in the place of all others that finds the standard library and the modules of some distributions.

    Args:
        allowed: normalised names of the distributions.
        others: the finders that know how.
    """

    def __init__(self, allowed: set[str], others: Sequence[MetaPathFinder]) -> None:
        self.others = list(others)
        self.installed = {
            normal(each.metadata["Name"]): modules_of(each) for each in importlib.metadata.distributions()
        }
        self.allow(allowed)

    def allow(self, allowed: set[str]) -> None:
        self.allowed = allowed
        self.modules = STANDARD | {module for name in allowed & set(self.installed) for module in self.installed[name]}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """What the other finders find, or None as if it were not installed."""
        if name.split(".")[0] not in self.modules:
            return None
        specs = (each.find_spec(name, path, target) for each in self.others)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *args: Any, **kwargs: Any) -> Iterator[importlib.metadata.Distribution]:
        """The distributions that `importlib.metadata` may see."""
        for finder in self.others:
            for each in getattr(finder, "find_distributions", lambda *_, **__: ())(*args, **kwargs):
                if normal(each.metadata["Name"]) in self.allowed:
                    yield each

    def intruders(self) -> list[str]:
        """The modules that are loaded although they are hidden."""
        known = {module for modules in self.installed.values() for module in modules}
        return sorted({name.split(".")[0] for name in sys.modules} & known - self.modules - LOADED_BEFORE)


LOADED_BEFORE = {name.split(".")[0] for name in sys.modules}
"""What the interpreter's start-up has loaded, such as the import hooks of setuptools."""


def import_everything(package: str) -> dict[str, bool]:
    """Import every module of a package and every public name: whether each name is something to call."""
    module = importlib.import_module(package)
    for each in pkgutil.walk_packages(module.__path__, f"{package}."):
        if not each.name.endswith("__main__"):
            importlib.import_module(each.name)
    return {name: callable(getattr(module, name)) for name in module.__all__}


def run_command(package: str, arguments: list[str]) -> None:
    """Do what the installed command does."""
    sys.argv = [package, *arguments]
    scripts = importlib.metadata.entry_points(group="console_scripts", name=package)
    next(iter(scripts)).load()()


def run_module(package: str, arguments: list[str]) -> None:
    """Do what `python -m` does."""
    sys.argv = [package, *arguments]
    runpy.run_module(package, run_name="__main__", alter_sys=True)


CALLS: dict[str, Callable[..., Any]] = {each.__name__: each for each in (import_everything, run_command, run_module)}


@contextlib.contextmanager
def captured() -> Iterator[list[str]]:
    """Collect what is written to standard output and error, by subprocesses too."""
    texts: list[str] = []
    kept, streams = (os.dup(1), os.dup(2)), (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        try:
            yield texts
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = streams
            for number, was in enumerate(kept, start=1):
                os.dup2(was, number)
                os.close(was)
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode())


def answer(finder: OnlyDeclared, call: str, folder: str, **arguments: Any) -> dict[str, Any]:
    """Make a call in a folder: its value, its exit code, what it wrote."""
    os.chdir(folder)
    value, code = None, 0
    with captured() as texts:
        try:
            value = CALLS[call](**arguments)
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        except BaseException:  # noqa: BLE001  # whatever a package raises is the answer
            traceback.print_exc()
            code = 1
    out, err = texts
    return {"value": value, "code": code, "out": out, "err": err, "intruders": finder.intruders()}


def serve_package(finder: OnlyDeclared, requests: Iterable[str], replies: Any) -> None:
    """Answer until the package's end."""
    for line in requests:
        request = json.loads(line)
        if not request:
            return
        replies.write(json.dumps(answer(finder, **request)) + "\n")
        replies.flush()


def serve() -> None:
    """Answer until there is nothing more to ask."""
    # Unbuffered: a fork reads on where its parent stopped.
    requests = iter(lambda: read_line(0), "")
    replies = os.fdopen(os.dup(1), "w")
    finder: OnlyDeclared | None = None
    for line in requests:
        request = json.loads(line)
        if finder is None:
            finder = OnlyDeclared(set(request["common"]), sys.meta_path)
            sys.meta_path[:] = [finder]
            if FORKS:
                for name in SLOW:
                    importlib.import_module(name)
        pid = os.fork() if FORKS else 0
        if pid:
            os.waitpid(pid, 0)
            continue
        finder.allow(set(request["allowed"]))
        serve_package(finder, requests, replies)
        if FORKS:
            os._exit(0)


def read_line(descriptor: int) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(descriptor, 1)
        if not piece:
            break
        line += piece
    return line.decode()


if __name__ == "__main__":
    serve()
