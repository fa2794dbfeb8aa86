"""How a dense model is built again by a callable of the user's, and when a file may ask for that."""

import importlib
import inspect
import json
import sys
import sysconfig
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import nn

from secateur.artifacts.offline import no_connections, without_defaults, without_weights
from secateur.errors import ArtifactError

OURS = ("secateur.examples",)  # modules of our own whose models are built without being asked for
CONSENT = "Pass model=<an instance of the original architecture>; or, if you trust that code, trust=True."


@dataclass(frozen=True)
class Build:
    """How the dense model is built again: ``package.module:callable`` and JSON keyword arguments."""

    callable: str
    args: dict[str, Any]

    @staticmethod
    def of(build: "str | Mapping[str, Any]") -> "Build":
        """Read what a user wrote, or what `vars` of a Build gave.

        Arguments that ask for trained weights become None or False: the weights are in the file, and nothing shall be
        fetched for it.

        Raises:
            ArtifactError: it names no callable, or arguments that JSON does not have.
        """
        given: Any = (build, {}) if isinstance(build, str) else (build.get("callable"), build.get("args") or {})
        spec, args = given
        named = isinstance(spec, str) and spec.count(":") == 1 and all(spec.split(":"))
        if not named or not isinstance(args, Mapping):
            raise ArtifactError(
                f'build={build!r}: write "package.module:callable", or {{"callable": ..., "args": {{...}}}}'
            )
        plain = without_weights(cast("Mapping[str, Any]", args))
        try:
            json.dumps(plain, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ArtifactError(f"the arguments of build={spec} are no JSON: {error}") from error
        return Build(spec, plain)

    def __call__(self, *, trust: bool) -> nn.Module:
        """Build the dense model. Without ``trust`` nothing is imported, nothing is called that need not be a model, and
        nothing is fetched.

        Raises:
            ArtifactError: it wants trust, or does not build a module.
        """
        module, _, name = self.callable.partition(":")
        if not (trust or module in sys.modules or module in OURS):
            raise ArtifactError(
                f"this result is built by {self.callable}, and loading it would import {module}. If you trust that "
                "code, pass trust=True or import it first; or pass model=<an instance of the original architecture>."
            )
        try:
            target: Any = importlib.import_module(module)
            for part in name.split("."):
                target = getattr(target, part)
        except (ImportError, AttributeError) as error:
            raise ArtifactError(f"{self.callable}, which builds the model, can't be found: {error}") from error
        if not (trust or _builds_models(target, module)):
            raise ArtifactError(
                f"{self.callable} need not build a model: it is neither a module class, nor code of your own, nor a "
                "function that says it returns a module. If you trust it, pass trust=True."
            )
        args = self.args if trust else without_defaults(target, self.args)
        try:
            with nullcontext() if trust else no_connections(self.callable, CONSENT):
                built = target(**args)
        except ArtifactError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"{self.callable} could not build the model: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(built, nn.Module):
            raise ArtifactError(f"{self.callable} gave a {type(built).__name__}, not a torch.nn.Module")
        return built


def _builds_models(target: Any, module: str) -> bool:
    """Whether something that a file names may be called: a file could name ``os.system`` too, or, through a module of
    the user's, whatever that module imported.
    """
    if isinstance(target, type):
        return issubclass(target, nn.Module)
    if not inspect.isfunction(target) or target.__module__.partition(".")[0] in ("secateur", "torch"):
        return False  # `secateur.load` and the like say that they return a module, too
    returned: Any = target.__annotations__.get("return")
    if isinstance(returned, type) and issubclass(returned, nn.Module):
        return True
    if target.__module__.partition(".")[0] != module.partition(".")[0]:
        return False
    file = Path(target.__code__.co_filename)
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return file.is_file() and not any(file.is_relative_to(place) for place in installed)
