"""Results that were made to do harm, whatever rebuilds their model; `GRAPHS` has more for stored graphs."""

import json
from collections.abc import Callable
from typing import Any

import torch

from secateur.packed import HEADER
from support.attacks_on_graphs import GRAPHS as GRAPHS
from support.attacks_on_graphs import Attack
from support.damage import DEEP, HUGE, Parts


def _build(spec: str, **arguments: Any) -> Attack:
    return lambda parts: parts.record.update(build={"callable": spec, "args": arguments}, graph=None)


def _file(name: str) -> Attack:
    return lambda parts: parts.record["files"].update({name: {"sha256": "0" * 64, "bytes": 0}})


def _header(change: Callable[[dict[str, Any]], Any]) -> Attack:
    return lambda parts: parts.headers.append(change)


def _entry(**changes: Any) -> Attack:
    """Another place, shape or type for a tensor of the file."""

    def change(header: dict[str, Any]) -> None:
        name = next(name for name in header if name.endswith(("weight", "weight#values")))
        header[name].update(changes)

    return _header(change)


def _record(**entries: Any) -> Attack:
    return lambda parts: parts.record.update(entries)


def _setting(**changes: Any) -> Attack:
    entry = {"module": "", "attribute": "heads", "index": None, "before": 0, "value": 7, **changes}
    return lambda parts: parts.plan["settings"].append(entry)


def _dims(dims: Any) -> Attack:
    def attack(parts: Parts) -> None:
        next(iter(parts.plan["tensors"].values()))["dims"][0] = dims

    return attack


def _axis(**changes: Any) -> Attack:
    return lambda parts: next(iter(parts.plan["axes"].values())).update(changes)


def _packed(change: Callable[[dict[str, Any]], Any]) -> Attack:
    """Another description of packed tensors, where there are any."""

    def attack(parts: Parts) -> None:
        held = parts.tensors["model.safetensors"]
        if HEADER in held:
            data = json.loads(bytes(held[HEADER].numpy()))
            change(data)
            held[HEADER] = torch.frombuffer(bytearray(json.dumps(data).encode()), dtype=torch.uint8)

    return attack


def _packed_entry(**changes: Any) -> Attack:
    return _packed(lambda data: next(iter(data["tensors"].values())).update(changes))


CLASSES: dict[str, Attack] = {
    **{
        f"built by {spec}": _build(spec, **arguments)
        for spec, arguments in (
            ("os:system", {"command": "touch canary"}),
            ("builtins:exec", {}),
            ("builtins:open", {"file": "canary", "mode": "w"}),
            ("subprocess:Popen", {"args": ["touch", "canary"]}),
            ("canary_module:make", {}),
            ("secateur.files:write_text", {"path": "canary", "text": "x"}),
            ("secateur.files:os.system", {"command": "touch canary"}),
            ("secateur:artifacts.store.Path.touch", {"self": "canary"}),
            ("support.networks:torch.load", {"f": "canary"}),
            ("support.networks:torch.hub.load", {"repo_or_dir": "canary", "model": "x"}),
            ("support.networks:example", {"model": 1}),
            ("support.networks:nn.Linear", {"in_features": 2**18, "out_features": 2**18}),
            ("torch.nn:Linear", {"in_features": 2**31, "out_features": 2**31}),
            ("torch.nn:Embedding", {"num_embeddings": 2**30, "embedding_dim": 64}),
            ("support.networks:Mlp", {"hidden": 2**30}),
            ("support.networks:Mlp", {"hidden": "8"}),
            ("support.networks:Mlp", {"nonsense": 1}),
            ("torch.nn:Module", {}),
            ("secateur:load", {"path": "canary.safetensors", "trust": True}),
            ("support.networks:torch.jit.load", {"f": "canary"}),
            ("torch.nn:Transformer", {"d_model": 2**14, "nhead": 1}),
            ("shutil:rmtree", {"path": "."}),
            ("torch.utils.data:DataLoader", {}),
            ("a b:c", {}),
            (":", {}),
            ("torch.nn:", {}),
            ("torch.nn:Linear.__init__.__globals__", {}),
            ("torch.nn.modules.module:Module.__class__.__base__", {}),
        )
    },
    "aliases in a ring": _record(aliases={"a": "b", "b": "a"}),
    "an alias of itself": _record(aliases={"a": "a"}),
    "an alias of nothing": _record(aliases={"0.weight": "nothing"}),
    "frozen what is not there": _record(frozen=["nothing"]),
    "a parameter that is not there": _record(parameters=["nothing"]),
    "no class": _record(**{"class": ""}),
    **{
        f"a file {name[:20]}": _file(name)
        for name in (
            "../x.json",
            "/etc/passwd",
            "x/../../y.safetensors",
            "artifact.json",
            "x" * 500 + ".json",
            "..",
            "\x00.json",
        )
    },
    **{f"version {version!r}": _record(version=version) for version in (0, 4, "2", 2.0, True, None, [2])},
    "another format": _record(format="onnx"),
    "history of numbers": _record(history=[1, 2]),
    "history without steps": _record(history=[{"figures": {}}]),
    "a history without end": _record(history=[{"step": "x", "figures": None}] * 10_001),
    "changes without end": _record(earlier=[{}] * 10_001),
    "an earlier change of nothing": _record(earlier=[{"version": 1}]),
    "a change of no kind": lambda parts: parts.plan.update(kind="os:system"),
    "a change of a list": lambda parts: parts.plan.update(kind=["widths"]),
    "a plan of version 9": lambda parts: parts.plan.update(version=9),
    "no probe": _record(probe={}),
    "a probe of nothing": _record(probe={"tuple": [{"tuple": []}, {"dict": {}}]}),
    "a probe of lists": _record(probe={"tuple": [{"tuple": [{"list": [{"value": DEEP}]}]}, {"dict": {}}]}),
    "a probe with a keyword": _record(
        probe={"tuple": [{"tuple": [{"tensor": "input.0"}]}, {"dict": {"self": {"value": 1}}}]}
    ),
    "a probe of another tensor": _record(probe={"tuple": [{"tuple": [{"tensor": "output.0"}]}, {"dict": {}}]}),
    "a probe that is no call": _record(probe={"list": []}),
    "a probe without outputs": lambda parts: parts.tensors["probe.safetensors"].pop("output.0"),
    "a setting of the class": _setting(attribute="__class__"),
    "a setting of forward": _setting(attribute="forward"),
    "a setting of training": _setting(attribute="training", before=0, value=5),
    "a setting of modules": _setting(attribute="_modules"),
    "a setting of hooks": _setting(attribute="_is_full_backward_hook"),
    "a setting below": _setting(attribute="__dict__.x"),
    "a setting of no module": _setting(module="nothing.at.all"),
    "a huge setting": _setting(module="0", attribute="in_features", before=4, value=2**60),
    "a negative setting": _setting(module="0", attribute="in_features", before=4, value=-1),
    "a setting of a node": lambda parts: parts.plan["settings"].append(
        {"node": "x", "path": [0, 0], "before": 0, "value": 9}
    ),
    "NaN": lambda parts: parts.plan.update(example=float("nan")),
    "infinity": lambda parts: parts.plan["axes"].update(x={"kind": "channels", "before": float("inf"), "kept": [0]}),
    "a dim of a hundred thousand parts": _dims({"sum": [0] * 100_000 + [8]}),
    "a dim of a product": _dims({"product": [2**20, 2**20, 2**20]}),
    "a dim of a thousand factors": _dims({"product": [10**3000] * 1000}),
    "a dim of factors of one": _dims({"product": [1] * 100_000 + [8]}),
    "a dim of nothing and much": _dims({"product": [0, HUGE]}),
    "a deep dim": _dims(json.loads('{"sum": [' * 300 + "1" + "]}" * 300)),
    "a negative dim": _dims(-8),
    "a dim without an end": _dims({"axis": "0.weight:0", "size": HUGE}),
    "a huge axis": _axis(before=HUGE),
    "units twice": _axis(kept=[0, 0, 1]),
    "units beyond": _axis(kept=[0, 99]),
    "no units": _axis(kept=[]),
    "units of text": _axis(kept=["0"]),
    "units of a half": _axis(kept=[0.5]),
    "a bias of nothing": lambda parts: parts.plan.update(biases=["nothing.bias"]),
    "a bias twice": lambda parts: parts.plan.update(biases=["0.bias"]),
    "a scale of nothing": lambda parts: parts.plan.update(
        scales=[{"tensor": "nothing", "dim": 0, "positions": [[0, HUGE]], "before": 2, "after": 1}]
    ),
    "a scale of a dim that is not there": lambda parts: parts.plan.update(
        scales=[{"tensor": "0.weight", "dim": 9, "positions": [[0, 1]], "before": 2, "after": 1}]
    ),
    "a scale of much": lambda parts: parts.plan.update(
        scales=[{"tensor": "0.weight", "dim": 0, "positions": [[0, 4]] * 50_000, "before": 2, "after": 1}]
    ),
    "an example of much": lambda parts: parts.plan.update(
        example={"tuple": [{"tuple": [{"tensor": {"shape": [HUGE, HUGE], "dtype": "float32"}}]}, {"dict": {}}]},
        rewrites=["somewhere"],
    ),
    "rewritten without a graph": lambda parts: parts.plan.update(rewrites=["somewhere"]),
    "an input of no size": lambda parts: parts.tensors["probe.safetensors"].update({"input.0": torch.zeros(0, HUGE)}),
    "an input of many": lambda parts: parts.tensors["probe.safetensors"].update({"input.0": torch.zeros(20_000, 4)}),
    "tensors that overlap": _entry(data_offsets=[0, 8]),
    "a tensor beyond the end": _entry(data_offsets=[0, HUGE]),
    "a tensor that ends before it begins": _entry(data_offsets=[64, 0]),
    "a tensor before the beginning": _entry(data_offsets=[-64, 0]),
    "a tensor of no shape": _entry(shape=[2**40, 2**40]),
    "a tensor of a negative shape": _entry(shape=[-1]),
    "a tensor of no type": _entry(dtype="PICKLE"),
    "a tensor of another type": _entry(dtype="I32"),
    "packed tensors of another version": _packed(lambda data: data.update(version=9)),
    "packed tensors of no version": _packed(lambda data: data.pop("version")),
    "a packed tensor of much": _packed_entry(shape=[HUGE, HUGE]),
    "a packed tensor of many dims": _packed_entry(shape=[1] * 100_000),
    "a packed tensor of nothing": _packed_entry(shape=[0, HUGE]),
    "a packed tensor of no form": _packed_entry(form="pickle"),
    "a packed tensor of two forms": _packed_entry(form="blocks", rows=HUGE, cols=HUGE),
    "a hundred thousand packed tensors": _packed(
        lambda data: data["tensors"].update({f"x{k}": {"form": "mask", "shape": [HUGE]} for k in range(100_000)})
    ),
    "no header": _header(lambda header: ""),
    "a header of a list": _header(lambda header: "[]"),
    "a deep header": _header(lambda header: "[" * 100_000),
    "a header with a tensor twice": _header(lambda header: json.dumps(header)[:-1] + "," + json.dumps(header)[1:]),
    "metadata of numbers": _header(lambda header: header.update({"__metadata__": {"format": 3}})),
    "no metadata": _header(lambda header: json.dumps({k: v for k, v in header.items() if k != "__metadata__"})),
}
