"""``secateur sparsify``."""

from typing import Annotated

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    CHANGE_GROUP,
    DATA,
    MODEL,
    RUN_GROUP,
    Data,
    File,
    Model,
    Switch,
    all_settings,
    every,
)
from secateur.config import SparsePlaceSettings, SparsifySettings, WeightSettings

Weights = Annotated[WeightSettings, every(CHANGE_GROUP)]
Place = Annotated[SparsePlaceSettings, every(RUN_GROUP)]
WEIGHTS, PLACE = WeightSettings(), SparsePlaceSettings()


def sparsify(
    *,
    model: Model = MODEL,
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
    secateur sparsify --compensate sparsegpt --out sparse

    # a network and data of your own, two of every four weights
    secateur sparsify --model mynets:ResNet --weights trained.pt --data mydata:loaders \\
        --pattern 2:4 --compensate sparsegpt+alps

    # all weights below half of their layer's mean
    secateur sparsify --model mynets:ResNet --weights trained.pt --data mydata:loaders \\
        --importance magnitude --threshold 0.5
    ```

    Args:
        config: YAML file with any of these settings; flags win over it. Every run writes one.
        overwrite: replace an earlier run in the output directory.
        debug: show the whole traceback of an error.
    """
    from secateur.runs.sparsify import sparsify_run

    settings = all_settings(SparsifySettings, config, model, data, which, place)
    return carried_out(lambda watch: sparsify_run(settings, overwrite=overwrite, watch=watch), settings.out)
