"""The command ``secateur``."""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Modules in the current directory can be named in it, as in ``--model my_nets:small``.

    Args:
        argv: the words after ``secateur``; those of this process if not given.

    Returns:
        The exit code: 0 done, 1 an error, 2 the command line was wrong, 130 Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # signs that a terminal lacks become question marks
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        from secateur.cli.app import execute
    except ModuleNotFoundError as error:
        if error.name not in ("cyclopts", "yaml"):
            raise
        sys.stderr.write(
            f"error: the command line needs {error.name}, which is not installed: pip install 'secateur[cli]'\n"
        )
        return 1
    except KeyboardInterrupt:
        return 130
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return execute(list(sys.argv[1:] if argv is None else argv))
    finally:
        sys.path.remove(here)
