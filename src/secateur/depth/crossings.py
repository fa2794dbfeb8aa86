"""Where a weight can take over what blocks did that went: it makes the stream that they were given, as one in the last
of them makes the stream that they handed on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from secateur.calibration.sites import Done, Follows, Recorder
from secateur.calibration.watching import Key, running
from secateur.depth.streams import stream_in, stream_out
from secateur.tracing.running import tensors_in
from secateur.tracing.surroundings import quiet_backends


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Blocks that went, one right after the other, and what makes the streams at their ends.

    Attributes:
        gone: the blocks, in the order of the run.
        source, target: uses of weights in the original: the last one before these blocks, and the last one in them.
    """

    gone: tuple[str, ...]
    source: Key
    target: Key


@dataclass(frozen=True, kw_only=True)
class Crossings:
    """What one run of a model says of blocks that are to go.

    Attributes:
        found: where a weight can take over what blocks did.
        left: why none can for the other blocks.
        uses: all uses of weights, in order.
        shared: weights that are not for one use alone, with the reason.
    """

    found: tuple[Crossing, ...]
    left: dict[str, str]
    uses: tuple[Key, ...]
    shared: dict[str, str]


def find_crossings(model: nn.Module, call: Callable[[nn.Module], Any], dropped: Sequence[str]) -> Crossings:
    """Which weights can take over what blocks do that are to go.

    A weight can where its output is the stream that the blocks are given: as it is, after a batch norm or a bias, or
    summed with what is known before it; and then perhaps through operations on one tensor alone, such as a ReLU. The
    stream that the blocks hand on must come about in the same way, and nothing else may look at the one before.

    Args:
        model: the original.
        call: runs it on example inputs.
        dropped: blocks, each of which is called once.
    """
    copy = running(model)
    watch = Recorder(copy)
    passages = [_Passage(name, watch, copy.get_submodule(name)) for name in dropped]
    with quiet_backends(), torch.no_grad(), watch:
        output = call(copy)
    shared = watch.shared()
    ends = _Ends(watch, {watch.value_of(t) for t in tensors_in(output)}, tuple(dropped), shared)
    found: list[Crossing] = []
    left: dict[str, str] = {}
    for row in _rows(passages):
        crossing = ends.crossing(row)
        if isinstance(crossing, Crossing):
            found.append(crossing)
        else:
            first = row[0].name
            left |= {p.name: crossing if p.name == first else f"in a row with {first}: {crossing}" for p in row}
    return Crossings(found=tuple(found), left=left, uses=tuple(watch.at), shared=shared)


class _Passage:
    """A block's call: the values of the stream before and after it, and which operations ran meanwhile.

    Attributes:
        given, handed: numbers of the values; -1 where there is no stream.
        first, last: the operations from ``first`` up to ``last``.
    """

    def __init__(self, name: str, watch: Recorder, block: nn.Module) -> None:
        self.name, self.watch = name, watch
        self.given = self.handed = self.first = self.last = -1
        self._before: dict[int, int] = {}  # values of its inputs by their tensors' ids: a block may write to them
        block.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True)
        block.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        self._before = {id(t): self.watch.value_of(t) for t in tensors}
        self.first = self.watch.count

    def _leave(self, block: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        out = stream_out(output)
        stream = None if out is None else stream_in(args, kwargs, out)
        if out is not None and stream is not None:
            self.given, self.handed = self._before.get(id(stream), -1), self.watch.value_of(out)
        self.last = self.watch.count


def _rows(passages: Sequence[_Passage]) -> Iterator[list[_Passage]]:
    """Blocks that come right after each other, together."""
    ordered = sorted(passages, key=lambda p: p.first)
    row = ordered[:1]
    for before, after in pairwise(ordered):
        if after.given != before.handed:
            yield row
            row = []
        row.append(after)
    if row:
        yield row


@dataclass(frozen=True)
class _End:
    """What makes a stream: a use of a weight, what follows that, and the operations on one tensor after it."""

    key: Key
    follows: Follows
    through: tuple[str, ...]


@dataclass
class _Ends:
    """Finds what makes streams, in what was recorded of a run.

    Attributes:
        returned: values that the model returns.
        dropped: blocks that go.
        shared: weights that are not for one use alone, with the reason.
        makers: values that a weight makes, or the sum of what it gives and a stream, with that use.
    """

    watch: Recorder
    returned: set[int]
    dropped: tuple[str, ...]
    shared: dict[str, str]
    makers: dict[int, tuple[Key, Follows]] = field(default_factory=dict[int, tuple[Key, Follows]])

    def __post_init__(self) -> None:
        for key in self.watch.at:
            follows, value = self.watch.reach(key)
            if (follows.sum is None or follows.other is not None) and None in (follows.norm, follows.bias):
                self.makers[value] = key, follows

    def crossing(self, row: Sequence[_Passage]) -> Crossing | str:
        """Where a weight can take over what blocks in a row did; or why none can."""
        before, after = self._end(row[0].given), self._end(row[-1].handed)
        if isinstance(before, str):
            return f"what it was given {before}"
        if isinstance(after, str):
            return f"what it handed on {after}"
        why = self._unlike(before, after) or self._seen(row) or self._between(before.key, after.key)
        return why or Crossing(gone=tuple(p.name for p in row), source=before.key, target=after.key)

    def _end(self, value: int) -> _End | str:
        """What makes a value; or why that is no weight that can be refitted for its sake."""
        through: list[str] = []
        while value not in self.makers:
            made = self.watch.maker.get(value)
            if made is None:
                return "is an input of the model"
            op = self.watch.done[made[0]]
            if len(op.took) != 1 or len(op.gave) != 1:
                return f"comes out of {op.said.name}, not of a weight, or of its sum with what is known before it"
            value = op.took[0]
            if len(self.watch.users[value]) > 1:
                return f"comes out of {op.said.name}, and something else looks at what goes into that"
            through.append(_words(op))
        return _End(*self.makers[value], tuple(through))

    def _unlike(self, before: _End, after: _End) -> str:
        """Why two ends are not alike enough; empty where they are."""
        if before.through != after.through:
            ways = [" and ".join(reversed(end.through)) or "nothing" for end in (before, after)]
            return f"between the weight and the stream it was given there is {ways[0]}, in the block {ways[1]}"
        kinds = {self.watch.kinds[end.key] for end in (before, after)}
        if len(kinds) > 1 or before.follows.moves != after.follows.moves:
            return f"{before.key[0]}, before it, is another kind of layer than {after.key[0]}"
        if self._goes(before.key):
            return f"{before.key[0]}, before it, goes as well"
        if why := self.shared.get(before.key[0]):
            return f"{before.key[0]}, before it, has to stay as it is: {why}"
        return ""

    def _seen(self, row: Sequence[_Passage]) -> str:
        """Why the stream that blocks were given has to stay what it is; empty where it hasn't."""
        given = row[0].given
        outside = [n for n in self.watch.users.get(given, ()) if not row[0].first <= n < row[-1].last]
        if outside:
            return f"{self.watch.done[outside[0]].said.name}, outside of it, looks at what it was given"
        return "the model returns what it was given" if given in self.returned else ""

    def _between(self, source: Key, target: Key) -> str:
        """Which weight that stays is used between two others, and could not be refitted any more; empty for none."""
        first, last = (self.watch.at[key] for key in (source, target))
        between = [key for key, n in self.watch.at.items() if first < n < last and not self._goes(key)]
        return f"{between[0][0]} is used between {source[0]} and {target[0]}" if between else ""

    def _goes(self, key: Key) -> bool:
        return any(key[0].startswith(f"{name}.") for name in self.dropped)


def _words(op: Done) -> str:
    """An operation on one tensor with its settings."""
    settings = [f"{name}={value}" for name, value in op.arguments.items() if not isinstance(value, Tensor)]
    return f"{op.said.plain}({', '.join(settings)})"
