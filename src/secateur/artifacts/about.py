"""What only the user knows of a result: its name, its licence, the data behind it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from secateur.errors import ArtifactError


@dataclass(frozen=True, kw_only=True)
class About:
    """For the model card of a saved result, and for its record; everything may be left out.

    Attributes:
        name: the model's name, the card's title.
        description: what it does, in Markdown.
        data: the data that it was trained and tested on, in words.
        licence: an identifier as the Hub has them: "apache-2.0", "cc-by-4.0".
        base_model: the dense model on the Hub: "timm/resnet50.a1_in1k".
        datasets: data sets on the Hub.
        tags: further tags.
        task: a pipeline tag of the Hub's: "image-classification".
        language: of a language model: ("en", "de").

    Example:
        >>> About(name="Half a LeNet", licence="mit").licence
        'mit'
    """

    name: str = ""
    description: str = ""
    data: str = ""
    licence: str = ""
    base_model: str = ""
    datasets: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    task: str = ""
    language: tuple[str, ...] = ()

    @staticmethod
    def of(about: "About | Mapping[str, Any] | None") -> "About":
        """Read a mapping with these names.

        Raises:
            ArtifactError: unknown names, or values of another type.
        """
        if about is None or isinstance(about, About):
            return about or About()
        known = [item.name for item in fields(About)]
        lists = {item.name for item in fields(About) if item.default == ()}
        made: dict[str, Any] = {}
        wrong: list[str] = []
        for name, value in about.items():
            items: Any = (value,) if isinstance(value, str) else value
            if name not in known:
                wrong.append(f"{name} is unknown")
            elif name not in lists:
                made[name] = value
                wrong += [] if isinstance(value, str) else [f"{name} is {value!r}, but must be text"]
            elif isinstance(items, list | tuple) and all(isinstance(item, str) for item in cast("list[Any]", items)):
                made[name] = tuple(cast("list[str]", items))
            else:
                wrong.append(f"{name} is {value!r}, but must be a list of texts")
        if wrong:
            raise ArtifactError(f"about={dict(about)!r}: {'; '.join(wrong)}. Known are {', '.join(known)}")
        return About(**made)

    def to_dict(self) -> dict[str, Any]:
        """What was given, as plain JSON data."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if v}
