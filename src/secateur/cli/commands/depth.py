"""``secateur shorten`` and ``secateur deepen``."""

from typing import Annotated

from cyclopts import Group

from secateur.cli.ending import carried_out
from secateur.cli.flags import (
    CHANGE_GROUP,
    DATA,
    MODEL,
    RUN_GROUP,
    Data,
    File,
    Model,
    Shapes,
    Switch,
    all_settings,
    every,
)
from secateur.cli.saved import example_inputs
from secateur.config import (
    BlockSettings,
    DeepenSettings,
    DeeperSettings,
    InsertSettings,
    ShortenSettings,
    ShorterSettings,
)

Blocks = Annotated[BlockSettings, every(CHANGE_GROUP)]
Shorter = Annotated[ShorterSettings, every(RUN_GROUP)]
Insert = Annotated[InsertSettings, every(Group("What comes in", sort_key=3))]
Deeper = Annotated[DeeperSettings, every(RUN_GROUP)]
BLOCKS, SHORTER, INSERT, DEEPER = BlockSettings(), ShorterSettings(), InsertSettings(), DeeperSettings()


def shorten(
    *,
    model: Model = MODEL,
    data: Data = DATA,
    which: Blocks = BLOCKS,
    place: Shorter = SHORTER,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
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

    settings = all_settings(ShortenSettings, config, model, data, which, place)
    return carried_out(lambda watch: shorten_run(settings, overwrite=overwrite, watch=watch), settings.out)


def deepen(
    *,
    model: Model = MODEL,
    data: Data = DATA,
    input: Shapes = (),
    what: Insert = INSERT,
    place: Deeper = DEEPER,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
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

    settings = all_settings(DeepenSettings, config, model, data, what, place, input=input)
    inputs = example_inputs(settings.input, settings)
    return carried_out(lambda watch: deepen_run(settings, inputs, overwrite=overwrite, watch=watch), settings.out)
