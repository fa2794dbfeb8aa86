"""``secateur export``."""

from typing import Annotated, Any, Literal

from secateur.cli.ending import DONE, INTERRUPTED, complain, output
from secateur.cli.flags import MODEL, OF_RUN, RUN, File, Model, ModelPath, Shapes, Switch, named
from secateur.cli.saved import example_inputs
from secateur.cli.terminal import Terminal
from secateur.config import DataSettings


def export(
    result: ModelPath = RUN.out,
    /,
    *,
    model: Model = MODEL,
    input: Shapes = (),
    format: Annotated[tuple[Literal["onnx", "pt2", "safetensors"], ...], OF_RUN] = (),
    out: File = None,
    opset: Annotated[int | None, OF_RUN] = None,
    static: Switch = False,
    compare_with: Annotated[Literal["dense"] | None, OF_RUN] = None,
    threads: Annotated[int, OF_RUN] = 1,
    trust: Switch = False,
    overwrite: Switch = False,
    debug: Switch = False,
) -> int:
    """Write a saved result as ONNX, as a program of torch.export, or its weights alone, for other tools.

    Each file is read back, run and compared with the network before it appears. The batch may differ from call to call,
    and for tokens the length of a sequence, where the network allows it; the table says which sizes are free.

    ```sh
    # secateur-run.onnx in the current directory
    secateur export secateur-run

    # the weights as plain tensors, as every tool reads them
    secateur export secateur-run --format safetensors

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
        format: onnx, pt2, safetensors, or several. A .pt2 file carries a pickle stream: whoever reads it has to trust
            it. A .safetensors file holds the weights as plain tensors, zeros and all.
        out: the file. By default the name of the result with .onnx, .pt2 or .safetensors; of several files the ending
            differs.
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
    inputs = (example_inputs(input, DataSettings()), dict[str, Any]()) if input else None
    terminal, targets = Terminal(output()), files(result, format, out)
    try:
        for written in export_saved(
            result, targets, wishes, inputs=inputs, model=named(model), trust=trust, watch=terminal.watch
        ):
            output().print(written)
    except KeyboardInterrupt:
        complain(
            "stopped", f"by Ctrl-C during: {terminal.current}. Files that were shown are whole; no others are left"
        )
        return INTERRUPTED
    return DONE
