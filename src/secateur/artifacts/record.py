"""The record of a saved result (artifact.json): its format version, and what a file of anyone's has to look like."""

import re
from collections.abc import Mapping
from typing import Any, cast

from secateur import digests
from secateur.errors import ArtifactError

FORMAT, VERSION = "secateur", 3
PLAIN = 2  # the version of a record whose files hold no packed tensors: older secateurs read it
READ = (1, 2, 3)  # versions that this secateur reads
RECORD, PLAN, CARD = "artifact.json", "plan.json", "README.md"
MODEL, PROBE = "model.safetensors", "probe.safetensors"
FILES = (MODEL, PLAN, PROBE)  # that every result has
PACKED = (MODEL, "removed.safetensors")  # whose tensors may be packed
MAX_STEPS = 10_000  # of a history, or changes of an architecture

_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}\.(safetensors|json)")
_SINCE_2: dict[str, Any] = {
    "about": {},
    "parent": None,
    "importance": None,
    "seed": None,
    "data": None,
    "figures": {},
    "history": [],
}


def is_file_name(name: Any) -> bool:
    """Whether a result may have a file of this name beside its record: no path leads anywhere else."""
    return isinstance(name, str) and name != RECORD and _FILE.fullmatch(name) is not None


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its own hash."""
    bare = {key: value for key, value in record.items() if key != "sha256"}
    return {**bare, "sha256": digests.of_json(bare)}


def checked(record: dict[str, Any], place: str) -> dict[str, Any]:
    """A record that is whole and well formed, brought to the newest version.

    Raises:
        ArtifactError: it is of another format or version, was altered, or holds what no record holds.
    """
    version = record.get("version")
    if record.get("format") != FORMAT or type(version) is not int or version not in READ:
        raise ArtifactError(
            f"{place} is of format {record.get('format')!r}, version {version!r}; this "
            f"secateur reads {FORMAT!r}, version {VERSION}"
        )
    if version >= 2 and seal(record)["sha256"] != record.get("sha256"):
        raise ArtifactError(
            f"{place} is not the record that was saved: it was truncated or altered. Copy it again from where it "
            f"was made."
        )
    full = {**_SINCE_2, **record} if version == 1 else record
    wrong = [key for key, fits in _FORM.items() if key not in full or not fits(full[key])]
    if wrong:
        raise ArtifactError(f"{place} is no record of a saved result: {', '.join(wrong)} missing or malformed")
    return full


# ---------------------------------------------------------------------- what each entry looks like


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in cast("list[Any]", value))


def _maps_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, str) for item in cast("dict[str, Any]", value).values())


def _is_build(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict)
        and value.keys() == {"callable", "args"}
        and isinstance(value["callable"], str)
        and isinstance(value["args"], dict)
    )


def _are_objects(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(cast("list[Any]", value)) <= MAX_STEPS
        and all(isinstance(item, dict) for item in cast("list[Any]", value))
    )


def _is_history(value: Any) -> bool:
    return _are_objects(value) and all(
        isinstance(step.get("step"), str) and isinstance(step.get("figures"), dict | None) for step in value
    )


def _are_files(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and all(name in value for name in FILES)
        and all(is_file_name(name) and _is_fingerprint(entry) for name, entry in value.items())
    )


def _is_fingerprint(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"sha256", "bytes"}
        and isinstance(value["sha256"], str)
        and type(value["bytes"]) is int
    )


_FORM = {
    "class": _is_text,
    "build": _is_build,
    "graph": lambda value: value is None or isinstance(value, dict),
    "earlier": _are_objects,
    "aliases": _maps_texts,
    "parameters": _are_texts,
    "frozen": _are_texts,
    "probe": _is_object,
    "about": _is_object,
    "parent": lambda value: isinstance(value, str | None),
    "importance": lambda value: isinstance(value, str | None),
    "seed": lambda value: value is None or type(value) is int,
    "data": lambda value: isinstance(value, str | None),
    "figures": lambda value: (
        isinstance(value, dict) and all(isinstance(column, dict | None) for column in value.values())
    ),
    "history": _is_history,
    "files": _are_files,
}
