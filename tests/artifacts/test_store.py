"""Saving and loading: what comes back, what is refused, and that nothing is pickled."""

import copy
import importlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.artifacts import forms, read_record
from secateur.artifacts.forms import fingerprint
from secateur.artifacts.record import seal as sealed
from secateur.errors import ArtifactError, OutputError
from secateur.inputs import run
from secateur.modules import named_tensors
from support.networks import Attention, Cnn, LiteralNet, Mlp, Residual, Tied, bert, example

SOURCE = Path(sc.__file__).parent


def pruned(model: nn.Module) -> sc.Result:
    return sc.prune(model, example(model), keep=0.5)


def same(a: nn.Module, b: nn.Module, args: Any) -> bool:
    first, second = run(a.eval(), args), run(b.eval(), args)
    first, second = (t if isinstance(t, Tensor) else t[0] for t in (first, second))
    return torch.equal(first, second)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A pruned `Mlp` with its class kept, in a directory."""
    sc.save(pruned(Mlp()), tmp_path / "mlp")
    return tmp_path / "mlp"


@pytest.fixture
def stored_graph(tmp_path: Path) -> Path:
    """A pruned `LiteralNet`, whose class was rewritten, in a directory."""
    sc.save(pruned(LiteralNet()), tmp_path / "literal")
    return tmp_path / "literal"


def seal(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda record: None) -> None:
    """Change the record, and make its hashes fit the files, as an attacker would."""
    record = json.loads((folder / "artifact.json").read_text())
    record["files"] = {name: fingerprint(folder / name) for name in record["files"]}
    change(record)
    (folder / "artifact.json").write_text(json.dumps(sealed(record)))


# ---------------------------------------------------------------------- round trips


@pytest.mark.parametrize("make", [Mlp, Cnn, Residual, Attention, Tied, bert])
def test_a_kept_class_comes_back_through_a_dense_instance(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    result = pruned(make())
    sc.save(result, tmp_path / "out")
    dense = make()
    before = copy.deepcopy(dense.state_dict())
    loaded = sc.load(tmp_path / "out", model=dense)
    assert type(loaded) is type(result.model)
    assert not loaded.training
    assert same(loaded, result.model, example(dense))
    assert str(loaded) == str(result.model)
    assert all(torch.equal(t, before[n]) for n, t in dense.state_dict().items())
    run(loaded.train(), example(dense))


def test_what_is_in_the_directory(saved: Path) -> None:
    names = {"model.safetensors", "plan.json", "artifact.json", "probe.safetensors", "scores.safetensors", "README.md"}
    assert {f.name for f in saved.iterdir()} == names
    assert sc.Plan.load(saved / "plan.json").sizes == {"0.weight:0": 4}


def test_training_on_before_saving(tmp_path: Path) -> None:
    result = pruned(Mlp())
    optimiser = torch.optim.SGD(result.model.parameters(), 0.1)
    result.model(torch.randn(8, 4)).square().mean().backward()
    optimiser.step()
    sc.save(result.model, tmp_path / "out")
    assert same(sc.load(tmp_path / "out", model=Mlp()), result.model, torch.randn(2, 4))


def test_saving_what_was_loaded(saved: Path, tmp_path: Path) -> None:
    loaded = sc.load(saved, model=Mlp())
    sc.save(loaded, tmp_path / "again", args=torch.randn(3, 4))
    assert same(sc.load(tmp_path / "again", model=Mlp()), loaded, torch.randn(2, 4))


def test_a_copy_remembers_its_plan(tmp_path: Path) -> None:
    for make in (Mlp, LiteralNet):
        model = copy.deepcopy(pruned(make()).model)
        sc.save(model, tmp_path / make.__name__)
        assert same(sc.load(tmp_path / make.__name__, model=make()), model, example(make()))


def test_a_model_that_was_never_pruned(tmp_path: Path) -> None:
    model = Mlp()
    with pytest.raises(ArtifactError, match=r"no example inputs are known for the probe: pass args= \(and kwargs=\)"):
        sc.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    sc.save(model, tmp_path / "out", args=torch.randn(1, 4))
    assert same(sc.load(tmp_path / "out", model=Mlp()), model, torch.randn(2, 4))


def test_loaded_tensors_lie_where_torch_would_put_them(saved: Path) -> None:
    """In the file they don't: its header decides where each starts, and kernels then round differently."""
    held = named_tensors(sc.load(saved, model=Mlp()))
    raw = load_file(saved / "model.safetensors")
    assert any(t.data_ptr() % 64 for t in raw.values())
    assert [n for n, t in held.items() if t.data_ptr() % 64] == []


def test_tied_weights_are_stored_once_and_stay_tied(tmp_path: Path) -> None:
    result = pruned(Tied())
    sc.save(result, tmp_path / "out")
    assert "head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    loaded = sc.load(tmp_path / "out", model=Tied())
    assert loaded.head.weight is loaded.embed.weight
    assert len(list(loaded.parameters())) == len(list(result.model.parameters()))


class Buffered(Mlp):
    """Holds a table that ``state_dict`` leaves out, along the hidden axis."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self[2](self[1](self[0](x)) * self.table)


def test_buffers_that_the_state_leaves_out_are_stored(tmp_path: Path) -> None:
    result = pruned(Buffered())
    sc.save(result, tmp_path / "out")
    loaded = sc.load(tmp_path / "out", model=Buffered())
    assert torch.equal(loaded.table, result.model.table)
    assert "table" not in loaded.state_dict()


def test_frozen_and_half_precision_parameters(tmp_path: Path) -> None:
    model = Mlp().bfloat16()
    model[0].bias.requires_grad_(False)
    result = sc.prune(model, torch.randn(2, 4, dtype=torch.bfloat16), keep=0.5)
    sc.save(result, tmp_path / "out")
    loaded = sc.load(tmp_path / "out", model=copy.deepcopy(model))
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert [n for n, p in loaded.named_parameters() if not p.requires_grad] == ["0.bias"]


# ---------------------------------------------------------------------- from a callable


BUILDER = (
    "from support.networks import Mlp\n\ndef make(hidden=8):\n    return Mlp(hidden)\n\ndef number():\n    return 3\n"
)


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "users_builder.py").write_text(BUILDER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "users_builder", raising=False)
    return "users_builder"


def test_a_callable_is_imported_with_trust_alone(builder: str, tmp_path: Path) -> None:
    result = pruned(Mlp(hidden=12))
    sc.save(result, tmp_path / "out", build={"callable": f"{builder}:make", "args": {"hidden": 12}})
    with pytest.raises(
        ArtifactError, match=r"built by users_builder:make, and loading it would import users_builder\. If"
    ):
        sc.load(tmp_path / "out")
    assert builder not in sys.modules
    assert same(sc.load(tmp_path / "out", trust=True), result.model, torch.randn(2, 4))
    assert builder in sys.modules
    assert same(sc.load(tmp_path / "out"), result.model, torch.randn(2, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("users_builder:number", "gave a int, not a torch.nn.Module"),
        ("users_builder:nothing", "users_builder:nothing, which builds the model, can.t be found"),
        ({"callable": "users_builder:make", "args": {"depth": 3}}, "could not build the model: TypeError"),
        ({"callable": "users_builder:make", "args": {"hidden": 9}}, r"0\.weight is \[9, 4\], planned for \[8, 4\]"),
    ],
)
def test_callables_that_do_not_build_it(builder: str, build: Any, message: str, tmp_path: Path) -> None:
    sc.save(pruned(Mlp()), tmp_path / "out", build=build)
    with pytest.raises(ArtifactError, match=message):
        sc.load(tmp_path / "out", trust=True)


@pytest.mark.parametrize("build", ["make", ":make", "a:b:c", {"args": {}}, {"callable": 3}])
def test_builds_that_name_nothing(build: Any, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r'write "package\.module:callable"'):
        sc.save(pruned(Mlp()), tmp_path / "out", build=build)
    with pytest.raises(ArtifactError, match="the arguments of build=a:b are no JSON"):
        sc.save(pruned(Mlp()), tmp_path / "out", build={"callable": "a:b", "args": {"x": torch.zeros(1)}})
    assert not (tmp_path / "out").exists()


FETCHING = """
import socket
from support.networks import Mlp

class Enumeration:
    def get_state_dict(self):
        pass

asked = []

def make(hidden=8, weights=Enumeration(), pretrained=True, pretrained_backbone="imagenet", mode="fan", fetch=0) -> Mlp:
    asked.append((weights, pretrained, pretrained_backbone, mode))
    if fetch:
        socket.create_connection(("127.0.0.1", fetch), timeout=5).close()
    return Mlp(hidden)
"""


@pytest.fixture
def fetching(builder: str, tmp_path: Path) -> Any:
    """The user's module with a builder that would fetch weights, imported."""
    (tmp_path / f"{builder}.py").write_text(FETCHING)
    return importlib.import_module(builder)


def test_a_saved_build_asks_for_no_weights(fetching: Any, tmp_path: Path) -> None:
    args = {"weights": "DEFAULT", "pretrained": True, "pretrained_backbone": "imagenet", "mode": "DEFAULT"}
    sc.save(pruned(Mlp()), tmp_path / "out", build={"callable": "users_builder:make", "args": args})
    kept = {"weights": None, "pretrained": False, "pretrained_backbone": None, "mode": "DEFAULT"}
    assert read_record(tmp_path / "out")["build"]["args"] == kept
    sc.load(tmp_path / "out")
    sc.load(tmp_path / "out", trust=True)
    assert fetching.asked == [(None, False, None, "DEFAULT")] * 2
    args = {"weights": fetching.Enumeration(), "hidden": 8}  # one of torchvision's, which JSON does not have
    sc.save(pruned(Mlp()), tmp_path / "other", build={"callable": "users_builder:make", "args": args})
    assert read_record(tmp_path / "other")["build"]["args"] == {"weights": None, "hidden": 8}
    sc.save(pruned(Mlp()), tmp_path / "mine", build={"callable": "mine:make", "args": {"weights": [0.3, 0.7]}})
    assert read_record(tmp_path / "mine")["build"]["args"] == {"weights": [0.3, 0.7]}


def test_a_record_that_asks_for_weights_gets_none(fetching: Any, tmp_path: Path) -> None:
    sc.save(pruned(Mlp()), tmp_path / "out", build="users_builder:make")
    args = {"weights": "DEFAULT", "pretrained": True, "pretrained_backbone": "imagenet"}
    seal(tmp_path / "out", lambda record: record["build"].update(args=args))
    sc.load(tmp_path / "out")
    sc.load(tmp_path / "out", trust=True)
    assert fetching.asked == [(None, False, None, "fan")] * 2


def test_defaults_that_fetch_are_taken_with_trust_alone(fetching: Any, tmp_path: Path) -> None:
    sc.save(pruned(Mlp()), tmp_path / "out", build="users_builder:make")
    sc.load(tmp_path / "out")
    sc.load(tmp_path / "out", trust=True)
    (without, trusted) = fetching.asked
    assert without == (None, False, None, "fan")
    assert trusted[1:] == (True, "imagenet", "fan")


def test_building_opens_no_connection_without_trust(fetching: Any, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        sc.save(pruned(Mlp()), tmp_path / "out", build={"callable": "users_builder:make", "args": {"fetch": port}})
        with pytest.raises(ArtifactError, match="users_builder:make, which builds the model, would fetch something"):
            sc.load(tmp_path / "out")
        with pytest.raises(TimeoutError):
            server.accept()
        sc.load(tmp_path / "out", trust=True)
        server.accept()[0].close()
        socket.create_connection(("127.0.0.1", port)).close()  # everybody else may, as before


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
def test_torchvision_fetches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = pytest.importorskip("torchvision.models")
    hub = importlib.import_module("torchvision.models._api")
    asked: list[str] = []
    monkeypatch.setattr(hub, "load_state_dict_from_url", lambda url, *args, **kwargs: asked.append(url))
    net = models.squeezenet1_1(num_classes=1000).eval()
    small = sc.prune(net, torch.randn(1, 3, 64, 64), keep=0.5)
    sc.save(small, tmp_path / "out", build={"callable": "torchvision.models:squeezenet1_1"})
    for args in ({"weights": "DEFAULT"}, {"pretrained": True}):
        seal(tmp_path / "out", lambda record, args=args: record["build"].update(args=args))
        x = torch.randn(2, 3, 64, 64)
        assert same(sc.load(tmp_path / "out"), small.model, x)
    assert asked == []


@pytest.mark.parametrize("args", [3, [1], "x", [["hidden", 8]]])
def test_hostile_arguments_are_refused(fetching: Any, args: Any, tmp_path: Path) -> None:
    sc.save(pruned(Mlp()), tmp_path / "out", build="users_builder:make")
    seal(tmp_path / "out", lambda record: record["build"].update(args=args))
    with pytest.raises(ArtifactError):
        sc.load(tmp_path / "out")
    assert fetching.asked == []


def test_a_kept_class_needs_a_model(saved: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"keeps its class, support\.networks:Mlp, and does not say how to build it"
    ):
        sc.load(saved)


# ---------------------------------------------------------------------- from the stored graph


def test_a_stored_graph_needs_no_class(stored_graph: Path) -> None:
    loaded = sc.load(stored_graph)
    assert type(loaded).__name__ == "LiteralNet"
    x = torch.randn(16, 1, 6, 6)
    assert same(loaded, sc.load(stored_graph, model=LiteralNet()), x)
    assert not torch.equal(loaded.train()(x), loaded(x))
    loaded(x).square().mean().backward()
    assert all(p.grad is not None for p in loaded.parameters())


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import secateur as sc
if sys.argv[2] == "save":
    from users_net import Net
    torch.manual_seed(0)
    sc.save(sc.prune(Net(), torch.randn(2, 1, 6, 6), keep=0.5), Path(sys.argv[1]) / "out")
else:
    assert not (Path(sys.argv[1]) / "users_net.py").exists()
    model = sc.load(Path(sys.argv[1]) / "out")
    assert model(torch.zeros(5, 1, 6, 6)).shape == (5, 4)
    assert "users_net" not in sys.modules
    print(type(model).__name__, sum(p.numel() for p in model.parameters()))
"""


def test_in_a_fresh_process_without_the_source(tmp_path: Path) -> None:
    """The class lives in a file that is gone when the result is loaded."""
    (tmp_path / "users_net.py").write_text(
        "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
        "class Net(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.conv, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(96, 4)\n"
        "    def forward(self, x):\n        return self.fc(F.relu(self.conv(x)).view(-1, 96))\n"
    )
    command = [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path)]
    subprocess.run([*command, "save"], check=True, timeout=120)
    (tmp_path / "users_net.py").unlink()
    out = subprocess.run([*command, "load"], check=True, timeout=120, capture_output=True, text=True).stdout
    assert out.split() == ["Net", str(3 * 10 + 48 * 4 + 4)]


# ---------------------------------------------------------------------- what is refused


def test_a_result_is_not_overwritten(saved: Path) -> None:
    before = (saved / "artifact.json").read_bytes()
    with pytest.raises(
        OutputError, match=r"holds a saved result already; choose another place, or pass overwrite=True"
    ):
        sc.save(pruned(Cnn()), saved)
    assert (saved / "artifact.json").read_bytes() == before
    sc.save(pruned(Cnn()), saved, overwrite=True)
    assert type(sc.load(saved, model=Cnn())).__name__ == "Cnn"


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file; give a directory"):
        sc.save(pruned(Mlp()), tmp_path / "out")
    with pytest.raises(OutputError, match="can't be made"):
        sc.save(pruned(Mlp()), tmp_path / "out" / "deeper")
    assert (tmp_path / "out").read_text() == "mine"


def test_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    sc.save(pruned(Mlp()), tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_failing_half_way_leaves_no_result(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(forms, "save_file", full)
    with pytest.raises(OutputError, match="no space left on device"):
        sc.save(pruned(Cnn()), saved, overwrite=True)
    assert not (saved / "artifact.json").exists()
    assert not [f for f in saved.iterdir() if f.name.startswith(".")]
    with pytest.raises(ArtifactError, match=r"holds no saved result \(there is no artifact\.json\)"):
        sc.load(saved, model=Cnn())


def test_no_result_at_all(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no saved result"):
        sc.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "probe.safetensors"])
def test_missing_truncated_and_altered_files(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for broken in (whole[:-7], whole[:10], b"", whole[:-1] + bytes([whole[-1] ^ 1])):
        (saved / name).write_bytes(broken)
        with pytest.raises(
            ArtifactError, match=re.escape(name) + " is not the file that was saved: it was truncated or"
        ):
            sc.load(saved, model=Mlp())
    (saved / name).unlink()
    with pytest.raises(ArtifactError, match=re.escape(name) + " is missing"):
        sc.load(saved, model=Mlp())


@pytest.mark.parametrize("name", ["model.safetensors", "plan.json", "probe.safetensors"])
def test_broken_files_with_hashes_that_fit(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for broken in (whole[:-7], whole[:10], b"", b"\xff" * 40, b"[" * 50_000):
        (saved / name).write_bytes(broken)
        seal(saved)
        with pytest.raises(ArtifactError, match=r"can't be read|can't be rebuilt|holds no JSON object"):
            sc.load(saved, model=Mlp())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "can't be read"),
        (b'{"format": "secateur"', "can't be read"),
        (b"\xff\xfe", "can't be read"),
        (b"[]", "holds no JSON object"),
        (b"[" * 100_000, "can't be read"),
        (
            b'{"format": "onnx", "version": 1}',
            "is of format 'onnx', version 1; this secateur reads 'secateur', version 3",
        ),
        (b'{"format": "secateur", "version": 99}', "is of format 'secateur', version 99"),
        (b'{"format": "secateur", "version": 1, "version": 1}', "a key is repeated"),
        (b'{"format": "secateur", "version": 1, "files": 3}', "class, build, .*, files missing or malformed"),
        (b'{"format": "secateur", "version": 2, "files": {}}', "is not the record that was saved: it was truncated"),
        (b'{"format": "secateur", "version": true}', "is of format 'secateur', version True"),
        (b'{"format": "secateur", "version": 1, "seed": NaN}', "NaN is no number of JSON"),
        (b'{"format": "secateur", "version": 1, "seed": 1e999}', "1e999 is no number of JSON"),
    ],
)
def test_records_that_are_none(saved: Path, content: bytes, message: str) -> None:
    (saved / "artifact.json").write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        sc.load(saved, model=Mlp())


@pytest.mark.parametrize("key", ["graph", "build", "aliases", "parameters", "probe", "class"])
@pytest.mark.parametrize("value", [None, 3, "text", [1], {"a": 1}])
def test_records_with_a_foreign_value(stored_graph: Path, key: str, value: Any) -> None:
    """Either the value does not matter for this result, or it is refused; nothing else happens."""
    wanted = sc.load(stored_graph)
    seal(stored_graph, lambda record: record.update({key: value}))
    try:
        loaded = sc.load(stored_graph)
    except ArtifactError:
        return
    assert same(loaded, wanted, torch.randn(2, 1, 6, 6))


def test_another_model_than_saved(saved: Path) -> None:
    with pytest.raises(
        ArtifactError, match=r"does not fit: the plan was made for another architecture \(Mlp\) than this C"
    ):
        sc.load(saved, model=Cnn())


def test_weights_that_do_not_fit(saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    for change, message in (
        ({"2.bias": None}, r"1 missing, 0 unknown, 0 of another shape: 2\.bias is missing"),
        ({"2.bias": torch.zeros(3)}, r"0 missing, 0 unknown, 1 of another shape: 2\.bias is \[3\], not \[2\]"),
        ({"more": torch.zeros(3)}, r"0 missing, 1 unknown, 0 of another shape: more is unknown"),
    ):
        save_file({n: t for n, t in {**weights, **change}.items() if t is not None}, saved / "model.safetensors")
        seal(saved)
        with pytest.raises(ArtifactError, match=message):
            sc.load(saved, model=Mlp())


def test_other_outputs_than_when_it_was_saved(saved: Path) -> None:
    """The code changed since (another activation), or the weights were exchanged for others."""

    class Changed(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](torch.tanh(self[0](x)))

    with pytest.raises(ArtifactError, match=r"other outputs .*: output 0 is off by .* Its code or its weights"):
        sc.load(saved, model=Changed())
    weights = load_file(saved / "model.safetensors")
    weights["2.bias"] += 1e-3
    save_file(weights, saved / "model.safetensors")
    seal(saved)
    with pytest.raises(ArtifactError, match="gives other outputs on its probe"):
        sc.load(saved, model=Mlp())


def test_a_model_that_does_not_run_its_probe(saved: Path) -> None:
    class Failing(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("today")

    with pytest.raises(ArtifactError, match="the loaded model does not run its probe: KeyError: 'today'"):
        sc.load(saved, model=Failing())


# ---------------------------------------------------------------------- no pickle

AUDIT = """
import sys
import torch, secateur as sc
from support.networks import LiteralNet, Mlp, example
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith("pickle.") else None)
for make in (Mlp, LiteralNet):
    model = make()
    out = sys.argv[1] + make.__name__
    sc.save(sc.prune(model, example(model), keep=0.5), out)
    sc.load(out, model=make())
sc.load(out)
sc.load(out)
sc.save(sc.load(out), out + "again", args=example(LiteralNet()))
assert not seen, seen
"""


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    """In a process of its own: an audit hook can't be taken away again."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n{AUDIT}"
    subprocess.run([sys.executable, "-W", "error", "-c", code, f"{tmp_path}/"], check=True, timeout=120)


def test_no_pickle_in_the_source() -> None:
    calls = re.compile(
        r"from pickle|pickle\.(load|dump|Unpickler|Pickler)|torch\.save\(|allow_pickle=True"
        r"|torch\.load\((?!.*weights_only=True)"
    )
    found = [
        f"{f.name}: {line.strip()}"
        for f in SOURCE.rglob("*.py")
        for line in f.read_text().splitlines()
        if calls.search(line)
    ]
    assert found == []


def test_all_tensors_are_stored(saved: Path) -> None:
    loaded = sc.load(saved, model=Mlp())
    assert load_file(saved / "model.safetensors").keys() == named_tensors(loaded).keys()
