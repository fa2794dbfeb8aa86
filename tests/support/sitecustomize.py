"""Lets torchvision be imported where its compiled operators don't fit the installed torch.

A torchvision wheel built for CUDA does not load its operators beside a CPU build of torch, and then its very import
fails on ``torchvision::nms``. The tests use none of these operators, so declaring them is enough. Python imports a
module of this name at start-up wherever this folder is on PYTHONPATH, so subprocesses of the tests are served too.
Nothing happens until torchvision is imported.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_libraries: list[Any] = []  # a Library's operators live as long as it does


class DeclareOperators:
    """Finds nothing itself: declares what is missing before torchvision's own import goes on."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)  # pyright: ignore[reportArgumentType]
            declare(PathFinder.find_spec(name))
        return None


def declare(spec: ModuleSpec | None) -> None:
    """Declare the operators of the torchvision at ``spec`` unless its compiled library loads."""
    if spec is None or spec.origin is None:
        return
    import torch

    for library in Path(spec.origin).parent.glob("_C*"):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return
    if hasattr(torch.ops.torchvision, "nms"):  # this module was imported under two names
        return
    torchvision = torch.library.Library("torchvision", "DEF")
    for operator in OPERATORS:
        torchvision.define(operator)
    _libraries.append(torchvision)


sys.meta_path.insert(0, DeclareOperators())  # pyright: ignore[reportArgumentType]
