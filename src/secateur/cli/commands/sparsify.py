"""``secateur sparsify``."""

from typing import Annotated

from secateur.cli.ending import DONE, carried_out, interrupted, output
from secateur.cli.flags import (
    CHANGE_GROUP,
    DATA,
    MODEL,
    MODEL_GROUP,
    RUN_GROUP,
    Data,
    File,
    Model,
    Switch,
    all_settings,
    every,
)
from secateur.cli.terminal import Terminal
from secateur.config import CheckpointSettings, SparsePlaceSettings, SparsifySettings, WeightSettings

Weights = Annotated[WeightSettings, every(CHANGE_GROUP)]
Place = Annotated[SparsePlaceSettings, every(RUN_GROUP)]
Checkpoint = Annotated[CheckpointSettings, every(MODEL_GROUP)]
WEIGHTS, PLACE, CHECKPOINT = WeightSettings(), SparsePlaceSettings(), CheckpointSettings()


def sparsify(
    *,
    model: Model = MODEL,
    source: Checkpoint = CHECKPOINT,
    data: Data = DATA,
    which: Weights = WEIGHTS,
    place: Place = PLACE,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Make single weights of a trained network zero, test it and save it. All shapes stay as they are.

    Each layer is pruned on training data as the pruned layers before it give them. Zeros make files smaller; what they
    do for speed depends on kernels, and the report says what was measured. Units, which make any model faster, are what
    `secateur prune` removes.

    ```sh
    # the embedded example: half of its weights
    secateur sparsify --out sparse

    # a network and data of your own, two of every four weights
    secateur sparsify --model mynets:ResNet --weights trained.pt --data mydata:loaders \\
        --pattern 2:4 --compensate sparsegpt+alps

    # all weights below half of their layer's mean
    secateur sparsify --model mynets:ResNet --weights trained.pt --data mydata:loaders \\
        --importance magnitude --threshold 0.5

    # a language model on disk that is larger than memory, to another folder; the same command goes on after a kill
    secateur sparsify --checkpoint llama --tokens calibration.npy --compensate sparsegpt --out llama-sparse
    ```

    Args:
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    settings = all_settings(SparsifySettings, config, model, source, data, which, place)
    if settings.checkpoint is not None:
        return streamed(settings, overwrite=overwrite)
    from secateur.runs.sparsify import sparsify_run

    return carried_out(lambda watch: sparsify_run(settings, overwrite=overwrite, watch=watch), settings.out)


def streamed(settings: SparsifySettings, *, overwrite: bool) -> int:
    """Prune a checkpoint from disk to disk and show what came of it; the exit code."""
    from secateur.runs.checkpoint import checkpoint_run

    terminal = Terminal(output())
    try:
        result = checkpoint_run(settings, overwrite=overwrite, watch=terminal.watch)
    except KeyboardInterrupt:
        return interrupted(terminal, "Go on with the same command")
    output().print(result)
    output().print(f"Saved in {settings.out}", soft_wrap=True)
    return DONE
