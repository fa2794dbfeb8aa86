"""``secateur replay``."""

from typing import Annotated

from cyclopts import Group

from secateur.cli.ending import carried_out
from secateur.cli.flags import DATA_GROUP, MODEL_GROUP, RUN, RUN_GROUP, File, ModelPath, Switch, all_settings, every
from secateur.config import ReplayDataSettings, ReplayOptions, ReplayRunSettings, ReplaySettings, RetrainedSettings

Network = Annotated[RetrainedSettings, every(MODEL_GROUP)]
Data = Annotated[ReplayDataSettings, every(DATA_GROUP)]
Options = Annotated[ReplayOptions, every(Group("How the plan is carried out and judged", sort_key=3))]
Run = Annotated[ReplayRunSettings, every(RUN_GROUP)]
NETWORK, DATA, OPTIONS, REPLAY_RUN = RetrainedSettings(), ReplayDataSettings(), ReplayOptions(), ReplayRunSettings()


def replay(
    plan: ModelPath = RUN.out,
    /,
    *,
    network: Network = NETWORK,
    data: Data = DATA,
    options: Options = OPTIONS,
    run: Run = REPLAY_RUN,
    config: File = None,
    overwrite: Switch = False,
    debug: Switch = False,
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

    settings = all_settings(ReplaySettings, config, network, data, options, run, plan=plan)
    return carried_out(lambda watch: replay_run(settings, overwrite=overwrite, watch=watch), settings.out)
