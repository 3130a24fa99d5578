"""Models by their name on the Hugging Face Hub, at a commit that is said."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tenfold.errors import UserError

FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What a model consists of; pickled weights are never fetched."""


def model_folder(model: str | Path, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """The folder of a model: a local one as it is, a Hub name fetched into the cache.

    The commit that is used is printed on stderr, so that a result can be made again.

    Args:
        model: a folder, or a Hub name such as `owner/name`.
        revision: branch, tag or commit of the Hub; its main branch when None.
        files: patterns of the files to fetch.

    Raises:
        UserError: neither a folder nor a model that can be fetched.
    """
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise UserError(f"{model}: is a folder; --revision is for models of the Hub")
        return folder
    if folder.exists():
        raise UserError(f"{model}: is a file; name a model folder or a model of the Hub")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        raise UserError(f"{model}: no such folder, and no name of a model on the Hub (owner/name)")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = Path(snapshot_download(str(model), revision=revision, allow_patterns=list(files)))
    except HFValidationError:
        raise UserError(f"{model}: no such folder, and no name of a model on the Hub (owner/name)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{model}: no such folder, and cannot be fetched from the Hub ({reason})") from None
    print(f"{model}: commit {found.name}", file=sys.stderr)  # noqa: T201  # whoever reads a log wants to know
    return found
