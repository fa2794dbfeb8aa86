"""``sc.push_to_hub`` and ``sc.from_pretrained``: a saved result to the Hub, and back."""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from secateur.artifacts import load, loading, open_saved, save
from secateur.artifacts.about import About
from secateur.artifacts.card import card
from secateur.artifacts.record import CARD, RECORD, is_file_name
from secateur.changes import Changed
from secateur.errors import ArtifactError, HubError
from secateur.hub.reaching import package, reaching
from secateur.progress import progress_bar
from secateur.provenance import recall, remember
from secateur.strict import parse, read_text

COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a result is on the Hub.

    Attributes:
        repo_id: "user/name".
        revision: the commit, which never changes; a branch of that name may.
        url: of the commit's page; empty where it was only read.
    """

    repo_id: str
    revision: str
    url: str = ""

    @property
    def loading(self) -> str:
        """Python that loads just this."""
        return f'sc.from_pretrained("{self.repo_id}", revision="{self.revision}")'

    def __str__(self) -> str:
        return f"{self.url or self.repo_id}\nLoad it with {self.loading}"


def push_to_hub(
    result: nn.Module | Changed | str | Path,
    repo_id: str,
    *,
    build: str | Mapping[str, Any] | None = None,
    args: Any = None,
    kwargs: Mapping[str, Any] | None = None,
    about: About | Mapping[str, Any] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload a model that secateur made smaller",
    token: str | bool | None = None,
) -> Source:
    """Save a result and upload it, in one commit: its files, its model card, and nothing else.

    Args:
        result: what `prune` gave, or its model; or the directory that `save` or a run wrote, of which reports, settings
            and other files stay where they are.
        repo_id: "user/name"; made if it is not there.
        build, args, kwargs, about: as for `save`, where it is no directory. The example inputs are uploaded, too.
        private: whether a repository that is made is private; by default what the account has.
        revision: the branch to commit to, which must be there; by default the main one.
        create_pr: propose the commit as a pull request instead.
        message: of the commit.
        token: of the Hub; by default the one that this machine is logged in with.

    Returns:
        Where it is; printed, it says how to load just this commit.

    Raises:
        HubError: the Hub can't be reached or refuses, and what to do about that; or the card is a link to another file.
        ArtifactError: the result can't be saved, or the directory holds none.
        MissingExtra: huggingface_hub is not installed.
    """
    hub = package()
    with tempfile.TemporaryDirectory() as temporary, progress_bar(f"uploading {repo_id}") as advance:
        folder = Path(temporary) / "result"
        if isinstance(result, str | Path):
            _copy(Path(result), folder)
        else:
            save(result, folder, build, args=args, kwargs=kwargs, about=about)
        _write_card(folder, repo_id)
        advance()
        with reaching(f"uploading to {repo_id}"):
            api = hub.HfApi(token=token, library_name="secateur")
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message=message, revision=revision, create_pr=create_pr
            )
    return Source(repo_id=repo_id, revision=str(done.oid), url=str(done.pr_url or done.commit_url))


def _copy(path: Path, folder: Path) -> None:
    """The files of a saved result, checked against their hashes, and its card; none of the other files beside them."""
    saved = open_saved(path)
    if saved.single:
        raise HubError(
            f"{path} is a single file; the Hub wants a directory: sc.save(sc.load({str(path)!r}), directory)"
        )
    if (path / CARD).is_symlink():  # no hash says what it is: whoever made the result could have any file uploaded
        raise HubError(f"{path / CARD} is a link to {(path / CARD).readlink()}: put the card itself there")
    folder.mkdir()
    for name in (RECORD, CARD, *saved.record["files"]):
        if (path / name).is_file():
            shutil.copyfile(path / name, folder / name)
    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8", errors="replace")
        ours = loading(path.name, saved.record)
        (folder / CARD).write_text(text.replace(ours, loading(folder.name, saved.record)), encoding="utf-8")


def _write_card(folder: Path, repo_id: str) -> None:
    """Let the card say how to load the result from the Hub; what a user wrote in it stays."""
    record = open_saved(folder).record
    local, place = loading(folder.name, record), folder / CARD
    remote = local.replace(f"sc.load({json.dumps(folder.name)}", f"sc.from_pretrained({json.dumps(repo_id)}", 1)
    text = place.read_text(encoding="utf-8") if place.is_file() else card(record, local)
    place.write_text(text.replace(local, remote), encoding="utf-8")


def from_pretrained(
    repo_id_or_path: str | Path,
    model: nn.Module | None = None,
    *,
    trust: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> nn.Module:
    """Load a result from the Hub, or from a directory.

    Its files are checked as `load` checks them. Of the repository nothing else is downloaded.

    Args:
        repo_id_or_path: "user/name", or a directory that `save` wrote.
        model, trust: as for `load`. Whoever can write to the repository decides what ``trust`` imports.
        revision: a commit, tag or branch; by default the newest commit of the main branch. Give a commit to get the
            same files tomorrow; `source` tells which one it was.
        token: of the Hub; by default the one that this machine is logged in with.
        cache_dir: where downloads are kept; by default where huggingface_hub keeps them.
        local_files_only: use what was downloaded before, without the network.
        force_download: download again what is there.

    Returns:
        The model, in evaluation mode; `source` gives the commit that it came from.

    Raises:
        HubError: the Hub can't be reached, or has no such result, and what to do about that.
        ArtifactError: the files are no result, or do not fit the model.
        MissingExtra: huggingface_hub is not installed, and it is no directory.

    Example:
        >>> import torch, secateur as sc
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> folder = Path(tempfile.mkdtemp()) / "small"
        >>> save(sc.prune(net, torch.randn(1, 4), keep=0.5), folder)
        >>> from_pretrained(folder, model=net)[0].out_features
        4
    """
    folder, origin = fetch(
        repo_id_or_path, revision=revision, token=token, cache_dir=cache_dir, local_files_only=local_files_only,
        force_download=force_download,
    )  # fmt: skip
    return noted(load(folder, model, trust=trust), origin)


def noted(made: nn.Module, origin: Source | None) -> nn.Module:
    """The model, which remembers where it came from."""
    if origin is not None:
        remember(made, "hub", origin)
    return made


def source(model: nn.Module) -> Source | None:
    """The repository and the commit that a model was loaded from; None if it came from elsewhere."""
    return recall(model, "hub")


def fetch(place: str | Path, *, revision: str | None = None, **how: Any) -> tuple[Path, Source | None]:
    """The directory of a result, downloaded if it is on the Hub, and where it came from."""
    if Path(place).is_dir():
        if revision is not None:
            raise HubError(f"{place} is a directory of this machine, which has no revision {revision!r}")
        return Path(place), None
    repo_id = str(place)
    if isinstance(place, Path) or repo_id.startswith((".", "/", "~")) or repo_id.count("/") > 1:
        raise HubError(f'there is no directory {repo_id}; of a result on the Hub, give "user/name"')
    hub = package()
    with reaching(f"loading {repo_id}"):
        found = Path(hub.hf_hub_download(repo_id, RECORD, revision=revision, library_name="secateur", **how))
        commit = _commit(found, revision)
        names = _names(found)
        folder = hub.snapshot_download(
            repo_id, revision=commit, allow_patterns=[RECORD, *names], library_name="secateur", **how
        )
    return Path(folder), Source(repo_id=repo_id, revision=commit)


def _commit(file: Path, revision: str | None) -> str:
    """The commit that a downloaded file belongs to: the cache has a folder for each."""
    name = file.parent.name
    if not COMMIT.fullmatch(name):
        raise HubError(
            f"huggingface_hub put the files of revision {revision or 'main'!r} in no folder of a commit: {file}"
        )
    return name


def _names(record: Path) -> list[str]:
    """The files that a record names. The record is only read here; loading checks it."""
    files = parse(read_text(record), str(record)).get("files")
    names = list(files) if isinstance(files, dict) else []
    if not names or not all(is_file_name(name) for name in names):
        raise ArtifactError(f"{record} names no files, or files that no result has")
    return names
