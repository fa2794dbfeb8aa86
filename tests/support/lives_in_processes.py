"""A run that is killed, and goes on in a fresh process, beside one that nobody disturbs."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from support.several import environment

SUPPORT = Path(__file__).parent


def run(program: str, folder: Path, what: str, way: str) -> int:
    """The exit code of ``python PROGRAM FOLDER WHAT WAY``."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, str(SUPPORT / program), str(folder), what, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment())
    assert done.returncode in (0, -9), done.stderr
    return done.returncode


def whole_and_resumed(program: str, tmp_path: Path, way: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an undisturbed run reported, and one that was killed by SIGKILL and went on."""
    assert run(program, tmp_path / "whole", "whole", way) == 0
    assert run(program, tmp_path / "cut", "killed", way) == -9
    assert not (tmp_path / "cut" / "killed.json").exists()
    assert run(program, tmp_path / "cut", "resumed", way) == 0
    found = [json.loads((tmp_path / p).read_text()) for p in ("whole/whole.json", "cut/resumed.json")]
    return found[0], found[1]
