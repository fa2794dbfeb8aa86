"""The package huggingface_hub, and its errors in words that say what to do."""

import importlib
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from secateur.errors import HubError, MissingExtra, SecateurError


def package() -> Any:
    """The package huggingface_hub.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise MissingExtra("huggingface_hub", "hub", "the Hugging Face Hub") from error


@contextmanager
def reaching(doing: str) -> Generator[None]:
    """Whatever goes wrong between here and the Hub becomes a HubError.

    Args:
        doing: what is being done, as in "uploading to user/name".
    """
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        yield
    except SecateurError:
        raise
    except Exception as error:
        advice = next((text for name, text in ADVICE if _is(errors, error, name)), "")
        said = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:300]
        raise HubError(f"{doing} failed: {advice or f'{type(error).__name__}: {said}'}") from error


def _is(errors: Any, error: Exception, name: str) -> bool:
    kind = getattr(errors, name, None)
    if name == "unauthorised":
        return getattr(getattr(error, "response", None), "status_code", None) in (401, 403)
    if name == "unreachable":
        return isinstance(error, ConnectionError | TimeoutError) or any(
            word in type(error).__name__ for word in ("Connect", "Timeout", "Proxy")
        )
    return isinstance(kind, type) and isinstance(error, kind)


LOG_IN = "log in with `hf auth login`, or pass token="
ADVICE = (  # the first that fits; subclasses before the classes that they are of
    ("HFValidationError", 'that is no name of a repository: write "user/name", with letters, digits, -, _ and .'),
    ("OfflineModeIsEnabled", "HF_HUB_OFFLINE forbids the network. Unset it, or give a directory on this machine"),
    ("IncompleteSnapshotError", "the copy on this machine is not whole. Load it again with a network"),
    (
        "LocalEntryNotFoundError",
        "it is not on this machine, and the Hub can't be reached. Check the network, or give a directory of a result",
    ),
    ("LocalTokenNotFoundError", f"nobody is logged in: {LOG_IN}"),
    ("GatedRepoError", f"its owner grants access by request. Ask for it on the repository's page, then {LOG_IN}"),
    ("RepositoryNotFoundError", f"there is no such repository, or it is private: check the name, or {LOG_IN}"),
    ("RevisionNotFoundError", "the repository has no such revision: give a branch, a tag or a commit that it has"),
    (
        "EntryNotFoundError",
        "it holds no result of secateur (there is no artifact.json, or a file that it names is missing)",
    ),
    ("unauthorised", f"the Hub does not allow it: {LOG_IN}, of an account that may"),
    ("unreachable", "the Hub can't be reached. Check the network and try again"),
)
