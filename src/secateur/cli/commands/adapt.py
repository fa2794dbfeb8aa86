"""``secateur adapt``."""

from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    DATA,
    MODEL,
    MODEL_GROUP,
    PLAN,
    RUN_GROUP,
    TRAIN_GROUP,
    Data,
    File,
    Model,
    Plan,
    Switch,
    all_settings,
    every,
)
from secateur.config import AdaptOptions, AdaptRunSettings, AdaptSettings, TaskSettings

Task = Annotated[TaskSettings, every(Group("New task", sort_key=0))]
Training = Annotated[AdaptOptions, every(TRAIN_GROUP)]
Run = Annotated[AdaptRunSettings, every(RUN_GROUP)]
TASK, TRAINING, RUN = TaskSettings(), AdaptOptions(), AdaptRunSettings()


def adapt(
    result: Annotated[Path | None, Parameter(group=MODEL_GROUP)] = None,
    /,
    *,
    task: Task = TASK,
    model: Model = MODEL,
    data: Data = DATA,
    plan: Plan = PLAN,
    training: Training = TRAINING,
    run: Run = RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
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

    settings = all_settings(AdaptSettings, config, task, model, data, plan, training, run, result=result)
    return carried_out(lambda watch: adapt_run(settings, overwrite=overwrite, watch=watch), settings.out)
