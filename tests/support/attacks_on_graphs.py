"""Stored graphs that were made to do harm."""

import json
from collections.abc import Callable
from typing import Any

from support.damage import DEEP, HUGE, Parts

Attack = Callable[[Parts], Any]


def _call(target: str, *args: Any, op: str = "call_function", **kwargs: Any) -> dict[str, Any]:
    return {"op": op, "name": "evil", "target": target, "args": {"tuple": list(args)}, "kwargs": {"dict": kwargs}}


def _insert(*calls: dict[str, Any]) -> Attack:
    """Calls after the graph's inputs, each under a name of its own; "evil0" is the first one's."""

    def attack(parts: Parts) -> None:
        nodes = parts.record["graph"]["nodes"]
        for k, call in enumerate(calls):
            nodes.insert(1 + k, {**json.loads(json.dumps(call)), "name": f"evil{k}"})

    return attack


X, E0, E1 = {"node": "x"}, {"node": "evil0"}, {"node": "evil1"}
SIDE = 2000


def _doubled(first: Any, times: int) -> Attack:
    """A value that each call makes twice as large."""
    calls = [_call("operator.add", first, first)]
    calls += [_call("operator.add", {"node": f"evil{k}"}, {"node": f"evil{k}"}) for k in range(times)]
    return _insert(*calls)


def _nested(times: int) -> Attack:
    """Tuples of two of the last tuple, which only look small."""
    calls = [_call("operator.add", {"tuple": [1]}, {"tuple": [2]})]
    pairs = ({"tuple": [{"node": f"evil{k}"}, {"node": f"evil{k}"}]} for k in range(times))
    calls += [_call("operator.add", {"tuple": [pair]}, {"tuple": []}) for pair in pairs]
    return _insert(*calls, _call("torch.tensor", {"node": f"evil{times}"}))


def _layer(kind: str, **arguments: Any) -> Attack:
    def attack(parts: Parts) -> None:
        parts.record["graph"]["layers"]["evil"] = {"class": kind, "arguments": arguments}
        parts.record["graph"]["nodes"].insert(1, _call("evil", X, op="call_module"))

    return attack


def _node(number: int, **changes: Any) -> Attack:
    return lambda parts: parts.record["graph"]["nodes"][number].update(changes)


GRAPHS: dict[str, Attack] = {
    **{
        f"huge {call['target']}": _insert(call)
        for call in (
            _call("torch.zeros", HUGE),
            _call("torch.ones", 2**20, 2**20),
            _call("torch.empty", HUGE),
            _call("torch.full", {"tuple": [HUGE]}, 1.0),
            _call("torch.arange", HUGE),
            _call("torch.linspace", 0, 1, HUGE),
            _call("torch.eye", 2**20),
            _call("torch.rand", 2**35),
            _call("torch.randn", 2**60, 2**60),
            _call("torch.nn.functional.pad", X, [10**9, 10**9]),
            _call("torch.repeat_interleave", X, 10**12),
            _call("torch.nn.functional.interpolate", X, scale_factor=1e6),
            _call("torch.fft.fft", X, 2**36),
            _call("torch.tensordot", X, X, dims=10**9),
            _call("torch.histc", X, 2**40),
            _call("torch.stft", X, 2**31),
            _call("torch.tile", X, {"tuple": [10**6, 10**6]}),
            _call("torch.block_diag", *[X] * 500),
            _call("operator.mul", [0], HUGE),
            _call("operator.mul", "a", HUGE),
            _call("operator.mod", "%999999999d", 3),
            _call("operator.pow", 10, 10**9),
            _call("repeat", X, 10**5, 10**5, 1, 1, op="call_method"),
            _call("new_zeros", X, HUGE, op="call_method"),
            _call("type", X, "os.system", op="call_method"),
        )
    },
    "expanded and copied": _insert(
        _call("expand", X, 2**30, -1, -1, -1, -1, op="call_method"), _call("contiguous", E0, op="call_method")
    ),
    "expanded and summed": _insert(
        _call("torch.zeros", 1), _call("expand", E0, HUGE, op="call_method"), _call("torch.sum", E1)
    ),
    **{
        f"expanded and {how}": _insert(
            _call("torch.zeros", 1), _call("expand", E0, 2**28, op="call_method"), _call(how, E1, *more)
        )
        for how, more in (
            ("torch.unbind", ()),
            ("torch.split", (1,)),
            ("torch.chunk", (2**28,)),
            ("torch.tensor_split", (2**27,)),
        )
    },
    "products without end": _insert(
        _call("torch.rand", SIDE, SIDE),
        *[_call("torch.matmul", {"node": f"evil{k}"}, {"node": f"evil{k}"}) for k in range(300)],
    ),
    "a thousand steps of a large tensor": _insert(
        _call("torch.rand", SIDE, SIDE), *[_call("torch.sin", {"node": f"evil{k}"}) for k in range(1000)]
    ),
    "many at once": _insert(
        *[_call("torch.rand", 2000, 2000) for _ in range(40)],
        _call("torch.stack", [{"node": f"evil{k}"} for k in range(40)]),
    ),
    **{
        f"cubic {how}": _insert(_call("torch.rand", SIDE, SIDE), _call(how, E0))
        for how in (
            "torch.svd",
            "torch.linalg.inv",
            "torch.matrix_exp",
            "torch.linalg.eigvals",
            "torch.det",
            "torch.linalg.qr",
        )
    },
    "cubic power": _insert(_call("torch.rand", SIDE, SIDE), _call("torch.matrix_power", E0, 2**30)),
    "pairs": _insert(_call("torch.rand", 10**5, 2), _call("torch.cdist", E0, E0)),
    "distances": _insert(_call("torch.rand", SIDE, SIDE), _call("torch.cdist", E0, E0, 3.0)),
    "a window of everything": _insert(
        _call("torch.rand", 1, 1, 2000, 2000), _call("torch.nn.functional.max_pool2d", E0, 999, 1)
    ),
    "a convolution with everything": _insert(
        _call("torch.rand", 1, 1, 2000, 2000), _call("torch.conv2d", E0, E0, None, 1, 1000)
    ),
    "counted up to": _insert(
        _call("torch.zeros", 3, dtype={"dtype": "int64"}), _call("torch.bincount", E0, minlength=HUGE)
    ),
    "one hot": _insert(
        _call("torch.zeros", 3, dtype={"dtype": "int64"}), _call("torch.nn.functional.one_hot", E0, HUGE)
    ),
    "rows that are not there": _insert(
        _call("torch.full", {"tuple": [3]}, 2**40, dtype={"dtype": "int64"}),
        _call("torch.rand", 4, 4),
        _call("torch.nn.functional.embedding", E0, E1),
    ),
    "bags that are not there": _insert(
        _call("torch.zeros", 3, dtype={"dtype": "int64"}),
        _call("torch.rand", 4, 4),
        _call("torch.full", {"tuple": [2]}, -7, dtype={"dtype": "int64"}),
        _call("torch.nn.functional.embedding_bag", E0, E1, {"node": "evil2"}),
    ),
    "memory of others": _insert(_call("as_strided", X, {"tuple": [2**30]}, {"tuple": [2**20]}, op="call_method")),
    **{
        f"nothing to {name}": _insert(_call(name, X, 0))
        for name in (
            "torch.channel_shuffle",
            "torch.pixel_shuffle",
            "torch.pixel_unshuffle",
            "torch.chunk",
            "torch.split",
            "torch.nn.functional.max_pool2d",
            "torch.nn.functional.unfold",
            "torch.native_channel_shuffle",
        )
    },
    "a stride of nothing": _insert(_call("torch.nn.functional.max_pool2d", X, 2, 0)),
    "a step of nothing": _insert(_call("unfold", X, 1, 1, 0, op="call_method")),
    "groups of nothing": _insert(_call("torch.rand", 1, 1, 3, 3), _call("torch.conv2d", X, E0, None, 1, 0, 1, 0)),
    "a list that doubles": _doubled([1], 60),
    "a tuple that doubles": _doubled({"tuple": [1]}, 60),
    "a text that doubles": _doubled("a", 60),
    "a number that doubles": _insert(
        _call("operator.mul", 2**60, 2**60),
        *[_call("operator.mul", {"node": f"evil{k}"}, {"node": f"evil{k}"}) for k in range(60)],
    ),
    "tuples of tuples": _nested(50),
    "lists in lists": _insert(_call("torch.tensor", DEEP)),
    **{
        f"layer {kind} {list(arguments.values())[:1]}": _layer(kind, **arguments)
        for kind, arguments in (
            ("Linear", {"in_features": 2**31, "out_features": 2**31}),
            ("Embedding", {"num_embeddings": HUGE, "embedding_dim": 9}),
            ("LSTM", {"input_size": 1, "hidden_size": 1, "num_layers": 10**9}),
            ("ZeroPad2d", {"padding": 10**9}),
            ("Transformer", {"d_model": 8, "nhead": 1, "num_encoder_layers": 10**9}),
            ("Upsample", {"scale_factor": 1e6}),
            ("AdaptiveAvgPool2d", {"output_size": 10**6}),
            ("Unfold", {"kernel_size": 0}),
            ("DataParallel", {"module": 1}),
            ("Sequential", {}),
            ("ModuleList", {"modules": 10**9}),
            ("ParameterList", {"values": 10**9}),
            ("LazyLinear", {"out_features": 2}),
            ("LocalResponseNorm", {"size": 10**9}),
            ("MaxPool2d", {"kernel_size": 3, "stride": 0}),
            ("os", {}),
            ("Module", {}),
            ("Flatten", {"device": "cuda"}),
            ("Dropout", {"p": {"float": "nan"}}),
            ("ChannelShuffle", {"groups": 10**9}),
        )
    },
    "a cycle": _node(1, args={"tuple": [{"node": "relu"}]}),
    "a node of itself": _node(1, args={"tuple": [{"node": "conv"}]}),
    "two of one name": _node(2, name="conv"),
    "a name of ours": _node(2, name="self"),
    "a name of Python's": _node(2, name="class"),
    "no output": lambda parts: parts.record["graph"]["nodes"].pop(),
    "two outputs": lambda parts: parts.record["graph"]["nodes"].append(parts.record["graph"]["nodes"][-1]),
    "no calls": lambda parts: parts.record["graph"].update(nodes=[]),
    "an input more": _insert(_call("more", op="placeholder")),
    "inputs without end": _insert(_call("*more", op="placeholder")),
    "os.system": _insert(_call("os.system", "touch canary")),
    "exec": _insert(_call("builtins.exec", "open('canary', 'w')")),
    "torch.load": _insert(_call("torch.load", "canary")),
    "torch.ops": _insert(_call("torch.ops.load_library", "canary")),
    "a method that calls back": _insert(_call("apply_", X, "canary", op="call_method")),
    "a method of a text": _insert(_call("index", "a", "a", op="call_method")),
    "its code": _insert(_call("getattr", X, "__reduce__")),
    "code as a keyword": _insert(_call("torch.add", X, X, **{"alpha=open('canary', 'w'), x": 1})),
    "a module in a module in a": lambda parts: parts.record["graph"]["layers"].update(
        {".".join("a" * 5000): parts.record["graph"]["layers"]["conv"]}
    ),
}
