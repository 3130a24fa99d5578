"""The command-line conventions that all ten packages share (built on cyclopts).

A verb is a function with a docstring; its dataclass parameters become options. Every command line answers `--help` with
examples, `--version`, `info`, and leaves with 0 when all went well, 2 when the person at the keyboard can mend the mistake (one line
says how), 3 when a measured value broke a limit that was asked for or a file of a folder was skipped, 130 after Ctrl-C, 143 after SIGTERM.
`--debug` shows the traceback.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn

from cyclopts import App, CycloptsError, Parameter, config
from cyclopts.argument import ArgumentCollection

from tenfold.config import for_verb, nearest, preset_values
from tenfold.errors import UserError
from tenfold.options import check_number
from tenfold.reading import read_toml

EXIT_OK = 0
EXIT_USER_ERROR = 2
EXIT_LIMIT_BROKEN = 3
EXIT_SOME_SKIPPED = 3
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143

MESSAGE_LIMIT = 1000
"""Characters of an error line: what a file holds may be quoted in it."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which leaves a resumable run as Ctrl-C does."""


@dataclass(frozen=True)
class Paper:
    """The paper that a package implements.

    Attributes:
        title: full title.
        authors: `Family, Given` each.
        venue: where it appeared.
        year: when.
        url: where to read it.
    """

    title: str
    authors: tuple[str, ...]
    venue: str
    year: int
    url: str

    def bibtex(self) -> str:
        """A BibTeX entry."""
        key = f"{self.authors[0].split(',')[0].lower()}{self.year}{self.title.split()[0].lower()}"
        fields = {
            "title": f"{{{self.title}}}",
            "author": " and ".join(self.authors),
            "booktitle": self.venue,
            "year": str(self.year),
            "url": self.url,
        }
        lines = ",\n".join(f"  {name} = {{{value}}}" for name, value in fields.items())
        return f"@inproceedings{{{key},\n{lines}\n}}"


@Parameter(name="*")
@dataclass(frozen=True)
class RunOptions:
    """What every verb that starts a run understands.

    Attributes:
        out: The run folder to make.
        preset: Where unset options come from: a preset that the package ships.
        config: A TOML file whose values go before the preset's, such as the config.toml of an earlier run.
        device: auto, cpu, cuda, cuda:1, mps.
        resume: Continue the run in --out if it was interrupted.
    """

    out: Path
    preset: str = "small"
    config: Path | None = None
    device: str = "auto"
    resume: bool = False


def create_app(package: str, summary: str, paper: Paper) -> App:
    """The command line of a package, with `info`, `--version`, `--debug`, presets and one-line errors in place.

    Args:
        package: the distribution, import and command name.
        summary: what it does, in a sentence.
        paper: what it implements.
    """
    app = App(
        name=package,
        help=f"{summary}\n\nPaper: {paper.title} ({paper.venue} {paper.year}).",
        help_epilogue=f"`{package} VERB --help` explains a verb and shows examples.",
        help_format="plaintext",
        version=lambda: importlib.metadata.version(package),
        config=_fill_from_files(package),
        # No option takes NaN, infinity or a number beyond 64 bits; types of `tenfold.options` say more.
        default_parameter=Parameter(validator=check_number),
        # Errors are printed by `one_line_errors`: a console would break the line at the terminal's width.
        print_error=False,
        exit_on_error=False,
        suppress_keyboard_interrupt=False,
    )

    @app.command
    def info() -> None:
        """Show versions, devices, the paper and how to cite it."""
        print(describe(package, paper))

    # The meta app does not inherit this: Ctrl-C must reach `one_line_errors`.
    app.meta.suppress_keyboard_interrupt = False

    @app.meta.default
    def launch(
        *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
        debug: Annotated[bool, Parameter(negative=())] = False,  # noqa: ARG001  # `run` looks for it before parsing
    ) -> Any:
        """Run a verb.

        Args:
            tokens: the verb and its arguments.
            debug: Show the traceback of an error.
        """
        return app(tokens, result_action="return_value")

    return app


def verb(app: App, *examples: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as a verb whose help ends with examples that run as printed.

    A verb that takes `RunOptions` and is refused before anything has happened leaves no run folder behind.

    Example:
        >>> @verb(app, "fairfd metrics scores.csv")  # doctest: +SKIP
        ... def metrics(scores: Path) -> None: ...
    """
    epilogue = "Examples:\n" + "\n".join(f"  $ {example}" for example in examples)

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            from tenfold.runs import refused_without_trace

            with contextlib.ExitStack() as stack:
                for value in (*args, *kwargs.values()):
                    if isinstance(value, RunOptions):
                        stack.enter_context(refused_without_trace(value.out))
                return function(*args, **kwargs)

        app.command(call, help_epilogue=epilogue)
        return function

    return register


def examples_of(app: App) -> dict[str, list[str]]:
    """The examples that each verb's help shows, for tests that run them."""
    found = {}
    for name in app:
        if not name.startswith("-"):
            lines = (app[name].help_epilogue or "").splitlines()
            found[name] = [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]
    return found


def run(app: App, arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command line made by `create_app` and leave the process with what the verb returned, if that is a number."""
    tokens = sys.argv[1:] if arguments is None else list(arguments)

    def show(message: Warning | str, *_: object) -> None:
        print(f"{app.name[0]}: warning: {' '.join(str(message).split())}", file=sys.stderr)

    warnings.showwarning = show  # ty: ignore[invalid-assignment]  # documented as replaceable, typed as a constant
    with one_line_errors(app.name[0], debug="--debug" in tokens), sigterm_interrupts():
        code = app.meta(tokens, result_action="return_value")
    sys.exit(code if isinstance(code, int) else EXIT_OK)


@contextlib.contextmanager
def sigterm_interrupts() -> Generator[None]:
    """Let SIGTERM end the block as Ctrl-C does; children that it forks end at once, as without this."""
    owner = os.getpid()

    def leave(number: int, _: Any) -> None:
        if os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


@contextlib.contextmanager
def one_line_errors(name: str, debug: bool) -> Generator[None]:
    """Turn what the person at the keyboard can mend into one line on stderr and exit code 2, Ctrl-C into exit code 130.

    Args:
        name: of the program, put before the line.
        debug: let the traceback through.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        print(f"{name}: interrupted; what had finished is kept", file=sys.stderr)
        sys.exit(EXIT_TERMINATED if isinstance(error, _Terminated) else EXIT_INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone (`| head`): not our error. Keep the interpreter's last flush quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_OK)
    except (UserError, CycloptsError, OSError, RuntimeError) as error:
        # Up to Python 3.12 a link that leads back to itself is a RuntimeError of `Path.resolve`, and has no type of its own.
        is_ours = not isinstance(error, RuntimeError) or str(error).startswith("Symlink loop")
        if debug or not is_ours:
            raise
        print(f"{name}: {_one_line(error)}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _one_line(error: BaseException) -> str:
    named = isinstance(error, OSError) and error.filename is not None
    text = f"{error.filename}: {error.strerror}" if named else str(error)
    line = " ".join(text.split()) or type(error).__name__
    return line if len(line) <= MESSAGE_LIMIT else f"{line[:MESSAGE_LIMIT]} ..."


def _fill_from_files(package: str) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    """Give the options that were not typed the values of `--config`, then of `--preset`, before their own defaults."""

    def fill(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        current = commands[-1] if commands else ""
        file, preset = _option(arguments, "--config"), _option(arguments, "--preset")
        try:
            for source, values in (
                (file, _verb_values(app, read_toml(Path(file)), current, arguments, file) if file is not None else {}),
                (f"preset {preset}", preset_values(package, preset, current) if preset is not None else {}),
            ):
                config.Dict(values, source=str(source), use_commands_as_keys=False)(app, commands, arguments)
        except UserError as error:
            raise CycloptsError(msg=str(error)) from None

    return fill


def _verb_values(
    app: App, values: dict[str, Any], current: str, arguments: ArgumentCollection, source: str
) -> dict[str, Any]:
    """What a file says about a verb; tables that are no verb and keys that are no option are refused.

    Raises:
        UserError: names the unknown table or key, and the known one that looks most like it.
    """
    verbs = {name for each in (app, *(app.app_stack.current_frame)) for name in each if not name.startswith("-")}
    options = {name.removeprefix("--").replace("-", "_") for each in arguments for name in each.names}
    shown = {name for name in options if not name.startswith("no_")}
    for key, value in values.items():
        if isinstance(value, dict) and key not in verbs:
            raise UserError(f"{source}: unknown table [{key}]{nearest(key, verbs)}")
    for key in for_verb(values, current):
        if key.replace("-", "_") not in options:
            raise UserError(f"{source}: {current} has no option {key}{nearest(key.replace('-', '_'), shown)}")
    return for_verb(values, current)


def _option(arguments: ArgumentCollection, name: str) -> str | None:
    for argument in arguments:
        if argument.name == name:
            if argument.tokens:
                return argument.tokens[0].value
            default = argument.field_info.default
            return str(default) if isinstance(default, str | Path) else None
    return None


def describe(package: str, paper: Paper) -> str:
    """What `info` prints: versions, devices, the paper, how to cite it."""
    import torch

    from tenfold.runs import has_fast_bf16, pick_device

    device = pick_device()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    rows = {
        package: importlib.metadata.version(package),
        "tenfold": importlib.metadata.version("tenfold"),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "device": f"{device} ({name}, {'fast' if has_fast_bf16(device) else 'no fast'} bf16)",
        "paper": f"{paper.title}, {paper.venue} {paper.year}",
        "read it": paper.url,
    }
    width = max(map(len, rows))
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows.items()) + f"\n\n{paper.bibtex()}"
