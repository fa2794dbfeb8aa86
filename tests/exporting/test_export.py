"""Files for other runtimes: what they hold, that they are checked, and that nothing is left of those that fail."""

import inspect
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ExportError, MissingExtra, OutputError
from secateur.examples import SimpleNet
from secateur.exporting import writing
from support.networks import Mlp, bert, example, llama

MACHINE = (b"site-packages", b"stack_trace", b'.py"', b".py'", str(Path.home()).encode(), __file__.encode())


def bytes_of(path: Path) -> bytes:
    """All that a file holds, unpacked."""
    if path.suffix != ".pt2":
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"".join(archive.read(name) for name in archive.namelist())


def assert_tells_nothing(path: Path, values: Tensor | None = None) -> None:
    """No path of this machine, and none of the example inputs' values."""
    content = bytes_of(path)
    for part in (*MACHINE, str(path.parent).encode()):
        assert part not in content, part
    if values is not None:
        assert values.numpy().tobytes() not in content


def run_onnx(path: Path, **inputs: Tensor) -> list[Tensor]:
    session = onnxruntime.InferenceSession(path)
    return [torch.from_numpy(array) for array in session.run(None, {n: t.numpy() for n, t in inputs.items()})]


def assert_same(got: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b.detach(), rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def rewritten() -> sc.Result:
    torch.manual_seed(0)
    result = sc.prune(SimpleNet(), torch.randn(2, 1, 10, 10), keep=0.5)
    assert result.rewritten
    return result


@pytest.fixture(scope="module")
def mlp() -> sc.Result:
    torch.manual_seed(0)
    return sc.prune(Mlp(), torch.randn(2, 4), keep=0.5)


# ---------------------------------------------------------------------- what is written


def test_a_rewritten_network_as_onnx(rewritten: sc.Result, tmp_path: Path) -> None:
    done = sc.export(rewritten, tmp_path / "net.onnx")
    assert done.inputs == {"x": ("batch", 1, 10, 10)}
    assert (done.outputs, done.dynamic, done.notes) == (("output",), ("batch",), ())
    assert done.checks == ("batch 2", "batch 1", "batch 3")
    assert done.difference < 1e-5
    assert done.files == (tmp_path / "net.onnx",)
    assert done.size_bytes == (tmp_path / "net.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    x = torch.randn(7, 1, 10, 10)
    assert_same(run_onnx(done.path, x=x), [rewritten.model.eval()(x)])
    proto = onnx.load(done.path)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert proto.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_tells_nothing(done.path)
    shown = "".join(str(done).replace("│", "").split())  # a long path goes on in the next line
    assert all(part in shown for part in ("net.onnx", "opset", "batchx1x10x10", "ofthescaleapart"))


def test_a_rewritten_network_as_a_program_of_torch(rewritten: sc.Result, tmp_path: Path) -> None:
    inputs = torch.rand(2, 1, 10, 10)
    done = sc.export(rewritten, tmp_path / "net.pt2", inputs)
    assert (done.format, done.opset, done.dynamic) == ("pt2", None, ("batch",))
    program = torch.export.load(done.path)
    for batch in (1, 6):
        x = torch.randn(batch, 1, 10, 10)
        assert_same([program.module()(x)], [rewritten.model.eval()(x)])
    assert set(program.state_dict) == set(rewritten.model.state_dict())
    assert_tells_nothing(done.path, inputs)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_network_of_torchvisions_that_keeps_its_class(ending: str, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    torch.manual_seed(0)
    dense = resnet18(num_classes=10).eval()
    small = sc.prune(dense, torch.randn(1, 3, 32, 32), keep=0.5).model
    assert isinstance(small, type(dense))
    done = sc.export(small, tmp_path / f"net.{ending}")
    assert done.inputs == {"x": ("batch", 3, 32, 32)}, "one sample is enough to find that the batch is free"
    assert done.checks == ("batch 1", "batch 3")
    x = torch.randn(5, 3, 32, 32)
    got = run_onnx(done.path, x=x) if ending == "onnx" else [torch.export.load(done.path).module()(x)]
    assert_same(got, [small(x)])
    assert_tells_nothing(done.path)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_llama_without_its_cache(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = llama()
    small = sc.prune(net, example(net), keep=0.5).model
    done = sc.export(small, tmp_path / f"net.{ending}")
    assert done.inputs == {"input_ids": ("batch", "sequence")}
    assert done.outputs == ("logits",)
    ids = torch.randint(64, (3, 5))
    expected = [small(input_ids=ids, use_cache=False).logits]
    if ending == "onnx":
        assert_same(run_onnx(done.path, input_ids=ids), expected)
    else:
        assert_same([torch.export.load(done.path).module()(input_ids=ids)["logits"]], expected)
    assert_tells_nothing(done.path)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_bert_with_a_mask(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = bert()
    inputs = {"attention_mask": torch.ones(2, 7, dtype=torch.int64), "input_ids": torch.randint(64, (2, 7))}
    small = sc.prune(net, inputs, keep=0.5).model
    done = sc.export(small, tmp_path / f"net.{ending}")
    assert set(done.inputs) == {"input_ids", "attention_mask"}
    assert done.dynamic == ("batch", "sequence")
    assert done.outputs == ("last_hidden_state", "pooler_output")
    ids, mask = torch.randint(64, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[1, 4:] = 0
    out = small(input_ids=ids, attention_mask=mask)
    if ending == "onnx":
        got = run_onnx(done.path, input_ids=ids, attention_mask=mask)
    else:
        back = torch.export.load(done.path).module()(input_ids=ids, attention_mask=mask)
        got = [back[name] for name in done.outputs]
    assert_same(got, [out.last_hidden_state, out.pooler_output])
    assert (out.last_hidden_state[1] - small(input_ids=ids).last_hidden_state[1]).abs().max() > 1e-3  # the mask counts
    assert_tells_nothing(done.path)


@pytest.mark.slow
def test_a_vision_transformer(tmp_path: Path) -> None:
    from torchvision.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    net = VisionTransformer(image_size=16, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32).eval()
    small = sc.prune(net, torch.randn(2, 3, 16, 16), keep=0.5).model
    done = sc.export(small, tmp_path / "net.onnx")
    assert done.dynamic == ("batch",)
    x = torch.randn(4, 3, 16, 16)
    assert_same(run_onnx(done.path, x=x), [small(x)])


@dataclass
class Answer:
    scores: Tensor
    hidden: tuple[Tensor, ...]
    note: str = "none"
    mask: Tensor | None = None


class Wordy(nn.Module):
    """Keyword inputs, plain values among them, and a dataclass for an output, one of whose names is an input's."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, *, scores: Tensor, times: int = 1, flag: bool = False) -> Answer:
        y = self.layer(x) * times + (scores if flag else 0)
        return Answer(scores=y, hidden=(x.relu(), y.relu()))


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_keyword_inputs_and_a_dataclass(ending: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, x, scores = Wordy().eval(), torch.randn(2, 4), torch.randn(2, 4)
    done = sc.export(net, tmp_path / f"net.{ending}", {"flag": True, "scores": scores, "x": x, "times": 3})
    assert list(done.inputs) == ["x", "scores"], "in the order of the signature; what holds no tensor is a part of it"
    assert done.outputs == ("scores_out", "hidden_0", "hidden_1")
    expected = net(x, scores=scores, times=3, flag=True)
    if ending == "onnx":
        got = run_onnx(done.path, x=x, scores=scores)
    else:
        nest = torch.export.load(done.path).module()(x=x, scores=scores)
        got = [nest["scores"], *nest["hidden"]]
    assert_same(got, [expected.scores, *expected.hidden])


class Fixed(nn.Module):
    """Its code holds the batch of 2."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1) * 2


def test_a_batch_that_the_code_fixes_is_fixed_and_said_so(tmp_path: Path) -> None:
    done = sc.export(Fixed(), tmp_path / "net.pt2", torch.randn(2, 3, 4))
    assert done.inputs == {"x": (2, 3, 4)}
    assert done.checks == ("the example inputs",)
    assert "the batch can't differ from call to call" in done.notes[0]
    assert "the batch can't differ" in " ".join(str(done).split())


def test_static_sizes_as_asked_for(mlp: sc.Result, tmp_path: Path) -> None:
    done = sc.export(mlp, tmp_path / "net.pt2", dynamic=False)
    assert (done.inputs, done.dynamic, done.notes) == ({"input": (2, 4)}, (), ())


def test_weights_beside_the_file_and_an_opset(mlp: sc.Result, tmp_path: Path) -> None:
    done = sc.export(mlp, tmp_path / "net.onnx", external_data=True, opset=21)
    assert [file.name for file in done.files] == ["net.onnx", "net.onnx.data"]
    assert done.opset == 21
    assert done.size_bytes == sum(file.stat().st_size for file in done.files)
    x = torch.randn(3, 4)
    assert_same(run_onnx(done.path, input=x), [mlp.model.eval()(x)])


def test_large_weights_lie_beside_the_file(mlp: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateur.exporting.onnx_files.LARGEST", 100)  # bytes; 4 units of 4 + 1 and 2 of 4 + 1 have 120
    assert len(sc.export(mlp, tmp_path / "net.onnx", dynamic=False).files) == 2


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    sc.export(net, tmp_path / "net.pt2", torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert "forward" not in net.__dict__
    assert torch.equal(torch.get_rng_state(), state)
    assert net[0].weight.requires_grad


# ---------------------------------------------------------------------- latency


def test_dense_against_pruned_in_onnxruntime(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(64, 2048), nn.ReLU(), nn.Linear(2048, 64)).eval()
    small = sc.prune(dense, torch.randn(8, 64), keep=0.05).model
    done = sc.export(small, tmp_path / "net.onnx", dense=dense, seconds=0.5)
    assert done.latency is not None
    assert done.latency.left < 0.6, "a twentieth of the work"
    assert done.latency.pruned_ms < done.latency.dense_ms
    assert (done.latency.threads, done.latency.batch) == (1, 8)
    assert done.latency.rounds >= 7
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    assert "latency in onnxruntime" in str(done)
    assert "1 thread, in turns" in " ".join(str(done).split())


def test_a_dense_model_of_other_inputs_is_no_comparison(mlp: sc.Result, tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"the dense model could not be exported .* Sequential does not run on inputs"
    ):
        sc.export(mlp, tmp_path / "net.onnx", dense=nn.Sequential(nn.Linear(5, 2)))
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- what fails leaves nothing


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_a_file_that_computes_something_else_is_refused(
    ending: str, mlp: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = writing.reference

    def off(model: nn.Module, call: Any) -> list[tuple[str, Tensor]]:
        return [(name, tensor + 0.5) for name, tensor in own(model, call)]

    monkeypatch.setattr(writing, "reference", off)
    (tmp_path / f"net.{ending}").write_text("an earlier file")
    with pytest.raises(ExportError, match=r"computes something else than the model: output by 0\.5 at a scale of"):
        sc.export(mlp, tmp_path / f"net.{ending}", overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == [f"net.{ending}"]
    assert (tmp_path / f"net.{ending}").read_text() == "an earlier file"


@pytest.mark.parametrize("at", ["capture", "compare", "_publish"])
def test_ctrl_c_leaves_no_half_file(at: str, mlp: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, at, stop)
    with pytest.raises(KeyboardInterrupt):
        sc.export(mlp, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


class Outside(nn.Module):
    """Goes through numpy, where no exporter follows."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.sort(x.numpy()))


def test_code_that_can_not_be_captured(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"torch.export can't capture Outside: \w+: "):
        sc.export(Outside(), tmp_path / "net.pt2", torch.randn(2, 3))
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_onnx_has_not(tmp_path: Path) -> None:
    class Special(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.bessel_j0(x)

    with pytest.raises(ExportError, match=r"torch.onnx can't write this model: .*bessel_j0"):
        sc.export(Special(), tmp_path / "net.onnx", torch.randn(2, 3), dynamic=False)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_could_not_be_checked(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"Sequential computes in bfloat16.*Export model\.float\(\)"):
        sc.export(nn.Sequential(nn.Linear(4, 2)).bfloat16(), tmp_path / "net.onnx", torch.randn(2, 4).bfloat16())


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("net.pth", {}, "ends in neither .onnx, .pt2 nor .safetensors"),
        ("net.pt2", {"opset": 18}, "are for ONNX"),
        ("net.pt2", {"args": (1, 2, 3, 4)}, "does not take these inputs"),
        ("net.pt2", {"args": torch.zeros(2, 5)}, "Mlp does not run on inputs of shape [2, 5]"),
    ],
)
def test_what_is_asked_for_wrongly(name: str, how: dict[str, Any], said: str, mlp: sc.Result, tmp_path: Path) -> None:
    with pytest.raises(ExportError) as error:
        sc.export(mlp, tmp_path / name, **how)
    assert said in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_places_that_are_taken_or_not_there(mlp: sc.Result, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    for name, said in (
        ("net.pt2", "exists already"),
        ("folder.pt2", "is a directory"),
        ("nowhere/net.pt2", "can't write beside"),
    ):
        with pytest.raises(OutputError, match=said):
            sc.export(mlp, tmp_path / name)
    assert (tmp_path / "net.pt2").read_text() == "mine"


def test_a_model_without_inputs_says_so(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no example inputs of Mlp are known: pass args="):
        sc.export(Mlp(), tmp_path / "net.pt2")


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_without_a_package_the_error_names_the_extra(
    package: str, mlp: sc.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=rf"exporting to ONNX needs {package}, .*'secateur\[onnx\]'"):
        sc.export(mlp, tmp_path / "net.onnx")


def test_importing_secateur_imports_none_of_them() -> None:
    import subprocess

    code = "import sys, secateur; print([m for m in ('onnx', 'onnxruntime', 'huggingface_hub') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert inspect.ismodule(sc.hub)
