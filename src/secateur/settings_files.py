"""Settings in YAML from anyone: plain values only, of bounded size, without tricks.

YAML can name Python objects to make, say a value a billion times by a few aliases of aliases, hold itself, and repeat a
key. Nothing of that is a setting.
"""

from collections import Counter
from pathlib import Path
from typing import Any

from secateur.errors import ConfigError, MissingExtra

MAX_BYTES = 2**18  # of a file of settings
MAX_VALUES = 100_000  # that it may hold, when everything that aliases stand for is spelled out


def read_settings(path: str | Path) -> Any:
    """What a YAML file holds: text, numbers, truth values, dates, and lists and mappings of them.

    Raises:
        ConfigError: it is missing, too large, no YAML, or asks for more than values; the message says what.
        MissingExtra: PyYAML is not installed.
    """
    yaml = yaml_module()
    place = repr(str(path))
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError(f"there is no settings file {place}. A run writes one as config.yaml") from error
    except OSError as error:
        raise ConfigError(f"can't read the settings in {place}: {error}") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{place} is larger than {MAX_BYTES:,} bytes: that is no file of settings")
    try:
        return _values(yaml, data.decode("utf-8"))
    except (ValueError, OverflowError, RecursionError, yaml.YAMLError) as error:
        said = "values lie too deep in each other" if isinstance(error, RecursionError) else error
        raise ConfigError(f"can't read the settings in {place}: {' '.join(str(said).split())}") from error


def _values(yaml: Any, text: str) -> Any:
    """The values in a text, once it is known how many they are."""
    loader = yaml.SafeLoader(text)  # makes no objects: a tag of Python's is an error
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(yaml, node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(yaml: Any, node: Any, known: dict[int, int]) -> int:
    """How many values a node stands for, aliases spelled out.

    Raises:
        ValueError: they are too many, a node holds itself, or a key is repeated.
    """
    at = id(node)
    if at in known:
        if not known[at]:
            raise ValueError(f"the value in line {node.start_mark.line + 1} holds itself")
        return known[at]
    known[at] = 0  # at work
    parts: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
        _check_keys(yaml, node)
    elif isinstance(node, yaml.SequenceNode):
        parts = list(node.value)
    known[at] = 1 + sum(_count(yaml, part, known) for part in parts)
    if known[at] > MAX_VALUES:
        raise ValueError(f"its aliases stand for more than {MAX_VALUES:,} values: write out what is meant")
    return known[at]


def _check_keys(yaml: Any, node: Any) -> None:
    """Refuse a key that stands there twice: readers differ in which of the two they take."""
    keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
    twice = [key for key, times in keys.items() if times > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} stand there more than once: keep one of each")


def yaml_module() -> Any:
    """PyYAML.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtra("PyYAML", "cli", "reading and writing YAML") from error
    return yaml
