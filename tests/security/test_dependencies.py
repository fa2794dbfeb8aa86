"""What secateur stands on: declared, bounded, pinned for the checks, and of licences that allow it.

Known vulnerabilities are looked up by ``scripts/audit``, which needs the network.
"""

import ast
import importlib.metadata as metadata
import sys
import tomllib
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from support.dangers import dotted

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml"}
INSTALLERS = {"setuptools", "wheel"}  # `pip freeze` leaves them out
ALLOWED = (
    "apache", "bsd", "mit", "isc", "mpl", "mozilla", "psf", "python software foundation", "hpnd", "unlicense", "zlib",
    "zero-clause", "0bsd",
)  # fmt: skip
JUDGED = {"namex": "Apache License 2.0"}
"""Licences that no metadata say, read in the distribution's own file."""


def declared() -> dict[str, list[Requirement]]:
    """Requirements by extra; "" for those of every installation."""
    extras = PROJECT["optional-dependencies"]
    found = {"": PROJECT["dependencies"], **extras}
    return {extra: [Requirement(line) for line in lines] for extra, lines in found.items()}


def every() -> list[Requirement]:
    return [r for lines in declared().values() for r in lines if r.name != "secateur"]


def pins() -> dict[str, str]:
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(n): v for n, _, v in (line.partition("==") for line in lines if line)}


def reached(*extras: str) -> set[str]:
    """The distributions that an installation with some extras holds, as far as they are installed here."""
    todo = [r for extra in ("", *extras) for r in declared()[extra] if r.name != "secateur"]
    found: set[str] = set()
    while todo:
        wanted = todo.pop()
        name = canonicalize_name(wanted.name)
        if (wanted.marker and not wanted.marker.evaluate({"extra": ""})) or name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # an extra of the environment's own choice
        found.add(name)
        todo += [Requirement(line) for line in needs]
    return found


def test_every_dependency_has_a_least_version() -> None:
    without = [str(r) for r in every() if not any(part.operator in (">=", "==", "~=") for part in r.specifier)]
    assert without == []


def test_every_dependency_is_pinned_for_the_checks_within_its_bounds() -> None:
    known = pins()
    wrong = [
        f"{r}: {known.get(canonicalize_name(r.name), 'no pin')}"
        for r in every()
        if not (pin := known.get(canonicalize_name(r.name))) or not r.specifier.contains(pin, prereleases=True)
    ]
    assert wrong == []


def test_what_they_bring_along_is_pinned_too() -> None:
    assert sorted(reached("all", *declared()["all"][0].extras, "dev") - set(pins()) - INSTALLERS) == []


def imports() -> Iterator[tuple[str, str]]:
    """Modules of others that the package imports, with the file."""
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            elif isinstance(node, ast.Call) and dotted(node.func) == "importlib.import_module":
                names = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
            for name in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - {"secateur"}:
                yield name, str(path.relative_to(ROOT))


def test_nothing_is_imported_that_is_not_declared() -> None:
    known = {canonicalize_name(r.name) for extra, lines in declared().items() if extra != "dev" for r in lines}
    found = dict(imports())
    assert len(found) > 10
    assert {n: at for n, at in found.items() if canonicalize_name(IMPORTED_AS.get(n, n)) not in known} == {}


def licence(name: str) -> str:
    """What a distribution's metadata say of its licence, in lower case."""
    about = metadata.metadata(name)
    classes = [line for line in about.get_all("Classifier") or [] if line.startswith("License ::")]
    text = about.get("License-Expression") or " ".join(classes) or (about.get("License") or "")[:200]
    return text.lower() or JUDGED.get(name, "").lower()


@pytest.mark.parametrize("extra", [e for e in declared() if e not in ("dev", "all")])
def test_licences_of_an_installation_are_allowed(extra: str) -> None:
    found = {name: licence(name) for name in reached(extra)}
    assert found
    assert {n: words for n, words in found.items() if not any(a in words for a in ALLOWED) or "gpl" in words} == {}


def auditor() -> Any:
    """``scripts/audit`` as a module."""
    loader = SourceFileLoader("audit", str(ROOT / "scripts/audit"))
    module = module_from_spec(spec_from_loader("audit", loader))  # type: ignore[arg-type]
    loader.exec_module(module)
    return module


def test_the_audit_says_what_is_vulnerable_and_what_was_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"name": "good", "version": "1", "vulns": []},
        {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]},
        {"name": "unknown", "skip_reason": "not on PyPI"},
    ]
    assert auditor().judged(rows) == 1
    said = capsys.readouterr().out
    assert "bad 2: CVE-1, mended in 3" in said
    assert "skipped for 1 of 3 pinned versions, the first because: not on PyPI" in said
    assert "2 of 3 pinned versions audited, 1 with known vulnerabilities" in said
    assert auditor().judged(rows[:1]) == 0


def test_an_audit_that_can_not_be_made_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = auditor()
    monkeypatch.setattr(audit, "find_spec", lambda name: None)
    assert audit.main() == 0
    assert "Audit skipped: pip-audit is not installed" in capsys.readouterr().out
    monkeypatch.setattr(audit, "find_spec", lambda name: name)
    monkeypatch.setattr(audit, "COMMAND", [sys.executable, "-c", "print('no network')"])
    assert audit.main() == 0
    assert "Audit skipped: pip-audit gave no answer" in capsys.readouterr().out
