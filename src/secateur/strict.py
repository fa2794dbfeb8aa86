"""Reading files of anyone's: JSON without tricks, and its values by their kind and bounds.

What a file holds is checked before it is used: these functions raise ValueError on the first value that is not what it
has to be, and whoever reads a whole object says what object that was.
"""

import json
import math
import reprlib
from pathlib import Path
from typing import Any, cast

from secateur.errors import ArtifactError

MAX_JSON = 256 * 2**20  # bytes of JSON that are read


def read_json(file: Path, what: str = "") -> dict[str, Any]:
    """The JSON object in a file; see `parse`.

    Raises:
        ArtifactError: it can't be read.
    """
    return parse(read_text(file, what), str(file), what)


def read_text(file: Path, what: str = "") -> str:
    """A text file of bounded size.

    Args:
        what: what it should be, for errors: "plan".

    Raises:
        ArtifactError: it can't be read.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise ArtifactError(f"{file} is larger than {MAX_JSON} bytes")
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{file} can't be read{_as(what)}: {error}") from error


def parse(text: str, place: str, what: str = "") -> dict[str, Any]:
    """A JSON object of bounded size; repeated keys, and numbers that JSON does not have, are refused.

    Args:
        place: where the text is from, for errors.
        what: what it should be, for errors: "plan".

    Raises:
        ArtifactError: it can't be read.
    """
    try:
        if len(text) > MAX_JSON:
            raise ArtifactError(f"{place} is larger than {MAX_JSON} bytes")
        data: Any = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{place} can't be read{_as(what)}: {error}") from error
    if not isinstance(data, dict):
        raise ArtifactError(f"{place} is JSON, but no {what}" if what else f"{place} holds no JSON object")
    return cast("dict[str, Any]", data)


def whole(value: Any, least: int | None = None, most: int | None = None) -> int:
    """A whole number, and no truth value.

    >>> whole(3, 0, 8)
    3
    """
    if type(value) is not int or (least is not None and value < least) or (most is not None and value > most):
        bounds = "" if least is None and most is None else f"{_bound('from', least)}{_bound('to', most)}"
        raise ValueError(f"{reprlib.repr(value)} is no whole number{bounds}")
    return value


def number(value: Any, least: float, most: float) -> float:
    """A number within bounds, and no truth value."""
    if type(value) not in (int, float) or not least <= value <= most:
        raise ValueError(f"{reprlib.repr(value)} is no number from {least:g} to {most:g}")
    return float(value)


def text(value: Any, most: int | None = None) -> str:
    """A text of at most so many characters."""
    if not isinstance(value, str):
        raise ValueError(f"{reprlib.repr(value)} is no text")
    if most is not None and len(value) > most:
        raise ValueError(f"{reprlib.repr(value)} has more than {most} characters")
    return value


def items(value: Any, most: int | None = None) -> list[Any]:
    """A list of at most so many items."""
    if not isinstance(value, list):
        raise ValueError(f"{reprlib.repr(value)} is no list")
    found = cast("list[Any]", value)
    if most is not None and len(found) > most:
        raise ValueError(f"a list of {len(found)} items, where at most {most} can be")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a key is repeated")
    return found


def _finite(text: str) -> float:
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text} is no number of JSON")
    return number


def _as(what: str) -> str:
    return f" as a {what}" if what else ""


def _bound(word: str, bound: int | None) -> str:
    return "" if bound is None else f" {word} {bound}"
