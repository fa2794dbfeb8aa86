"""Building a model without fetching anything: its weights come from the saved file."""

import inspect
import sys
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from secateur.errors import ArtifactError

# Arguments by which builders are asked for trained weights: torchvision's, timm's, and those of many others.
ASKING = ("weights", "weights_backbone", "pretrained", "pretrained_backbone", "checkpoint_path")
CONNECTING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def without_weights(args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a builder that ask for no trained weights: None, or False, where these did.

    A list of numbers that is called ``weights`` stays.

    >>> without_weights({"weights": "DEFAULT", "num_classes": 10, "pretrained": True})
    {'weights': None, 'num_classes': 10, 'pretrained': False}
    """
    return {name: _unasked(value) if name in ASKING else value for name, value in args.items()}


def without_defaults(target: Any, args: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by which a builder asks for no trained weights by itself, either, where it would by default.

    A name by default counts where the argument is called ``pretrained``, and is left alone in ``weights``, which may
    mean anything in code of the user's own.
    """
    try:
        known = inspect.signature(target).parameters
    except (TypeError, ValueError):
        return dict(args)
    defaults = {name: known[name].default for name in ASKING if name in known and name not in args}
    asking = {n: v for n, v in defaults.items() if not isinstance(v, str) or n.startswith("pretrained")}
    return {**args, **{n: new for n, value in asking.items() if (new := _unasked(value)) is not value}}


def _unasked(value: Any) -> Any:
    """The value in whose place nothing is fetched, where it is True, a name, or one of torchvision's enumerations."""
    if value is True:
        return False
    return None if isinstance(value, str) or hasattr(value, "get_state_dict") else value


class _Thread(threading.local):
    """What this thread may not do, in words; nothing in the others."""

    refusal: str = ""


_here = _Thread()
_lock = threading.Lock()
_listening: list[bool] = []


def _listen(event: str, args: tuple[Any, ...]) -> None:
    if event in CONNECTING and _here.refusal:
        raise ArtifactError(_here.refusal)


@contextmanager
def no_connections(what: str, consent: str) -> Generator[None]:
    """Whatever Python code in this thread opens a connection is refused, as long as the context lasts.

    Python's audit hooks say of each; one can't be taken away again, so the first use leaves one that does nothing.

    Args:
        what: the name of what builds the model, for the error.
        consent: what the user can do instead, for the error.

    Raises:
        ArtifactError: from what would connect.
    """
    with _lock:
        if not _listening:
            sys.addaudithook(_listen)
            _listening.append(True)
    before = _here.refusal
    _here.refusal = (
        f"{what}, which builds the model, would fetch something from the network, though all weights are in the saved "
        f"file. {consent}"
    )
    try:
        yield
    finally:
        _here.refusal = before
