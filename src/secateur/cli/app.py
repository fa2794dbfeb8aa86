"""The commands, and how each of them ends: with an exit code, and with words instead of a traceback."""

import os
import sys
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from cyclopts import App, CycloptsError, Group, Parameter
from rich.console import Console
from rich.text import Text

from secateur.cli import views
from secateur.cli.saved import example_inputs, inputs_that_fit, load_saved, saved_inputs
from secateur.cli.terminal import Terminal
from secateur.config import (
    AdaptOptions,
    AdaptRunSettings,
    AdaptSettings,
    BlockSettings,
    CheckSettings,
    DataSettings,
    DeepenSettings,
    DeeperSettings,
    DenseSettings,
    GradualSettings,
    HintSettings,
    InsertSettings,
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
    ShortenSettings,
    ShorterSettings,
    TaskSettings,
    TrainSettings,
    TuneOptions,
    TuneRunSettings,
    TuneSettings,
)
from secateur.errors import SecateurError
from secateur.models import build_model, build_spec
from secateur.plain import merged, parse_scalar, read_yaml

if TYPE_CHECKING:
    from secateur.runs.prune import Outcome
    from secateur.runs.tune import Tuned

FILE_WIDTH = 140
COMMANDS = (
    "prune",
    "tune",
    "adapt",
    "resume",
    "shorten",
    "deepen",
    "hints",
    "inspect",
    "measure",
    "export",
    "grow",
    "replay",
    "diff",
    "undo",
    "show",
)
DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

Section = TypeVar("Section", bound=Settings)
_given: ContextVar[frozenset[str]] = ContextVar("_given", default=frozenset())
_words: ContextVar[tuple[str, ...]] = ContextVar("_words", default=())


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
writes a report. `secateur COMMAND --help` explains a command, with examples.""",
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
_TASK_DEFAULT, _ADAPT_DEFAULT, _ADAPT_RUN_DEFAULT = TaskSettings(), AdaptOptions(), AdaptRunSettings()
_TASK = Parameter(name="*", group=Group("New task", sort_key=0))
_CHECK = Parameter(name="*", group=Group("What to check", sort_key=3))
_CHECK_DEFAULT, _PLACE_DEFAULT = CheckSettings(), PlaceSettings()
_BLOCKS_DEFAULT, _SHORTER_DEFAULT = BlockSettings(), ShorterSettings()
_INSERT, _INSERT_DEFAULT = Parameter(name="*", group=Group("What comes in", sort_key=3)), InsertSettings()
_DEEPER_DEFAULT = DeeperSettings()
_GROW = Parameter(group=Group("What to grow", sort_key=3))
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

    settings = _all_settings(PruneSettings, config, model, data, plan, bit_by_bit, training, run)
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

    settings = _all_settings(TuneSettings, config, dense, data, training, run, result=result)
    terminal = Terminal(_out())
    first = several.rank() == 0
    try:
        outcome = tune_run(settings, overwrite=overwrite, watch=terminal.watch if first else silent)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return DONE if outcome is None else _ended(outcome, settings.out)


@app.command
def adapt(
    result: Annotated[Path | None, Parameter(group=Group("Model", sort_key=1))] = None,
    /,
    *,
    task: Annotated[TaskSettings, _TASK] = _TASK_DEFAULT,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    plan: Annotated[PlanSettings, _PLAN] = _PLAN_DEFAULT,
    training: Annotated[AdaptOptions, _TRAIN] = _ADAPT_DEFAULT,
    run: Annotated[AdaptRunSettings, _RUN] = _ADAPT_RUN_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Teach a trained network new classes, prune what they don't need, prove, tune, test, save and report.

    The layer that gives the class scores is found and replaced. The new one is trained; then, where the validation
    split says that it pays, everything is. The network is pruned by what counts for the new data (half of its MACs, if
    nothing is said), and tuned with the unpruned one as its teacher. The result is a directory as `secateur prune`
    writes it.

    ```sh
    # a network for 1,000 classes, for the classes of a folder
    secateur adapt --model torchvision.models:resnet18 --weights imagenet.pt \\
        --data imagefolder:photos --budget macs=0.7 --out photos

    # a result of secateur's, for another task
    secateur adapt photos --data imagefolder:drawings --out drawings

    # the head alone, and nothing pruned
    secateur adapt --model torchvision.models:resnet18 --weights imagenet.pt \\
        --data imagefolder:photos --train-only head --keep 1.0
    ```

    Args:
        result: directory of a saved result to adapt, in place of the network that --model names.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.adapt import adapt_run

    settings = _all_settings(AdaptSettings, config, task, model, data, plan, training, run, result=result)
    terminal = Terminal(_out())
    try:
        outcome = adapt_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return _ended(outcome, settings.out)


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
    from secateur.runs.resume import place_of, resume_run
    from secateur.runs.steps import silent

    terminal, first = Terminal(_out()), several.rank() == 0
    path = place_of(path)
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

    settings = _all_settings(ReplaySettings, config, network, data, options, run, plan=plan)
    terminal = Terminal(_out())
    try:
        outcome = replay_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return _ended(outcome, settings.out)


def _ended(outcome: "Outcome | Tuned", out: Path) -> int:
    """Show what a run left; the exit code."""
    views.finished(_out(), outcome, out)
    if getattr(outcome, "failed", ""):
        words = outcome.interrupted[:1].upper() + outcome.interrupted[1:]
        _complain(
            "error",
            f"{outcome.failed} {words}. It is saved in {out}. Train it on with other settings: secateur tune {out}; "
            f"or, when the data are mended, go on with: secateur resume {out}",
        )
        return FAILED
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


@app.command(name="shorten")
def shorten_command(
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    which: Annotated[BlockSettings, _PLAN] = _BLOCKS_DEFAULT,
    place: Annotated[ShorterSettings, _RUN] = _SHORTER_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Drop whole residual blocks of a trained network, prove the rest, test it and save it. Nothing is trained.

    Blocks that can go are found, and the least important go first: those that move their input least on training data
    (influence), or without which the loss rises least. The result is a directory as `secateur prune` writes it;
    `secateur tune` trains it on.

    ```sh
    # four blocks of a network and data of your own
    secateur shorten --model torchvision.models:resnet50 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --blocks 4 --out shorter

    # until the budget is met, by what the loss rises by, scored again after each block
    secateur shorten --model mynets:VisionTransformer --weights trained.pt --data mydata:loaders \\
        --budget macs=0.7 --importance loss --rescore

    # these two
    secateur shorten --model mynets:ResNet --weights trained.pt --data mydata:loaders --drop layer3.2 layer3.4
    ```

    Args:
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.depth import shorten_run

    settings = _all_settings(ShortenSettings, config, model, data, which, place)
    terminal = Terminal(_out())
    try:
        outcome = shorten_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return _ended(outcome, settings.out)


@app.command(name="deepen")
def deepen_command(
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    input: Annotated[tuple[str, ...], _INPUT] = (),
    what: Annotated[InsertSettings, _INSERT] = _INSERT_DEFAULT,
    place: Annotated[DeeperSettings, _RUN] = _DEEPER_DEFAULT,
    config: Annotated[Path | None, _OTHER] = None,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Make a network deeper by blocks or layers that compute the identity at first, prove it and save it.

    After a residual block comes a copy whose branches end in zeros, after a ReLU an identity layer and a ReLU. The
    result computes the same, and `secateur tune` trains it on.

    ```sh
    # a block more in the third stage
    secateur deepen --model torchvision.models:resnet18 --weights trained.pt \\
        --input 1x3x224x224 --after layer3.1 --out deeper

    # the embedded example with a layer more, then trained
    secateur deepen --after fc1 --out deeper
    secateur tune deeper --trust --epochs 10
    ```

    Args:
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs come from the data.
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.depth import deepen_run

    settings = _all_settings(DeepenSettings, config, model, data, what, place, input=input)
    terminal = Terminal(_out())
    inputs = example_inputs(settings.input, settings)
    try:
        outcome = deepen_run(settings, inputs, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return _stopped(terminal, settings.out)
    return _ended(outcome, settings.out)


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
    source = _settings(DataSettings, data)
    args = example_inputs(input, source)
    with inputs_that_fit(network, args, input, source):
        graph = sc.trace(network, args)
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
    source = _settings(DataSettings, data)
    if path is None or input:
        args, kwargs = example_inputs(input, source), {}
    else:
        args, kwargs = saved_inputs(path)
    args, kwargs = moved(args, device), moved(kwargs, device)
    with inputs_that_fit(network.to(device), args, input, source):
        _out().print(sc.measure(network, args, kwargs))
    return DONE


@app.command
def export(
    result: Annotated[Path, Parameter(group=Group("Model", sort_key=1))] = _RUN_DEFAULT.out,
    /,
    *,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    input: Annotated[tuple[str, ...], _INPUT] = (),
    format: Annotated[tuple[Literal["onnx", "pt2"], ...], _OTHER] = (),
    out: Annotated[Path | None, _OTHER] = None,
    opset: Annotated[int | None, _OTHER] = None,
    static: Annotated[bool, _OTHER] = False,
    compare_with: Annotated[Literal["dense"] | None, _OTHER] = None,
    threads: Annotated[int, _OTHER] = 1,
    trust: Annotated[bool, _OTHER] = False,
    overwrite: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Write a saved result as ONNX, or as a program of torch.export, for other runtimes.

    Each file is read back, run and compared with the network before it appears. The batch may differ from call to call,
    and for tokens the length of a sequence, where the network allows it; the table says which sizes are free.

    ```sh
    # secateur-run.onnx in the current directory
    secateur export secateur-run

    # both formats, and how fast the pruned network is beside the dense one in onnxruntime
    secateur export secateur-run --format onnx pt2 --out digits --compare-with dense

    # a result that keeps its class wants the original network
    secateur export photos-half --model torchvision.models:resnet18 \\
        --model-args.num-classes 2 --out photos.onnx
    ```

    Args:
        result: directory of a saved result.
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs are those saved with the result.
        format: onnx, pt2, or both. A .pt2 file carries a pickle stream: whoever reads it has to trust it.
        out: the file. By default the name of the result with .onnx or .pt2; of several files the ending differs.
        opset: version of ONNX's operators; torch's own choice if not given.
        static: fix the sizes of all inputs.
        compare_with: dense, to time the network before pruning and the pruned one in onnxruntime, in turns. The dense
            one is that of --model, or the one that the result says how to build.
        threads: that onnxruntime has for the timing.
        trust: let a saved result import the code that its network was built with.
        overwrite: replace files that are there.
        debug: show the whole traceback of an error.
    """
    from secateur.cli.exporting import Wishes, export_saved, files

    wishes = Wishes(opset=opset, static=static, compare_with=compare_with, threads=threads, overwrite=overwrite)
    named = _settings(ModelSettings, model) if "model" in _given.get() else None
    inputs = (example_inputs(input, DataSettings()), dict[str, Any]()) if input else None
    terminal, targets = Terminal(_out()), files(result, format, out)
    try:
        for written in export_saved(
            result, targets, wishes, inputs=inputs, model=named, trust=trust, watch=terminal.watch
        ):
            _out().print(written)
    except KeyboardInterrupt:
        _complain(
            "stopped", f"by Ctrl-C during: {terminal.current}. Files that were shown are whole; no others are left"
        )
        return INTERRUPTED
    return DONE


@app.command
def grow(
    path: Path | None = None,
    /,
    *,
    axis: Annotated[tuple[str, ...], _GROW] = (),
    noise: Annotated[float, _GROW] = 0.0,
    model: Annotated[ModelSettings, _MODEL] = _MODEL_DEFAULT,
    data: Annotated[DataSettings, _DATA] = _DATA_DEFAULT,
    input: Annotated[tuple[str, ...], _INPUT] = (),
    out: Annotated[Path, _OTHER] = Path("secateur-grown"),
    seed: Annotated[int, _OTHER] = 0,
    overwrite: Annotated[bool, _OTHER] = False,
    trust: Annotated[bool, _OTHER] = False,
    debug: Annotated[bool, _OTHER] = False,
) -> int:
    """Make axes of a network, or of a saved result, wider without changing what it computes, and prove it.

    Units are repeated, and the weights that sum over them are divided among the copies. The result is a saved one like
    those of prune: train it on, prune it, grow it again.

    ```sh
    secateur inspect                                        # lists the axes
    secateur grow secateur-run --axis fc1.weight:0=240 --noise 0.1 --out wider
    secateur grow --model torchvision.models:resnet18 --weights trained.pt \\
        --input 1x3x224x224 --axis layer1.0.conv1.weight:0=96
    ```

    Args:
        path: directory of a saved result. Without it, the network that --model names is grown.
        axis: an axis and its new width, fc1.weight:0=240. Repeat it for further axes.
        noise: how far the parts of divided weights differ, as a share of their size, from 0 to 1. With 0, copies train
            alike for ever. The function stays what it is.
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs are those saved with the result, or come from the data.
        out: directory for the result.
        seed: of the units that get one copy more, and of the noise.
        overwrite: replace an earlier result there.
        trust: let a saved result import the code that its network was built with.
        debug: show the whole traceback of an error.
    """
    from secateur.artifacts import read_record
    from secateur.runs.grow import grow_run, widths_of

    widths, settings = widths_of(axis), _settings(ModelSettings, model)
    if path is None:
        network, build = build_model(settings), {"callable": build_spec(settings), "args": settings.model_args}
    else:
        network = load_saved(path, settings if "model" in _given.get() else None, trust=trust)
        build = read_record(path)["build"]
    if path is None or input:
        args, kwargs = example_inputs(input, _settings(DataSettings, data)), {}
    else:
        args, kwargs = saved_inputs(path)
    done: dict[str, Any] = {"build": build, "noise": noise, "seed": seed, "overwrite": overwrite, "words": _words.get()}
    views.grown(_out(), grow_run(network, args, kwargs, widths, out, **done), out)
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
    _words.set(tuple(words))
    try:
        with _warnings_told():
            code = app(words or ["--help"])
    except CycloptsError as error:
        command = words[0] if words and words[0] in COMMANDS else ""
        _complain("error", f"{error} See: secateur {command + ' ' if command else ''}--help")
        return MISUSED
    except KeyboardInterrupt:
        _complain("stopped", "by Ctrl-C. Nothing was changed")
        return INTERRUPTED
    except SecateurError as error:
        _explain(words)
        _complain("error", _with_notes(str(error), error))
        return FAILED
    except Exception as error:
        _explain(words)
        said = f"unexpected {type(error).__name__}: {error}. See where it comes from with --debug"
        _complain("error", _with_notes(said, error))
        return FAILED
    return code if isinstance(code, int) else DONE


def _settings(section: type[Section], flags: Section) -> Section:
    """The flags of one section, with their keyword arguments as the values that they spell."""
    return merged(section, flag_values(flags), _given.get(), {}, "flags")


def _all_settings(kind: type[Section], config: Path | None, *sections: Settings, **others: Any) -> Section:
    """All settings of a command: its flags and arguments win over the file that ``--config`` names.

    Args:
        kind: which settings.
        config: the file, if there is one.
        sections: the flags.
        others: what is no field of a section, by name.
    """
    file = read_yaml(config) if config is not None else {}
    return merged(kind, {**flag_values(*sections), **others}, _given.get(), file, str(config or "flags"))


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


def _complain(kind: str, message: str, style: str = "bold red") -> None:
    """Say what went wrong on the standard error stream."""
    Console(stderr=True, highlight=False).print(Text.assemble((f"{kind}: ", style), message), soft_wrap=True)


@contextmanager
def _warnings_told() -> Generator[None]:
    """Show warnings for users as what they are, without the code that gave them."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                _complain("warning", str(message), "bold yellow")
            else:
                show(message, category, *where, **more)

        warnings.showwarning = tell
        yield


def _with_notes(said: str, error: Exception) -> str:
    """Words on an error, and what was noted at it on its way."""
    notes: list[str] = getattr(error, "__notes__", [])
    return ". ".join([said.rstrip("."), *notes]) if notes else said


def _explain(words: list[str]) -> None:
    """The traceback of the present error, for those who asked for it."""
    if "--debug" in words:
        Console(stderr=True).print_exception()
