"""Stored graphs: files from anyone, which may hold no code."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import secateur as sc
from secateur.artifacts.decoding import decode_graph
from secateur.artifacts.graphs import encode_graph
from secateur.artifacts.whitelist import functions, methods
from secateur.errors import ArtifactError
from secateur.modules import named_tensors
from support.networks import LiteralNet, example


def stored(module: fx.GraphModule) -> tuple[dict[str, Any], dict[str, tuple[Tensor, bool]]]:
    """A module's graph after a journey through JSON, and its tensors."""
    tensors = {n: (t.detach(), isinstance(t, nn.Parameter)) for n, t in named_tensors(module).items()}
    return json.loads(json.dumps(encode_graph(module))), tensors


class Various(nn.Module):
    """Calls of many kinds, with arguments of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.prelu = nn.Conv2d(3, 4, (3, 1), padding="same", bias=False), nn.PReLU(4)
        self.norm, self.pool = nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d((2, None))
        self.gain = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.prelu(self.conv(x)))) * self.gain
        parts = torch.cat(
            [x[:, ::2], x[..., 1:, :].flip(-1)[:, :2].mean((2,), keepdim=True).expand(-1, -1, 2, -1)], dim=1
        )
        mask = torch.zeros(parts.shape[-1], dtype=torch.bool).masked_fill(parts[0, 0, 0] > 0, value=True)
        parts = parts.masked_fill(mask, float("-inf")).softmax(-1).nan_to_num(0.0)
        return F.interpolate(parts, scale_factor=2.0, mode="nearest").to(torch.float64) ** 2 // 0.01


def test_round_trip() -> None:
    module = fx.symbolic_trace(Various().eval())
    again = decode_graph(*stored(module))
    x = torch.randn(2, 3, 6, 5)
    assert torch.equal(again(x), module(x))
    assert [(n.op, n.name) for n in again.graph.nodes] == [(n.op, n.name) for n in module.graph.nodes]
    assert again.state_dict().keys() == module.state_dict().keys()


def test_every_call_on_the_white_lists_works_on_tensors() -> None:
    dangerous = {"load", "save", "compile", "from_file", "import_ir_module", "eval", "exec", "hub", "ops", "classes"}
    assert not {name.rpartition(".")[2] for name in functions()} & dangerous
    assert not methods() & {"apply_", "map_", "register_hook", "numpy", "share_memory_", "storage", "set_", "resize_"}
    assert not {name for name in methods() if name.startswith("_")}
    assert {"torch.nn.functional.relu", "torch.cat", "operator.getitem"} <= functions().keys()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.own(x), "the layer own of class Own, which torch.nn does not have"),
        (lambda self, x: x.register_hook(None), "a call of the tensor method register_hook"),
        (lambda self, x: torch.add(x, 1, alpha=1j), "the value 1j"),
    ],
)
def test_what_is_not_written(forward: Any, message: str) -> None:
    class Own(nn.ReLU):
        pass

    net = type("Net", (nn.Module,), {"forward": forward})()
    net.own = Own()

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    module = fx.GraphModule(net, Tracer().trace(net))
    with pytest.raises(ArtifactError, match=f"the rewritten graph holds {message}.*save with build="):
        encode_graph(module)


# ---------------------------------------------------------------------- foreign graphs


@pytest.fixture(scope="module")
def literal() -> tuple[dict[str, Any], dict[str, tuple[Tensor, bool]]]:
    torch.manual_seed(0)
    model = LiteralNet()
    small = sc.prune(model, example(model), keep=0.5).model
    assert isinstance(small, fx.GraphModule)
    return stored(small)


def at(data: dict[str, Any], op: str, number: int = 0) -> dict[str, Any]:
    """The first, second ... entry of that kind."""
    return [n for n in data["nodes"] if n["op"] == op][number]


PWN = "__import__('pathlib').Path('pwned').touch()"

FOREIGN: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a builtin": (
        lambda d: at(d, "call_function").update(target="builtins.eval"),
        "calls builtins.eval, which is not on",
    ),
    "a module function": (lambda d: at(d, "call_function").update(target="os.system"), "calls os.system, which is not"),
    "torch.load": (lambda d: at(d, "call_function").update(target="torch.load"), "calls torch.load, which is not on"),
    "a private method": (lambda d: at(d, "call_method").update(target="__reduce__"), "the tensor method __reduce__"),
    "a method that calls back": (lambda d: at(d, "call_method").update(target="apply_"), "the tensor method apply_"),
    "another attribute": (
        lambda d: at(d, "call_function").update(target="getattr", args={"tuple": [{"node": "x"}, "__class__"]}),
        "reads an attribute that is not on the white list",
    ),
    "an attribute of three": (
        lambda d: at(d, "call_function").update(target="getattr", args={"tuple": [{"node": "x"}, "shape", 1]}),
        "with other than two arguments",
    ),
    "an unknown operation": (
        lambda d: at(d, "call_function").update(op="call_anything"),
        "is a 'call_anything', which no",
    ),
    "a target that is no name": (lambda d: at(d, "call_function").update(target=["os"]), "which is no name"),
    "a private module": (
        lambda d: at(d, "call_module").update(target="conv.__class__"),
        "which the file does not hold",
    ),
    "a module that is not there": (
        lambda d: at(d, "call_module").update(target="nowhere"),
        "which the file does not hold",
    ),
    "a method as a module": (lambda d: at(d, "call_module").update(target="conv.forward"), "which is no tensor"),
    "code as a keyword": (
        lambda d: at(d, "call_function").update(kwargs={"dict": {f"inplace={PWN}, x": 1}}),
        "is no name",
    ),
    "code as a class": (lambda d: d.update({"class": f"Net: pass\n{PWN}\nclass A"}), "is no name"),
    "code as a name": (lambda d: at(d, "call_function").update(name=f"a; {PWN}"), "is no name"),
    "code as an input": (lambda d: at(d, "placeholder").update(target=f"x={PWN}"), "is no name"),
    "code as a path": (
        lambda d: (
            d["layers"].update({f'a"), {PWN}, ("': d["layers"]["conv"]}),
            at(d, "call_module").update(target=f'a"), {PWN}, ("'),
        ),
        "is no qualified name",
    ),
    "a dtype that is none": (
        lambda d: at(d, "call_function").update(args={"tuple": [{"dtype": "load"}]}),
        "is no value that a stored graph has",
    ),
    "a value of two kinds": (
        lambda d: at(d, "call_function").update(args={"tuple": [], "dict": {}}),
        "too many values",
    ),
    "a container as a layer": (
        lambda d: d["layers"]["conv"].update({"class": "Sequential"}),
        "which is no layer of torch.nn",
    ),
    "no class of torch.nn": (
        lambda d: d["layers"]["conv"].update({"class": "Parameter"}),
        "which is no layer of torch.nn",
    ),
    "a module of torch.nn": (
        lambda d: d["layers"]["conv"].update({"class": "functional"}),
        "which is no layer of torch.nn",
    ),
    "a layer of other sizes": (
        lambda d: d["layers"]["fc2"]["arguments"].update(out_features=5),
        r"fc2\.\w+ has shape \[4.*, its layer expects \[5",
    ),
    "too many calls": (lambda d: d.update(nodes=[{}] * 200_001), "a stored graph of 200001 calls; at most 200000"),
}


@pytest.mark.parametrize("case", FOREIGN.values(), ids=list(FOREIGN))
def test_foreign_graphs(literal: Any, case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data, tensors = copy.deepcopy(literal[0]), literal[1]
    case[0](data)
    with pytest.raises((ArtifactError, ValueError), match=case[1]):
        decode_graph(data, tensors)(torch.zeros(1, 1, 6, 6))
    assert not (tmp_path / "pwned").exists()
