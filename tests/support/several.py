"""Training runs for the tests of several processes: ``python -m support.several NAME FOLDER``, under torchrun or not.

Each process writes what it ended with to ``FOLDER/NAME-RANK.pt``.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import TrainingError
from secateur.tuning import Callback, tune
from secateur.tuning.checkpoints import Checkpoints

ROOT = Path(__file__).parents[2]
RANK = int(os.environ.get("RANK", "0"))
LAST = int(os.environ.get("WORLD_SIZE", "1")) - 1 == RANK
Found = dict[str, Any]


def batches(sizes: tuple[int, ...] = (8, 5, 1), seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Three classes of points, in batches that divide evenly among no number of processes."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in sizes:
        labels = torch.randint(0, 3, (size,), generator=generator)
        found.append((torch.randn(size, 4, generator=generator) + 2 * torch.eye(3, 4)[labels], labels))
    return found


def net(*, norm: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3))


class Output(NamedTuple):
    logits: Tensor
    loss: Tensor | None


class Tied(nn.Module):
    """A language model in miniature: one table at both ends, a table that no state dict holds, and labels ignored."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("seen", torch.zeros((), dtype=torch.long), persistent=False)
        self.seen: Tensor

    def forward(self, tokens: Tensor, labels: Tensor | None = None) -> Any:
        if self.training:
            self.seen += 1
        scores = self.head(torch.tanh(self.mix(self.embed(tokens))))
        loss = None if labels is None else nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten())
        return Output(scores, loss)


def texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    found = []
    for size in (4, 3, 1):
        tokens = torch.randint(0, 7, (size, 5), generator=generator)
        labels = (tokens + 1) % 7
        labels[0, 1:] = -100
        if size == 4:
            labels[:2] = -100  # all that the first of two processes gets
        found.append({"tokens": tokens, "labels": labels})
    return found


class At(Callback):
    """Does something after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def after_step(self, run: Any) -> None:
        if run.step == self.step:
            self.act()


def ended(model: nn.Module, history: Any) -> Found:
    return {"state": {n: v.clone() for n, v in model.state_dict().items()}, "history": history.to_dict()}


def plain(folder: Path, **options: Any) -> Found:
    """Uneven batches, one smaller than the number of processes; accumulation, clipping, validation, best state."""
    model = net()
    settings: dict[str, Any] = {"epochs": 4, "lr": 0.05, "accumulate": 2, "clip": 0.3, "device": "cpu", "metric": "f1"}
    return ended(model, tune(model, batches(), batches((7, 1), seed=1), **{**settings, **options}))


def momentum(folder: Path) -> Found:
    return plain(folder, optimizer="sgd", accumulate=1, metric="auroc", epochs=2)


def lonely(folder: Path) -> Found:
    """Validation of which one process gets nothing."""
    model = net()
    history = tune(model, batches(), batches((1,), seed=1), epochs=1, lr=0.01, device="cpu", metric="accuracy")
    return ended(model, history)


def normed(folder: Path) -> Found:
    """Batch statistics, which hang on who sees what: all processes end with the same, the main one's."""
    model = net(norm=True)
    return ended(model, tune(model, batches((8, 6)), batches((8,), 1), epochs=3, lr=0.02, device="cpu"))


def attacked(folder: Path, method: Any = "pgd") -> Found:
    """Adversarial training, with batch norms."""
    from secateur.safety.adversarial import Adversarial

    model, settings = net(norm=True), Adversarial(method, eps=0.2, bounds=(-9.0, 9.0), steps=2)
    options: dict[str, Any] = {"epochs": 2, "lr": 0.05, "device": "cpu", "adversarial": settings}
    return ended(model, tune(model, batches((8, 6)), batches((7, 1), seed=1), **options))


def attacked_trades(folder: Path) -> Found:
    return attacked(folder, "trades")


def averaged(folder: Path) -> Found:
    model = net()
    return ended(model, tune(model, batches(), batches((7,), 1), epochs=2, lr=0.05, device="cpu", ema=0.5))


def sparse(folder: Path) -> Found:
    """Zeros that stay, masks that tighten, masks that change."""
    models = nn.ModuleList([sc.sparsify(net(), sparsity=0.5).model, net(), net()])
    added = ([], [sc.sparsity.GradualSparsity(0.5, end=5)], [sc.sparsity.StraightThrough(sc.NM(2, 4))])
    for model, callbacks in zip(models, added, strict=True):
        history = tune(model, batches(), batches((7,), 1), epochs=3, lr=0.05, device="cpu", callbacks=callbacks)
    return ended(models, history)


def sharded(folder: Path) -> Found:
    """What FSDP can't do."""
    said: list[str] = []
    for model, callbacks in (
        (sc.sparsify(net(), sparsity=0.5).model, []),
        (net(), [sc.sparsity.StraightThrough(sc.NM(2, 4))]),
    ):
        try:
            tune(model, batches(), epochs=1, lr=0.05, device="cpu", callbacks=callbacks)
        except TrainingError as error:
            said.append(str(error))
    return {"errors": said}


def tied(folder: Path) -> Found:
    model = Tied()
    found = ended(model, tune(model, texts(), texts(), epochs=3, lr=0.05, device="cpu", metric="perplexity"))
    assert model.head.weight is model.embed.weight
    return found | {"seen": int(model.seen)}


def hidden(folder: Path) -> Found:
    """A model whose output FSDP can't look into."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = net()

        def forward(self, x: Tensor) -> Any:
            return type("Opaque", (), {"logits": self.inner(x)})()

    try:
        model = Wrapped()
        return ended(model, tune(model, batches(), epochs=1, lr=0.05, device="cpu"))
    except TrainingError as error:
        return {"error": str(error)}


def kept(folder: Path) -> Found:
    """Checkpoints are written by one process."""
    written, save = [], Checkpoints.save

    def counted(self: Checkpoints, step: int, state: Any) -> Any:
        written.append(step)
        return save(self, step, state)

    Checkpoints.save = counted  # type: ignore[method-assign]
    try:
        return plain(folder, checkpoints=folder / "kept", every=3) | {"written": written}
    finally:
        Checkpoints.save = save  # type: ignore[method-assign]


def poisoned(folder: Path) -> Found:
    """The last sample of a batch, which goes to the last process, is NaN."""
    data = batches()
    data[1][0][-1] = float("nan")
    model = net()
    try:
        tune(model, data, batches(), epochs=1, lr=0.05, device="cpu")
    except TrainingError as error:
        return {"error": str(error)}
    raise AssertionError("NaN went unseen")


def unread(folder: Path) -> Found:
    """The loader of the last process raises."""

    class Loader(list[Any]):
        def __iter__(self) -> Any:
            for number, batch in enumerate(list.__iter__(self)):
                if number == 2 and LAST:
                    raise OSError("gone")
                yield batch

    try:
        tune(net(), Loader(batches()), epochs=2, lr=0.05, device="cpu", checkpoints=folder / "unread")
    except TrainingError as error:
        return {"error": str(error), "kept": [path.name for path in (folder / "unread").glob("step-*")]}
    raise AssertionError("the loader's error went unseen")


def apart(folder: Path) -> Found:
    """Each process reads batches of another size."""
    try:
        tune(net(), batches((8 + RANK, 4)), epochs=1, lr=0.05, device="cpu")
    except TrainingError as error:
        return {"error": str(error)}
    return {"error": ""}


def stopped(folder: Path) -> Found:
    """Ctrl-C in the last process."""

    def press() -> None:
        if LAST:
            os.kill(os.getpid(), signal.SIGINT)

    model = net()
    history = tune(model, batches(), epochs=3, lr=0.05, device="cpu", callbacks=[At(4, press)])
    return ended(model, history)


def long(folder: Path) -> Found:
    return plain(folder, epochs=6, checkpoints=folder / "long", every=1, callbacks=[At(0, None)])


def plain_long(folder: Path) -> Found:
    return plain(folder, epochs=6)


def killed(folder: Path) -> Found:
    """The same, cut off."""
    die = At(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
    return plain(folder, epochs=6, checkpoints=folder / "long", every=1, callbacks=[die])


class Slowly(Callback):
    """Takes its time, and says in a file how far it is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def after_step(self, run: Any) -> None:
        (self.folder / "reached.txt").write_text(str(run.step))
        time.sleep(0.05)


def signalled(folder: Path, callback: Callback | None = None) -> Found:
    """A run long enough for somebody to stop it."""
    return plain(
        folder,
        epochs=60,
        checkpoints=folder / "signalled",
        every="1h",
        callbacks=[callback or Slowly(folder)],
        metric=None,
    )


def worked(folder: Path) -> Found:
    """The same with processes that load the data, to which a terminal's Ctrl-C goes too."""
    from torch.utils.data import DataLoader, TensorDataset

    data = DataLoader(TensorDataset(*batches((64,))[0]), 2, shuffle=True, num_workers=2)
    model = net()
    options: dict[str, Any] = {"checkpoints": folder / "worked", "every": "1h", "callbacks": [Slowly(folder)]}
    return ended(model, tune(model, data, epochs=30, lr=0.01, device="cpu", **options))


def main() -> None:
    names, folder = sys.argv[1].split(","), Path(sys.argv[2])
    for name in names:
        torch.save(globals()[name](folder), folder / f"{name}-{RANK}.pt")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def environment(**more: str) -> dict[str, str]:
    """Of a child process: where the code is, one thread, no launcher's variables."""
    places = (ROOT / "src", ROOT / "tests", ROOT / "tests" / "support")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, places)), "OMP_NUM_THREADS": "1", **more}


def launch(
    names: str, folder: Path, processes: int = 2, launcher: str = "torchrun", **more: str
) -> subprocess.CompletedProcess[str]:
    """Run scenarios in several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    if launcher == "torchrun":
        start = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", f"--master_port={port}", "-m"]
    else:
        start = ["-m", "accelerate.commands.launch", "--cpu", f"--num_processes={processes}", "--num_machines=1"]
        start += ["--mixed_precision=no", "--dynamo_backend=no", "-m"]
    command = [sys.executable, *start, "support.several", names, str(folder)]
    child = subprocess.Popen(
        command,
        env=environment(**more),
        cwd=folder,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _, told = child.communicate(timeout=280)
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # the launcher's children too
        child.communicate()
        raise
    return subprocess.CompletedProcess(command, child.returncode, "", told)


def begin(name: str, folder: Path) -> subprocess.Popen[str]:
    """Run a scenario in a child process, with a group of processes of its own, until its third step."""
    command = [sys.executable, "-m", "support.several", name, str(folder)]
    child = subprocess.Popen(
        command, env=environment(), cwd=folder, text=True, start_new_session=True, stderr=subprocess.PIPE
    )
    reached = folder / "reached.txt"
    until = time.monotonic() + 120
    while not (reached.exists() and int(reached.read_text() or 0) >= 3):
        if child.poll() is not None or time.monotonic() > until:
            child.kill()
            raise AssertionError(f"the child did not get to its third step: {child.communicate()[1][-3000:]}")
        time.sleep(0.05)
    return child


def results(name: str, folder: Path, processes: int = 2) -> list[Found]:
    return [torch.load(folder / f"{name}-{rank}.pt") for rank in range(processes)]


if __name__ == "__main__":
    main()
