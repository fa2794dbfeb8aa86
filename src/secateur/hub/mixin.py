"""A base class that gives models of the user's ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

from torch import nn

from secateur.artifacts import load, open_saved, save
from secateur.artifacts.about import About
from secateur.artifacts.bounds import Limits, Meter
from secateur.artifacts.build import Build
from secateur.artifacts.offline import no_connections, without_defaults
from secateur.errors import ArtifactError
from secateur.hub.sharing import Source, fetch, noted, push_to_hub

CONSENT = "If you trust this file, pass model=<the dense model>."
ARGUMENTS = "secateur_arguments"  # of the constructor, on the instance


class HubMixin:
    """Models of a class that inherits from this share their pruned selves by themselves.

    The arguments of the constructor, where they are plain JSON data, are saved with the result, so that
    ``from_pretrained`` builds the dense model of the same class again and prunes it as it was pruned. A model whose
    class was replaced by its graph has no methods of the class any more: share it with `push_to_hub`.

    Example:
        >>> import tempfile, torch, secateur as sc
        >>> class Net(HubMixin, nn.Module):
        ...     def __init__(self, hidden: int) -> None:
        ...         super().__init__()
        ...         self.up, self.down = nn.Linear(4, hidden), nn.Linear(hidden, 2)
        ...
        ...     def forward(self, x):
        ...         return self.down(self.up(x).relu())
        >>> small = sc.prune(Net(hidden=8), torch.randn(1, 4), keep=0.5).model
        >>> folder = Path(tempfile.mkdtemp()) / "small"
        >>> small.save_pretrained(folder)
        >>> Net.from_pretrained(folder).up
        Linear(in_features=4, out_features=4, bias=True)
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Note the arguments of the constructor."""
        made = super().__new__(cls)
        made.__dict__[ARGUMENTS] = _plain_arguments(cls, args, kwargs)
        return made

    def save_pretrained(
        self,
        path: str | Path,
        *,
        args: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        about: About | Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Save the model, as `secateur.save` does, with how its class is built.

        Raises:
            OutputError, ArtifactError: as `secateur.save`.
        """
        save(cast(nn.Module, self), path, self._build(), args=args, kwargs=kwargs, about=about, overwrite=overwrite)

    def push_to_hub(self, repo_id: str, **how: Any) -> Source:
        """Save the model and upload it, as `secateur.push_to_hub` does, with how its class is built.

        Raises:
            HubError, ArtifactError, MissingExtra: as `secateur.push_to_hub`.
        """
        settings: dict[str, Any] = {"build": self._build(), **how}
        return push_to_hub(cast(nn.Module, self), repo_id, **settings)

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        model: nn.Module | None = None,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> nn.Module:
        """Load what ``save_pretrained`` or ``push_to_hub`` wrote. Only this class is built, whatever the file names.

        Args:
            repo_id_or_path: "user/name", or a directory.
            model: an instance of the dense model, where the constructor takes more than plain data.
            revision, token, cache_dir, local_files_only, force_download: as for `secateur.from_pretrained`.

        Raises:
            HubError, ArtifactError, MissingExtra: as `secateur.from_pretrained`.
        """
        folder, origin = fetch(
            repo_id_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
            force_download=force_download,
        )  # fmt: skip
        return noted(load(folder, model if model is not None else cls._dense(folder)), origin)

    @classmethod
    def _dense(cls, folder: Path) -> nn.Module | None:
        """The dense model that a result was made of; None where it has a graph, or does not say.

        Raises:
            ArtifactError: it is of another class.
        """
        saved = open_saved(folder)
        record = saved.record
        build: Any = record["build"]
        if record["graph"] is not None or build is None:
            return None
        if build["callable"] != _spec(cls):
            raise ArtifactError(
                f"{cls.__name__} builds no {build['callable']}, of which {folder} was made: load it with that class, "
                "or with sc.from_pretrained"
            )
        try:
            limits = replace(Limits.of_build(saved.size_bytes), consent=CONSENT)
            args = without_defaults(cls, Build.of(build).args)
            with Meter(limits, strict=False), no_connections(cls.__name__, CONSENT):
                return cast(nn.Module, cls(**args))
        except ArtifactError:
            raise
        except Exception as error:  # whatever the arguments of a foreign file may cause
            raise ArtifactError(f"{folder} can't be rebuilt: {type(error).__name__}: {error}") from error

    def _build(self) -> dict[str, Any] | None:
        spec, arguments = _spec(type(self)), self.__dict__.get(ARGUMENTS)
        return None if arguments is None else {"callable": spec, "args": arguments}


def _spec(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _plain_arguments(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of a constructor by name; None where they can't be kept as JSON."""
    try:
        bound = inspect.signature(cls.__init__).bind(None, *args, **kwargs)
        named = dict(list(bound.arguments.items())[1:])
        for parameter in inspect.signature(cls.__init__).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                named |= named.pop(parameter.name, {})
            elif parameter.kind in (parameter.VAR_POSITIONAL, parameter.POSITIONAL_ONLY) and parameter.name in named:
                return None
        return named if json.loads(json.dumps(named, allow_nan=False)) == named else None
    except (TypeError, ValueError):
        return None
