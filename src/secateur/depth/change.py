"""A change of depth: which blocks went, and which ones came in. Plain data to be saved and done again."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from secateur import strict
from secateur.errors import ArtifactError
from secateur.origins import Attribute

VERSION = 1
KIND = "depth"
MOST = 1024  # blocks that one change may drop, or insert
MOST_SETTINGS = 2**20
LARGEST = 2**31  # of an int that is set
LONGEST = 512  # characters of a path
SIDES = ("", "before", "after")


@dataclass(frozen=True, kw_only=True)
class Insertion:
    """A block or a layer that computes the identity at first.

    Attributes:
        after: path of the module that it comes after.
        kind: "block": a copy of ``like`` of which some parameters are zero; "layer": an identity of the kind, width and
            kernel of ``like``, a convolution or a linear layer.
        like: path of a module.
        silenced: of a block, the parameters that are zero, by their names in it.
        relu: of a layer, on which side of it a ReLU comes along: "before", "after", or "" for none.
        wrap: ``after`` is called by its name, so that a sequence of it and the new one takes its place.
    """

    after: str
    kind: Literal["block", "layer"]
    like: str
    silenced: tuple[str, ...] = ()
    relu: str = ""
    wrap: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerList:
    """A list with an item for each block of a sequence, such as ``config.layer_types``.

    Attributes:
        module, name: where it is, as in an `Attribute`.
        container: path of the sequence.
        before: how long it was.
    """

    module: str
    name: str
    container: str
    before: int


@dataclass(frozen=True, kw_only=True)
class DepthChange:
    """Which blocks are dropped, what is inserted, and what else has to change in the model for that.

    All paths but those in ``settings`` are those of the model as it was before.

    Attributes:
        dropped: paths of the blocks that go.
        inserted: what comes in.
        settings: ints on modules and their configs, by their sites after the change: numbers of layers, and indices of
            layers.
        lists: lists with an item for each block.
        model: name of the class.
        rewrites: always empty: the class stays.
    """

    dropped: tuple[str, ...] = ()
    inserted: tuple[Insertion, ...] = ()
    settings: tuple[tuple[Attribute, int], ...] = ()
    lists: tuple[LayerList, ...] = ()
    model: str = ""
    rewrites: tuple[str, ...] = ()

    def apply(
        self,
        model: nn.Module,
        *,
        compensate: str | None = None,
        data: Iterable[Any] | None = None,
    ) -> nn.Module:
        """The model of another depth, as a new module; the one given is untouched.

        Args:
            model: one of the architecture that the change was made for, with any weights.
            compensate: how the weights that stay make up for blocks that go: "lstsq", "mean" or "auto", as in
                `secateur.shorten`; it needs ``data``. None leaves them as they are.
            data: batches for that, without labels.

        Raises:
            SurgeryError: it is of another architecture.
            PlanError: an unknown way to compensate, or no data for it.
            DataError: data that the model does not take.
        """
        from secateur.depth.carrying import apply
        from secateur.depth.compensating import compensate_blocks_, way

        how = way(compensate, data)
        changed = apply(self, model)
        if how is not None and data is not None and self.dropped:
            compensate_blocks_(model, changed, self, data, how=how)
        return changed

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data."""
        return {
            "kind": KIND,
            "version": VERSION,
            "model": self.model,
            "dropped": list(self.dropped),
            "inserted": [{**vars(spec), "silenced": list(spec.silenced)} for spec in self.inserted],
            "settings": [
                {"module": s.module, "attribute": s.name, "index": s.index, "before": s.value, "value": value}
                for s, value in self.settings
            ],
            "lists": [vars(spec) for spec in self.lists],
            "rewrites": [],
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "DepthChange":
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it is no change of depth, or one of another version, or larger than any that is real.
        """
        if data.get("version") != VERSION:
            raise ArtifactError(
                f"a change of depth of version {data.get('version')!r}; this secateur reads version {VERSION}"
            )
        try:
            dropped = tuple(_path(p) for p in strict.items(data["dropped"], MOST))
            if len(set(dropped)) != len(dropped):
                raise ValueError("a block is dropped twice")
            return DepthChange(
                dropped=dropped,
                inserted=tuple(_insertion(spec) for spec in strict.items(data["inserted"], MOST)),
                settings=tuple(_setting(spec) for spec in strict.items(data["settings"], MOST_SETTINGS)),
                lists=tuple(_layer_list(spec) for spec in strict.items(data["lists"], MOST)),
                model=strict.text(data["model"], LONGEST),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"not a change of depth that secateur wrote: {type(error).__name__}: {error}"
            ) from error


def _insertion(data: Mapping[str, Any]) -> Insertion:
    kind, relu, wrap = data["kind"], data["relu"], data["wrap"]
    if kind not in ("block", "layer") or relu not in SIDES or type(wrap) is not bool:
        raise ValueError(f"an insertion of kind {kind!r}, relu {relu!r}, wrap {wrap!r}")
    silenced = tuple(_path(name) for name in strict.items(data["silenced"], 4 * MOST))
    if (kind == "block") != bool(silenced):
        raise ValueError("a block is silenced by some parameters, a layer by none")
    return Insertion(
        after=_path(data["after"]),
        kind=kind,
        like=_path(data["like"]),
        silenced=silenced,
        relu=relu,
        wrap=wrap,
    )


def _setting(data: Mapping[str, Any]) -> tuple[Attribute, int]:
    index = data["index"]
    site = Attribute(
        _path(data["module"], empty=True),
        _attribute(data["attribute"]),
        None if index is None else _size(index),
        _size(data["before"]),
    )
    return site, _size(data["value"])


def _layer_list(data: Mapping[str, Any]) -> LayerList:
    return LayerList(
        module=_path(data["module"], empty=True),
        name=_attribute(data["name"]),
        container=_path(data["container"], empty=True),
        before=_size(data["before"]),
    )


def _path(value: Any, *, empty: bool = False) -> str:
    """A path to a module or a parameter: names with dots between them, none of Python's own."""
    parts = strict.text(value, LONGEST).split(".") if value != "" or not empty else []
    if any(not part or part.startswith("__") for part in parts):
        raise ValueError(f"{value!r} is no path")
    return ".".join(parts)


def _attribute(value: Any) -> str:
    """A path to a value on a module or a config: identifiers and numbers with dots between them."""
    path = _path(value)
    if not all(part.isidentifier() or part.isdecimal() for part in path.split(".")):
        raise ValueError(f"{value!r} is no path to an attribute")
    return path


def _size(value: Any) -> int:
    """A size, or an index, that a layer could have."""
    return strict.whole(value, 1 - LARGEST, LARGEST - 1)
