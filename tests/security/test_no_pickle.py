"""Nothing that secateur reads can run code: what our code could do is listed, and what it does is listened to."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.dangers import dangers, found_in

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests/support/loads_under_audit.py"
FORMATS = ROOT / "tests/artifacts/formats"
USERS = "a callable or a class that the user's own settings name"
OURS = "a module of ours or of a library that the code names"
JUSTIFIED = {
    ("src/secateur/models.py", "import pickle"): "for the class of an error that torch raises",
    ("src/secateur/integrations/lightning.py", "import pickle"): "for the class of an error that torch raises",
    ("src/secateur/models.py", "import_module(module_name)"): USERS,
    ("src/secateur/data/loading.py", "import_module(module_name)"): USERS,
    ("src/secateur/keras/worker.py", "import_module(name)"): USERS,
    ("src/secateur/artifacts/build.py", "import_module(module)"): "only with trust=True, or where it is imported",
    ("src/secateur/changes.py", "import_module(module)"): OURS,
    ("src/secateur/exporting/onnx_files.py", "import_module(name)"): OURS,
    ("src/secateur/hub/reaching.py", "import_module('huggingface_hub')"): OURS,
    ("src/secateur/hub/reaching.py", "import_module('huggingface_hub.errors')"): OURS,
    ("src/secateur/integrations/lightning.py", "import_module(name)"): OURS,
    ("src/secateur/keras/__init__.py", "import_module(f'{__name__}.{LATER[name]}')"): OURS,
    ("src/secateur/keras/anywhere.py", "import_module('keras')"): OURS,
    ("src/secateur/keras/backend.py", "import_module('keras')"): OURS,
    ("src/secateur/tuning/metrics.py", "import_module(f'torchmetrics.{within}')"): OURS,
    ("src/secateur/exporting/pt2_files.py", "torch.export.load"): "a file that the same call has just written",
    (
        "src/secateur/tracing/capture.py",
        "exec(f\"def forward(self, {', '.join(everything)}):\\n    return call(self, {', '.join(everything)})\")",
    ): "names of the arguments of the user's own forward",
}
"""Why each dangerous thing in the package may stay."""
IN_BENCHMARKS = {"import_module", "exec_module"}  # the loaders beside the data, which their command line names


def test_the_package_holds_nothing_dangerous_but_what_is_justified() -> None:
    found = {(str(path.relative_to(ROOT)), what) for path in (ROOT / "src").rglob("*.py") for what in dangers(path)}
    assert found == set(JUSTIFIED)


def test_nor_do_the_benchmarks() -> None:
    found = {(path.name, what) for path in (ROOT / "benchmarks").rglob("*.py") for what in dangers(path)}
    assert {(name, what) for name, what in found if what.partition("(")[0] not in IN_BENCHMARKS} == set()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("import pickle", "import pickle"),
        ("from cloudpickle import loads", "from cloudpickle import loads"),
        ("eval(text)", "eval(text)"),
        ("exec('x')", "exec('x')"),
        ("torch.load(f)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=safe)", "torch.load without weights_only=True"),
        ("torch.load(f, weights_only=False)", "torch.load without weights_only=True"),
        ("torch.jit.load(f)", "torch.jit.load"),
        ("np.load(f, allow_pickle=True)", "load(allow_pickle=True)"),
        ("np.load(f, allow_pickle=asked)", "load(allow_pickle=asked)"),
        ("keras().models.load_model(f)", "keras().models.load_model without safe_mode=True"),
        ("yaml.load(f, Loader=yaml.SafeLoader)", "yaml.load"),
        ("loader = yaml.UnsafeLoader", "yaml.UnsafeLoader"),
        ("os.system(x)", "os.system"),
        ("subprocess.run(x, shell=True)", "run(shell=True)"),
        ("zipfile.ZipFile(f).extractall()", "extractall()"),
        ("importlib.import_module(name)", "import_module(name)"),
        ("AutoModel.from_pretrained(x, trust_remote_code=True)", "from_pretrained(trust_remote_code=True)"),
    ],
)
def test_the_search_finds(code: str, what: str) -> None:
    assert what in set(found_in(ast.parse(code)))


def test_the_search_passes_what_is_safe() -> None:
    safe = (
        "torch.load(f, map_location='cpu', weights_only=True)\nnp.load(f)\nnp.save(f, x, allow_pickle=False)\n"
        "yaml.safe_load(f)\nmodel.eval()\nre.compile(x)\nkeras().models.load_model(f, safe_mode=True)"
    )
    assert list(found_in(ast.parse(safe))) == []


def heard(folder: Path, *what: str) -> dict[str, list[str]]:
    """What an audit hook in a process of its own heard of each load."""
    ours = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}  # where the script finds `support`
    asked = [sys.executable, SCRIPT, folder, FORMATS, *what]
    done = subprocess.run(asked, env=ours, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


def check(found: dict[str, list[str]], count: int) -> None:
    """Every load was silent, and the hook heard what it has to hear."""
    bad = {name: events for name, events in found.items() if name.isupper()}
    assert bad == {"A PICKLE": ["pickle.find_class"], "A SHELL": ["os.system"]}
    assert {name: events for name, events in found.items() if events and name not in bad} == {}
    assert len(found) - len(bad) == count


def test_no_load_unpickles_runs_or_connects(tmp_path: Path) -> None:
    saved = len(list(FORMATS.glob("v*-*")))
    assert saved >= 6
    check(heard(tmp_path), saved + 15)


@pytest.mark.heavy  # TensorFlow and datasets take longer to import than all the rest
@pytest.mark.parametrize(("what", "package"), [("keras", "keras"), ("hf", "datasets")])
def test_nor_do_those_of_other_libraries(what: str, package: str, tmp_path: Path) -> None:
    pytest.importorskip(package)
    check(heard(tmp_path, what), 1)
