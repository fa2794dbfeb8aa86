"""The command line: all commands together, and errors as words instead of tracebacks."""

from typing import Any

from cyclopts import App, CycloptsError, Parameter

from secateur.cli.commands import COMMANDS
from secateur.cli.ending import DONE, FAILED, INTERRUPTED, MISUSED, complain, explain, warnings_told, with_notes
from secateur.cli.flags import remember_given, remember_words
from secateur.errors import SecateurError


def _default(value: Any) -> str | None:
    """A default as the help shows it; nothing for an empty one."""
    return None if value is None or value is False or value in ((), {}) else str(value)


def _version() -> str:
    from secateur import __version__

    return __version__


app = App(
    name="secateur",
    help="""Make trained neural networks smaller and faster by removing what contributes least, with proof.

Start with `secateur prune`: it trains a small network on embedded data, prunes it, proves the result, tunes it, and
writes a report. `secateur COMMAND --help` explains a command, with examples.""",
    help_format="markdown",
    version=_version,
    config=[remember_given],
    default_parameter=Parameter(negative=(), show_default=_default, consume_multiple=True),
    exit_on_error=False,
    print_error=False,
    result_action="return_value",
)
for _name, _command in COMMANDS.items():
    app.command(_command, name=_name)


def execute(words: list[str]) -> int:
    """Carry out one command line; the exit code."""
    remember_words(words)
    try:
        with warnings_told():
            code = app(words or ["--help"])
    except CycloptsError as error:
        command = words[0] if words and words[0] in COMMANDS else ""
        complain("error", f"{error} See: secateur {command + ' ' if command else ''}--help")
        return MISUSED
    except KeyboardInterrupt:
        complain("stopped", "by Ctrl-C. Nothing was changed")
        return INTERRUPTED
    except SecateurError as error:
        explain(words)
        complain("error", with_notes(str(error), error))
        return FAILED
    except Exception as error:
        explain(words)
        said = f"unexpected {type(error).__name__}: {error}. See where it comes from with --debug"
        complain("error", with_notes(said, error))
        return FAILED
    return code if isinstance(code, int) else DONE
