"""The command ``secateur``."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the words after ``secateur``; those of this process if not given.

    Returns:
        The exit code: 0 done, 1 an error, 2 the command line was wrong, 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]  signs that a terminal lacks become ?
    sys.path.insert(0, os.getcwd())
    try:
        from secateur.cli.app import execute
    except ModuleNotFoundError as error:
        if error.name not in ("cyclopts", "yaml"):
            raise
        sys.stderr.write(
            f"error: the command line needs {error.name}, which is not installed: pip install 'secateur[cli]'\n"
        )
        return 1
    finally:
        sys.path.pop(0)
    sys.path.insert(0, os.getcwd())
    try:
        return execute(list(sys.argv[1:] if argv is None else argv))
    finally:
        sys.path.remove(os.getcwd())
