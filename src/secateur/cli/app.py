"""The commands, and how each of them ends: with an exit code, and with words instead of a traceback."""

import os
import sys
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console
from rich.text import Text

from secateur.cli import views
from secateur.cli.saved import example_inputs, load_saved, saved_inputs
from secateur.cli.terminal import Terminal
from secateur.config import (
    CheckSettings,
    DataSettings,
    DenseSettings,
    GradualSettings,
    HintSettings,
    ModelSettings,
    PlaceSettings,
    PlanSettings,
    PruneSettings,
    ReplayDataSettings,
    ReplayOptions,
    ReplayRunSettings,
    ReplaySettings,
    RetrainedSettings,
    RunSettings,
    Settings,
    TrainSettings,
    TuneOptions,
    TuneRunSettings,
    TuneSettings,
)
from secateur.errors import SecateurError
from secateur.models import build_model
from secateur.plain import merged, parse_scalar, read_yaml

if TYPE_CHECKING:
    from secateur.runs.prune import Outcome
    from secateur.runs.tune import Tuned

FILE_WIDTH = 140
DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

Section = TypeVar("Section", bound=Settings)
_given: ContextVar[frozenset[str]] = ContextVar("_given", default=frozenset())


def _remember_given(app: App, commands: tuple[str, ...], arguments: Any) -> None:
    """Note which settings were given as flags: those win over a file."""
    _given.set(frozenset(argument.field_info.name for argument in arguments if argument.tokens))


def _default(value: Any) -> str | None:
    """A default as the help shows it; nothing for an empty one."""
    return None if value is None or value is False or value in ((), {}) else str(value)


def _version() -> str:
    from secateur import __version__

    return __version__


app = App(
    name="secateur",
    help="""Make trained neural networks smaller and faster by removing what contributes least, with proof.

Start with `secateur prune`: it trains a small network on embedded data, prunes it, proves the result, tunes it, and
writes a report.""",
    help_format="markdown",
    version=_version,
    config=[_remember_given],
    default_parameter=Parameter(negative=(), show_default=_default, consume_multiple=True),
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)

_MODEL = Parameter(name="*", group=Group("Model", sort_key=1))
_DATA = Parameter(name="*", group=Group("Data", sort_key=2))
_PLAN = Parameter(name="*", group=Group("What to remove", sort_key=3))
_GRADUAL = Parameter(name="*", group=Group("Bit by bit", sort_key=3.5))
_TRAIN = Parameter(name="*", group=Group("Training and fine-tuning", sort_key=4))
_RUN = Parameter(name="*", group=Group("Run", sort_key=5))
_MODEL_DEFAULT, _DATA_DEFAULT, _PLAN_DEFAULT = ModelSettings(), DataSettings(), PlanSettings()
_TRAIN_DEFAULT, _RUN_DEFAULT, _GRADUAL_DEFAULT = TrainSettings(), RunSettings(), GradualSettings()
_TUNE_DEFAULT, _DENSE_DEFAULT, _TUNE_RUN_DEFAULT = TuneOptions(), DenseSettings(), TuneRunSettings()
_CHECK = Parameter(name="*", group=Group("What to check", sort_key=3))
_CHECK_DEFAULT, _PLACE_DEFAULT = CheckSettings(), PlaceSettings()
_REPLAY = Parameter(name="*", group=Group("How the plan is carried out and judged", sort_key=3))
_RETRAINED_DEFAULT, _REPLAY_DATA_DEFAULT = RetrainedSettings(), ReplayDataSettings()
_REPLAY_DEFAULT, _REPLAY_RUN_DEFAULT = ReplayOptions(), ReplayRunSettings()
_OTHER = Parameter(group=Group("Run", sort_key=5))
_INPUT = Parameter(group=Group("Data", sort_key=2))


@app.command
def prune(
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    plan: Annotated[PlanSettings, _PLAN] = _PLAN_DEFAULT,
    bit_by_bit: Annotated[GradualSettings, _GRADUAL] = _GRADUAL_DEFAULT,
    training: Annotated[TrainSettings, _TRAIN] = _TRAIN_DEFAULT,
    run: Annotated[RunSettings, _RUN] = _RUN_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Train, prune, prove, tune, test, save and report, in one go.

    Without arguments it does all of this with the embedded example, in less than a minute. The result is a directory
    with the smaller network (model.safetensors, plan.json), the figures (report.json, report.html) and all settings
    (config.yaml).

    ```sh
    # the embedded example, down to a tenth of its parameters
    secateur prune --budget params=0.1 --out tenth

    # a network and data of your own
    secateur prune --model torchvision.models:resnet18 \\
        --model-args.num-classes 2 --weights trained.pt \\
        --data imagefolder:photos --budget macs=0.5

    # bit by bit, with training in between
    secateur prune --budget params=0.1 --schedule cubic --steps 8 --out gradual

    # an earlier run again, with one setting changed
    secateur prune --config secateur-run/config.yaml --seed 1 --out second
    ```

    Args:
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.prune import prune_run

    values = flag_values(model, data, plan, bit_by_bit, training, run)
    file = read_yaml(config) if config is not None else {}
    settings = merged(PruneSettings, values, _given.get(), file, str(config or "flags"))
    terminal = Terminal(_out())
    try:
        outcome = prune_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return _ended(outcome, settings.out)


@app.command
def tune(
    result: Annotated[Path, Parameter(group=Group("Model", sort_key=1))] = _RUN_DEFAULT.out,
    /,
    *,
    dense: Annotated[DenseSettings, _MODEL] = _DENSE_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    training: Annotated[TuneOptions, _TRAIN] = _TUNE_DEFAULT,
    run: Annotated[TuneRunSettings, _RUN] = _TUNE_RUN_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Train a saved result on, test it, and save it with its report.

    Training writes checkpoints beside the output directory: killed at any moment, `secateur resume` goes on with it.
    It runs on what `accelerate launch` or `torchrun` start, too: CPUs, a GPU, several as DDP or FSDP.

    ```sh
    secateur tune secateur-run --epochs 20 --out tuned

    # with the dense network as the teacher
    secateur tune photos-half --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --epochs 10 --out photos-tuned

    # norms and biases alone, an average of the weights, and an end when nothing improves
    secateur tune secateur-run --train-only norms+biases --ema 0.999 --patience 5
    ```

    Args:
        result: directory of a saved result.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs import several
    from secateur.runs.steps import silent
    from secateur.runs.tune import tune_run

    given = _given.get()
    values = flag_values(dense, data, training, run)
    file = read_yaml(config) if config is not None else {}
    if "result" in given or "result" not in file:
        values["result"] = result
        given = given | {"result"}
    settings = merged(TuneSettings, values, given, file, str(config or "flags"))
    terminal = Terminal(_out())
    first = several.rank() == 0
    try:
        outcome = tune_run(settings, overwrite=overwrite, watch=terminal.watch if first else silent)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return DONE if outcome is None else _ended(outcome, settings.out)


@app.command
def resume(path: Path = _RUN_DEFAULT.out, /, *, debug: Annotated[bool, _OTHER] = False) -> int:
    """Go on with a run of prune or tune that was killed or stopped, from its last checkpoint.

    On a CPU it ends with the same bits as if nothing had happened. A finished run is left as it is.

    ```sh
    secateur resume secateur-run
    ```

    Args:
        path: the output directory of the run; what is not finished lies beside it in PATH.unfinished.
        debug: show the whole traceback of an error.
    """
    from secateur.runs import several
    from secateur.runs.resume import resume_run
    from secateur.runs.steps import silent

    terminal, first = Terminal(_out()), several.rank() == 0
    try:
        outcome = resume_run(path, watch=terminal.watch if first else silent)
    except KeyboardInterrupt:
        return _stopped(terminal, path)
    if outcome is None and not first:
        return DONE
    if outcome is None:
        _out().print(Text(f"{path} is finished: there is nothing left to do."), soft_wrap=True)
        return DONE
    return _ended(outcome, path)


@app.command
def replay(
    plan: Annotated[Path, Parameter(group=Group("Model", sort_key=1))] = _RUN_DEFAULT.out,
    /,
    *,
    network: Annotated[RetrainedSettings, _MODEL] = _RETRAINED_DEFAULT,
    data: Annotated[ReplayDataSettings, _DATA] = _REPLAY_DATA_DEFAULT,
    options: Annotated[ReplayOptions, _REPLAY] = _REPLAY_DEFAULT,
    run: Annotated[ReplayRunSettings, _RUN] = _REPLAY_RUN_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Carry out an earlier plan on the retrained weights of the same network, and say whether it is still good.

    The plan is proved on the new weights, which are refitted where there is data. Whether it is still good is judged
    beside a fresh plan for the same cost: by the results of both where the data has a validation split, else by how far
    they keep the same units, and by the rank correlation of old and new scores. It is a result like any other: train it
    on with `secateur tune`.

    ```sh
    # the result of an earlier run that says how its network is built
    secateur replay secateur-run --weights new.safetensors --data digits

    # a plan alone, and a network and data of your own
    secateur replay photos-half/plan.json --model torchvision.models:resnet18 \\
        --model-args.num-classes 2 --weights new.pt --data imagefolder:photos
    ```

    Args:
        plan: a plan.json, or a saved result, of which all changes are carried out.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.replay import replay_run

    given = _given.get()
    values = flag_values(network, data, options, run)
    file = read_yaml(config) if config is not None else {}
    if "plan" in given or "plan" not in file:
        values["plan"] = plan
        given = given | {"plan"}
    settings = merged(ReplaySettings, values, given, file, str(config or "flags"))
    terminal = Terminal(_out())
    try:
        outcome = replay_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        step = f" during: {terminal.current}" if terminal.current else ""
        _complain("stopped", f"by Ctrl-C{step}. Nothing was kept: {settings.out} was not written")
        return INTERRUPTED
    views.finished(_out(), outcome, settings.out)
    return DONE


def _ended(outcome: "Outcome | Tuned", out: Path) -> int:
    """Show what a run left; the exit code."""
    views.finished(_out(), outcome, out)
    if outcome.interrupted:
        _complain(
            "stopped",
            f"by Ctrl-C: {outcome.interrupted}. It is saved in {out}. Go on with: secateur resume {out}",
        )
        return INTERRUPTED
    return DONE


def _stopped(terminal: Terminal, out: Path) -> int:
    """Say what Ctrl-C stopped, and how to go on; the exit code."""
    from secateur.runs.unfinished import Unfinished

    step = f" during: {terminal.current}" if terminal.current else ""
    kept = Unfinished(out).worth_keeping
    _complain(
        "stopped",
        f"by Ctrl-C{step}. "
        + (f"Go on with: secateur resume {out}" if kept else f"Nothing was kept: {out} was not written"),
    )
    return INTERRUPTED


@app.command
def hints(
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    check: Annotated[CheckSettings, _CHECK] = _CHECK_DEFAULT,
    place: Annotated[PlaceSettings, _RUN] = _PLACE_DEFAULT,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Check which importance criteria (hints) rank the units of a network rightly. Nothing is changed.

    A sample of units is silenced for real, one by one, and what each costs is compared with what every hint says of it:
    rank correlations, within each axis and over all units, beside the cost of removing a quarter and half of an axis as
    the hint would choose. The truth is measured on the validation split; the test split is never touched.

    ```sh
    # the embedded example, trained first
    secateur hints

    # three hints on a trained network and data of your own, with pictures
    secateur hints --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --hints l1 l2 bn_scale --out hints

    # what pruning the whole network by each hint ends in
    secateur hints --budget macs=0.5

    # more units of one part of the network, for a steadier answer
    secateur hints --only "layer3.*" --units-per-axis 32
    ```

    Args:
        overwrite: replace an earlier check in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.hints.run import check_run

    settings = merged(HintSettings, flag_values(model, data, check, place), _given.get(), {}, "flags")
    terminal = Terminal(_out())
    try:
        found = check_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        step = f" during: {terminal.current}" if terminal.current else ""
        _complain("stopped", f"by Ctrl-C{step}. Nothing was measured yet")
        return INTERRUPTED
    views.checked(_out(), found, settings.out)
    if found.interrupted:
        _complain("stopped", f"by Ctrl-C: {found.interrupted}")
        return INTERRUPTED
    return DONE


@app.command
def inspect(
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    input: Annotated[tuple[str, ...], _INPUT] = (),
    explain: Annotated[tuple[str, ...], _OTHER] = (),
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Print a network's axes, their members and costs, and why others are frozen. Nothing is changed.

    ```sh
    secateur inspect
    secateur inspect --model torchvision.models:resnet50 --input 1x3x224x224
    secateur inspect --explain fc1.weight:1
    ```

    Args:
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs come from the data.
        explain: a dim of a parameter, as in the name of an axis: layer1.0.conv1.weight:0. Instead of the tables, says
            what it is made of, what is coupled with it, and why it is frozen. Repeat it for further dims.
        debug: show the whole traceback of an error.
    """
    import secateur as sc

    network = build_model(_settings(ModelSettings, model))
    graph = sc.trace(network, example_inputs(input, _settings(DataSettings, data)))
    for answer in [graph.explain(dim) for dim in explain] or [graph]:
        _out().print(answer, soft_wrap=answer is not graph)
    return DONE


@app.command
def measure(
    path: Path | None = None,
    /,
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    input: Annotated[tuple[str, ...], _INPUT] = (),
    device: Annotated[str, _OTHER] = "cpu",
    trust: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Measure a network or a saved result: parameters, MACs, size, latency, training step, memory.

    ```sh
    secateur measure secateur-run
    secateur measure --model torchvision.models:resnet50 --input 8x3x224x224
    ```

    Args:
        path: directory of a saved result. Without it, the network that --model names is measured.
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs are those saved with the result, or come from the data.
        device: where to measure: cpu, cuda, cuda:1, mps.
        trust: let a saved result import the code that its network was built with.
        debug: show the whole traceback of an error.
    """
    import secateur as sc
    from secateur.fit import check_device, moved

    check_device(device)
    settings = _settings(ModelSettings, model)
    if path is None:
        network = build_model(settings)
    else:
        network = load_saved(path, settings if "model" in _given.get() else None, trust=trust)
    if path is None or input:
        args, kwargs = example_inputs(input, _settings(DataSettings, data)), {}
    else:
        args, kwargs = saved_inputs(path)
    _out().print(sc.measure(network.to(device), moved(args, device), moved(kwargs, device)))
    return DONE


@app.command
def show(path: Path, /, *, debug: Annotated[bool, _OTHER] = False) -> int:
    """Describe a saved result: its figures, its proof, its files, how to load it and how to make it again.

    ```sh
    secateur show secateur-run
    secateur show small.safetensors
    ```

    Args:
        path: directory or single file of a saved result.
        debug: show the whole traceback of an error.
    """
    views.saved(_out(), path)
    return DONE


@app.command
def diff(first: Path, second: Path, /, *, debug: Annotated[bool, _OTHER] = False) -> int:
    """Compare two saved results: which axes differ, by how much, and how the figures moved.

    ```sh
    secateur diff secateur-run secateur-tuned
    secateur diff last-month.safetensors this-month.safetensors
    ```

    Args:
        first: a saved result, a directory or a single file.
        second: the one that it is compared with.
        debug: show the whole traceback of an error.
    """
    import secateur as sc

    _out().print(sc.diff(first, second))
    return DONE


@app.command
def undo(
    path: Path,
    /,
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    restore: Annotated[Literal["auto", "dense", "trained"], _OTHER] = "auto",
    out: Annotated[Path, _OTHER] = Path("secateur-undone"),
    trust: Annotated[bool, _OTHER] = False,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Put the units that were removed back, from a result that was saved with --keep-removed, and save the network.

    ```sh
    secateur prune --budget params=0.1 --keep-removed --out tenth
    secateur undo tenth --out whole
    ```

    Args:
        path: a saved result, a directory or a single file.
        restore: "dense" is the network that was pruned, bit for bit; "trained" the weights as they are now, with the
            removed ones between them; "auto" is "dense" where that is possible.
        out: where the network is saved: a directory, or a file that ends in .safetensors.
        trust: let the saved result import the code that its network was built with.
        overwrite: replace a result in the same place.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.undo import undo_run

    named = _settings(ModelSettings, model) if "model" in _given.get() else None
    done = undo_run(path, out, model=named, restore=restore, trust=trust, overwrite=overwrite)
    _out().print(Text(done.describe()), soft_wrap=True)
    views.kept(_out(), out)
    return DONE


def execute(words: list[str]) -> int:
    """Carry out one command line; the exit code."""
    try:
        code = app(words or ["--help"])
    except CycloptsError as error:
        command = (
            words[0]
            if words
            and words[0] in ("prune", "tune", "resume", "replay", "diff", "undo", "hints", "inspect", "measure", "show")
            else ""
        )
        _complain("error", f"{error} See: secateur {command + ' ' if command else ''}--help")
        return MISUSED
    except KeyboardInterrupt:
        _complain("stopped", "by Ctrl-C. Nothing was changed")
        return INTERRUPTED
    except SecateurError as error:
        _explain(words)
        _complain("error", str(error))
        return FAILED
    except Exception as error:
        _explain(words)
        _complain("error", f"unexpected {type(error).__name__}: {error}. See where it comes from with --debug")
        return FAILED
    return code if isinstance(code, int) else DONE


def _settings(section: type[Section], flags: Section) -> Section:
    """The flags of one section, with their keyword arguments as the values that they spell."""
    return merged(section, flag_values(flags), _given.get(), {}, "flags")


def flag_values(*sections: Settings) -> dict[str, Any]:
    """The fields of sections as they were given, keyword arguments as the values that they spell."""
    values = {item.name: getattr(section, item.name) for section in sections for item in fields(section)}
    return {
        name: {key.replace("-", "_"): parse_scalar(item) for key, item in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in values.items()
    }


def _out() -> Console:
    """The standard output stream; a file has room for wide tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else FILE_WIDTH)


def _complain(kind: str, message: str) -> None:
    """Say what went wrong on the standard error stream."""
    Console(stderr=True, highlight=False).print(Text.assemble((f"{kind}: ", "bold red"), message), soft_wrap=True)


def _explain(words: list[str]) -> None:
    """The traceback of the present error, for those who asked for it."""
    if "--debug" in words:
        Console(stderr=True).print_exception()
