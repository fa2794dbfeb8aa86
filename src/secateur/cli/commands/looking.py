"""``secateur inspect`` and ``secateur measure``."""

from pathlib import Path
from typing import Annotated

from secateur.cli.attacking import attack, checked
from secateur.cli.ending import DONE, output
from secateur.cli.flags import DATA, MODEL, OF_RUN, ROBUST, Data, Model, Robust, Shapes, Switch, named, settings_of
from secateur.cli.saved import example_inputs, inputs_that_fit, load_saved, saved_inputs
from secateur.config import DataSettings, ModelSettings
from secateur.models import build_model


def inspect(
    *,
    model: Model = MODEL,
    data: Data = DATA,
    input: Shapes = (),
    explain: Annotated[tuple[str, ...], OF_RUN] = (),
    debug: Switch = False,
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

    network = build_model(settings_of(ModelSettings, model))
    source = settings_of(DataSettings, data)
    args = example_inputs(input, source)
    with inputs_that_fit(network, args, input, source):
        graph = sc.trace(network, args)
    for answer in [graph.explain(dim) for dim in explain] or [graph]:
        output().print(answer, soft_wrap=answer is not graph)
    return DONE


def measure(
    path: Path | None = None,
    /,
    *,
    model: Model = MODEL,
    data: Data = DATA,
    input: Shapes = (),
    robust: Robust = ROBUST,
    device: Annotated[str, OF_RUN] = "cpu",
    trust: Switch = False,
    seed: Annotated[int, OF_RUN] = 0,
    debug: Switch = False,
) -> int:
    """Measure a network or a saved result: parameters, MACs, size, latency, training step, memory; and how well it
    withstands attacks.

    With --robust, the test split is attacked: FGSM, PGD, Auto-PGD, a black-box attack, common corruptions. A saved
    result is compared with the dense network where --model and --weights name that.

    ```sh
    secateur measure secateur-run
    secateur measure --model torchvision.models:resnet50 --input 8x3x224x224

    # whether pruning made the network easier to attack
    secateur measure photos-half --model torchvision.models:resnet18 --model-args.num-classes 2 \\
        --weights trained.pt --data imagefolder:photos --robust --eps 2/255
    ```

    Args:
        path: directory of a saved result. Without it, the network that --model names is measured.
        input: shape of an example input, with its type if that is not float32: 1x3x224x224, 1x128:int64. Repeat it for
            further inputs. Without it, the inputs are those saved with the result, or come from the data.
        device: where to measure: cpu, cuda, cuda:1, mps.
        trust: let a saved result import the code that its network was built with.
        seed: of random starts of attacks.
        debug: show the whole traceback of an error.
    """
    import secateur as sc
    from secateur.fit import check_device, moved

    check_device(device)
    attacks = checked(robust)
    settings = settings_of(ModelSettings, model)
    if path is None:
        network = build_model(settings)
    else:
        network = load_saved(path, named(model), trust=trust)
    source = settings_of(DataSettings, data)
    if path is None or input:
        args, kwargs = example_inputs(input, source), {}
    else:
        args, kwargs = saved_inputs(path)
    args, kwargs = moved(args, device), moved(kwargs, device)
    with inputs_that_fit(network.to(device), args, input, source):
        output().print(sc.measure(network, args, kwargs))
    return attack(network, path, settings, source, attacks, seed) if attacks.robust else DONE
