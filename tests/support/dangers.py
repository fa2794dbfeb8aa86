"""What in a Python file can run code that somebody else wrote, found by its syntax tree."""

import ast
from collections.abc import Iterator
from pathlib import Path

MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
BUILT_IN = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "tempfile.mktemp", "subprocess.getoutput", "subprocess.getstatusoutput",
    "torch.jit.load", "torch.hub.load", "torch.export.load", "torch.package.PackageImporter",
    "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader", "yaml.UnsafeLoader",
    "yaml.FullLoader", "runpy.run_path", "runpy.run_module", "code.interact",
}  # fmt: skip
METHODS = {"extractall", "import_module", "exec_module"}
SAFE_WHERE = {"torch.load": ("weights_only", True), "keras.models.load_model": ("safe_mode", True)}
"""Calls that are safe where an argument has a value."""
UNSAFE_WHERE = {
    "allow_pickle": True,
    "trust_remote_code": True,
    "shell": True,
    "weights_only": False,
    "safe_mode": False,
}
"""Arguments that no call may have at a value, nor at any that is not written out, but for those of `PASSED_ON`."""


def dangers(path: Path) -> set[str]:
    """What is dangerous in a file, each as the text of a call or an import."""
    return set(found_in(ast.parse(path.read_text(encoding="utf-8"))))


def found_in(tree: ast.AST) -> Iterator[str]:
    """The same for a syntax tree."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (f"import {name.name}" for name in node.names if name.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in MODULES:
            yield f"from {node.module} import {', '.join(name.name for name in node.names)}"
        elif isinstance(node, ast.Call):
            yield from _calls(node)
        elif isinstance(node, ast.Attribute) and dotted(node) in CALLS:
            yield dotted(node)


def dotted(node: ast.AST) -> str:
    """A name with the names that it is an attribute of: "yaml.load"; calls in between as "()"."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    if isinstance(node, ast.Call):
        return f"{dotted(node.func)}()"
    return node.id if isinstance(node, ast.Name) else ""


def _calls(node: ast.Call) -> Iterator[str]:
    name, given = dotted(node.func), {word.arg: word.value for word in node.keywords if word.arg}
    last = name.rpartition(".")[2]
    if name in BUILT_IN or (isinstance(node.func, ast.Attribute) and last in METHODS):
        yield f"{last}({', '.join(ast.unparse(argument) for argument in node.args[:1])})"
    for end, (word, value) in SAFE_WHERE.items():
        told = given.get(word)
        asked = name == end or (end.startswith("keras") and name.endswith("models.load_model"))
        if asked and not (isinstance(told, ast.Constant) and told.value is value):
            yield f"{name} without {word}={value}"
    for word, value in UNSAFE_WHERE.items():
        told = given.get(word)
        if told is not None and (not isinstance(told, ast.Constant) or told.value is value):
            yield f"{last}({word}={ast.unparse(told)})"
