"""Forgeries made elsewhere: a command run for each image, or a folder of finished images matched by name.

This is how the neural approaches of the paper (which are research codes of their own) enter a benchmark that keeps the
builder's guarantees: same partners, same sizes, same encoding.
"""

import shlex
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from fairfd.data.faces.crops import Square, central_square, cut
from fairfd.data.forgers.registry import ForgeResult, SkippedFaceError, register_forger
from tenfold.errors import UserError
from tenfold.images import IMAGE_SUFFIXES, ImageError, list_images, read_image, write_image

_PLACES = ("{base}", "{driving}", "{out}")


@register_forger("external")
@dataclass(frozen=True)
class External:
    """Run a command that reads the base and the driving image and writes the forgery.

    The command is split into words as a shell would and run without one; `{base}`, `{driving}` and `{out}` become file
    names (PNG). Example: `python swap.py --target {base} --source {driving} --output {out}`.

    Attributes:
        command: the command line; `{base}` and `{out}` must occur.
        timeout: seconds for one image.
    """

    needs_landmarks: ClassVar[bool] = False
    deterministic: ClassVar[bool] = False
    version: ClassVar[str] = "1"

    command: str = ""
    timeout: float = 600.0

    def __post_init__(self) -> None:
        try:
            words = shlex.split(self.command)
        except ValueError as error:
            raise UserError(f"external: command {self.command!r} cannot be split into words ({error})") from error
        if not words or not all(any(place in word for word in words) for place in ("{base}", "{out}")):
            raise UserError(f"external: command {self.command!r} must contain {{base}} and {{out}}")

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],
        driving: Float[np.ndarray, "h w 3"],
        base_lm: Float[np.ndarray, "k 2"] | None,  # noqa: ARG002  # the tool finds its own
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002  # the tool has its own randomness
    ) -> ForgeResult:
        """See `Forger`.

        Raises:
            UserError: the command cannot be started.
            SkippedFaceError: it failed, took too long, or wrote no image of the base's shape.
        """
        with tempfile.TemporaryDirectory(prefix="fairfd-") as folder:
            files = {place: Path(folder) / f"{place.strip('{}')}.png" for place in _PLACES}
            write_image(files["{base}"], base)
            write_image(files["{driving}"], driving)
            words = [_filled(word, files) for word in shlex.split(self.command)]
            try:
                subprocess.run(words, check=True, capture_output=True, timeout=self.timeout, stdin=subprocess.DEVNULL)
            except (FileNotFoundError, PermissionError) as error:
                raise UserError(f"external: cannot run {words[0]!r} ({error.strerror})") from error
            except subprocess.CalledProcessError as error:
                lines = error.stderr.decode(errors="replace").strip().splitlines()
                raise SkippedFaceError(f"command left with {error.returncode}: {lines[-1] if lines else ''}") from error
            except subprocess.TimeoutExpired as error:
                raise SkippedFaceError(f"command took more than {self.timeout:g} s") from error
            try:
                image = read_image(files["{out}"])
            except ImageError as error:
                raise SkippedFaceError("command wrote no readable {out}") from error
        return ForgeResult(_to_shape(image, base.shape), None, {"command": self.command})


@register_forger("finished_folder")
@dataclass(frozen=True)
class FinishedFolder:
    """Take finished forgeries from a folder; one belongs to a base image when their paths, or names, agree up to the suffix.

    Attributes:
        folder: where the forgeries lie.
    """

    needs_landmarks: ClassVar[bool] = False
    deterministic: ClassVar[bool] = True
    version: ClassVar[str] = "1"

    folder: str = ""
    _by_name: dict[str, Path | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        root = Path(self.folder)
        if not self.folder or not root.is_dir():
            raise UserError(f"finished_folder: {self.folder!r} is not a folder of forgeries")
        for path in list_images(root):
            below = path.relative_to(root).with_suffix("").as_posix()
            for name in {below, path.stem}:
                # A bare name that two files have says nothing.
                self._by_name[name] = None if name in self._by_name and name != below else path

    def find(self, base_image: str) -> Path:
        """The forgery of a base image, given by its path in the manifest.

        Raises:
            SkippedFaceError: there is none, or two files have the name.
        """
        name = (
            Path(base_image).with_suffix("") if Path(base_image).suffix.lower() in IMAGE_SUFFIXES else Path(base_image)
        )
        parts = name.parts
        for start in range(len(parts)):
            found = self._by_name.get("/".join(parts[start:]))
            if found is not None:
                return found
        raise SkippedFaceError(f"no finished forgery named {name.name}")

    def take(self, base_image: str, square: Square, picture: tuple[int, int], size: int) -> ForgeResult:
        """The finished forgery, framed as the base was.

        Args:
            base_image: path of the base in its manifest.
            square: the part of the base's picture that is used.
            picture: height and width of the base's picture; a forgery of these sizes is cut likewise.
            size: side of the result.
        """
        path = self.find(base_image)
        try:
            image = read_image(path)
        except ImageError as error:
            raise SkippedFaceError("unreadable forgery") from error
        forged = cut(image, square, size) if image.shape[:2] == picture else _to_shape(image, (size, size, 3))
        return ForgeResult(forged, None, {"file": path.name})

    def __call__(
        self,
        base: Float[np.ndarray, "h w 3"],  # noqa: ARG002  # no single image has a name
        driving: Float[np.ndarray, "h w 3"],  # noqa: ARG002
        base_lm: Float[np.ndarray, "k 2"] | None,  # noqa: ARG002
        driving_lm: Float[np.ndarray, "k2 2"] | None,  # noqa: ARG002
        rng: np.random.Generator,  # noqa: ARG002
    ) -> ForgeResult:
        """A finished forgery is found by name: the builder calls `take`."""
        raise UserError("finished_folder works by file name: use it in a build, not on single images")


def _filled(word: str, files: dict[str, Path]) -> str:
    for place, path in files.items():
        word = word.replace(place, str(path))
    return word


def _to_shape(image: Float[np.ndarray, "h w 3"], shape: tuple[int, ...]) -> Float[np.ndarray, "h2 w2 3"]:
    """Bring a forgery to the base's square size; another aspect ratio cannot belong to it.

    Raises:
        SkippedFaceError: not square like the base.
    """
    if image.shape == shape:
        return image
    height, width = image.shape[:2]
    if shape[0] != shape[1] or abs(height - width) > 1:
        raise SkippedFaceError(f"forgery of {width}x{height} for a base of {shape[1]}x{shape[0]}")
    return cut(image, central_square(height, width), shape[0])
