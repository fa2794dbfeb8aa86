"""The run through a checkpoint: block after block loaded, pruned, written, and run to give the next one its inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor, nn

from secateur import digests
from secateur.calibration.batches import Batch
from secateur.errors import ArtifactError
from secateur.memory import release
from secateur.progress import progress_bar
from secateur.sparsity.layers import Layer, check_weights
from secateur.sparsity.pruning import How
from secateur.sparsity.streaming import journal
from secateur.sparsity.streaming.activations import Activations, activations
from secateur.sparsity.streaming.block import Pruning, advanced, prune_block
from secateur.sparsity.streaming.capturing import Capture, Given, output_of
from secateur.sparsity.streaming.checkpoint import Checkpoint
from secateur.sparsity.streaming.output import Output
from secateur.sparsity.streaming.sharing import Group
from secateur.sparsity.streaming.skeleton import Skeleton
from secateur.sparsity.streaming.tensors import Entry
from secateur.tracing.surroundings import quiet_backends


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be done.

    Attributes:
        skeleton: the model without its weights.
        blocks: its blocks, by path, in order.
        layers: the weights that are pruned, by name.
        how, remove: how; and how many numbers of each go, None where a threshold says it.
        batches: the calibration data of this process.
        total: how many batches there are, over all processes.
        where: activations are kept in "memory" or on "disk".
    """

    skeleton: Skeleton
    blocks: Sequence[tuple[str, nn.Module]]
    layers: Mapping[str, Layer]
    how: How
    remove: Mapping[str, int] | None
    batches: Sequence[Batch]
    total: int
    where: str

    @property
    def source(self) -> Checkpoint:
        """The checkpoint."""
        return self.skeleton.checkpoint


class Call:
    """A block run on what it is given for one batch.

    Args:
        batch: of the data.
        given: what the block gets beside the activations.
        hidden: where the activations are.
        path: of the block, for errors.
    """

    def __init__(self, batch: Batch, given: Given, hidden: Activations, path: str) -> None:
        self.number, self.given = batch.number, batch.given
        self._given, self._hidden, self._path = given, hidden, path

    def run(self, model: nn.Module) -> Tensor:
        """The block's output."""
        return output_of(self._given.run(model, self._hidden.get(self.number)), self._path)


class Runner:
    """Carries a task out, from where the journal says that it stands.

    Args:
        task: what is to be done.
        folder: of the unfinished run.
        done: its journal.
        group: the processes.
    """

    def __init__(self, task: Task, folder: Path, done: journal.Journal, group: Group) -> None:
        self.task, self.folder, self.done, self.group = task, folder, done, group
        self.output = Output(task.source, folder / "checkpoint")
        self.hidden = activations(task.where, folder, group.rank)
        self.given: list[list[Given]] = []

    def run(self) -> None:
        """All of it."""
        task = self.task
        try:
            with quiet_backends(task.skeleton.model), progress_bar("Block", len(task.blocks), counted=True) as step:
                self._begin()
                if len(self.done.blocks) < len(task.blocks):
                    self._capture()
                for number in range(len(task.blocks)):
                    if number < len(self.done.blocks):
                        self._again(number)
                    else:
                        self._block(number)
                    step()
        finally:
            task.skeleton.empty()
            self.hidden.close()

    def _begin(self) -> None:
        """The files, and all in them that lies outside the blocks."""
        if not self.done.begun and self.group.main:
            self.output.prepare()
            inside = {e.name for path, block in self.task.blocks for e in self._entries(path, block).values()}
            for entry in self.task.source.entries.values():
                if entry.name not in inside:
                    self.output.copy(entry)
            self.output.sync(self.task.source.files)
            self.done.begun = True
            self.done.write(self.folder)
        self.group.wait()

    def _capture(self) -> None:
        """What comes to the first block, and what else is given to each."""
        capture = Capture(self.task.skeleton, self.task.blocks)
        for batch in self.task.batches:
            found = capture(batch)
            self.hidden.put(batch.number, found.hidden)
            self.given.append(found.given)
        self.task.skeleton.empty()
        release()

    def _calls(self, number: int) -> list[Call]:
        path = self.task.blocks[number][0]
        return [
            Call(batch, given[number], self.hidden, path)
            for batch, given in zip(self.task.batches, self.given, strict=True)
        ]

    def _block(self, number: int) -> None:
        """Prune a block, write it, and go through it."""
        task = self.task
        path, block = task.blocks[number]
        task.skeleton.load(path, block)
        layers = self._layers(path, block)
        check_weights({layer.name: layer for layer in layers.values()})
        release()
        work = Pruning(how=task.how, remove=task.remove, group=self.group, batches=task.total)
        prune_block(block, layers, self._calls(number), work)
        if self.group.main:
            self._write(path, block, layers, work)
        release()
        self._go_through(number)

    def _layers(self, path: str, block: nn.Module) -> dict[str, Layer]:
        """The weights of a block that is loaded, by their names within it."""
        found: dict[str, Layer] = {}
        for name, layer in self.task.layers.items():
            if name.startswith(f"{path}."):
                local = name.removeprefix(f"{path}.")
                found[local] = replace(layer, parameter=block.get_parameter(local))
        return found

    def _entries(self, path: str, block: nn.Module) -> dict[str, Entry]:
        """Where the tensors of a block lie, by full name."""
        return {n: e for n, e in self.task.skeleton.entries.items() if n.startswith(f"{path}.")}

    def _write(self, path: str, block: nn.Module, layers: Mapping[str, Layer], work: Pruning) -> None:
        entries = self._entries(path, block)
        for name, entry in entries.items():
            local = name.removeprefix(f"{path}.")
            if local in layers and name in work.done:
                self.output.write(entry, layers[local].parameter)
            else:
                self.output.copy(entry)
        self.output.sync({entry.file.name for entry in entries.values()})
        rows = list(work.done.values())
        self.done.blocks.append(
            journal.Entry(path=path, digest=self._digest(path, block), rows=rows, left=dict(work.left))
        )
        self.done.write(self.folder)

    def _digest(self, path: str, block: nn.Module) -> str:
        held = dict(block.named_parameters(remove_duplicate=False))
        return digests.of_tensors({n: t for n, t in held.items() if f"{path}.{n}" in self.task.skeleton.entries})

    def _again(self, number: int) -> None:
        """Go through a block that was pruned in an earlier life, unless there is nothing behind it."""
        if len(self.done.blocks) == len(self.task.blocks) or not self.task.batches:
            return
        path, block = self.task.blocks[number]
        self.task.skeleton.load(path, block, self.output.place)
        if self._digest(path, block) != self.done.blocks[number].digest:
            raise ArtifactError(
                f"{path} in {str(self.folder)!r} is not what was written there: the unfinished run was damaged. Start "
                "anew with overwrite"
            )
        self._go_through(number)

    def _go_through(self, number: int) -> None:
        """Activations before a block become those behind it; then it is let go of."""
        if number + 1 < len(self.task.blocks):
            for call in self._calls(number):
                self.hidden.put(call.number, advanced(self.task.blocks[number][1], call))
        self.task.skeleton.empty()
        release()
