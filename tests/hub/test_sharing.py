"""To the Hub and back, on a Hub that is a directory: nothing here touches the network."""

import inspect
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import huggingface_hub.errors
import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArtifactError, HubError, MissingExtra
from support.networks import LiteralNet, Mlp, example

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ARTEFACT = ["README.md", "artifact.json", "model.safetensors", "plan.json", "probe.safetensors", "scores.safetensors"]


@dataclass
class FakeHub:
    """Repositories as directories, with one commit each, and what was asked of them."""

    root: Path
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    fails: Exception | None = None

    def folder(self, repo_id: str) -> Path:
        return self.root / repo_id / "snapshots" / COMMIT

    def note(self, what: str, **details: Any) -> None:
        self.asked.append((what, details))
        if self.fails is not None:
            raise self.fails

    # what huggingface_hub has

    def create_repo(self, repo_id: str, **how: Any) -> None:
        self.note("create", repo_id=repo_id, **how)
        self.folder(repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, *, repo_id: str, folder_path: Path, **how: Any) -> Any:
        self.note("upload", repo_id=repo_id, files=sorted(p.name for p in Path(folder_path).iterdir()), **how)
        shutil.copytree(folder_path, self.folder(repo_id), dirs_exist_ok=True)
        return SimpleNamespace(oid=COMMIT, pr_url=None, commit_url=f"https://hub/{repo_id}/commit/{COMMIT}")

    def hf_hub_download(self, repo_id: str, filename: str, **how: Any) -> str:
        self.note("file", repo_id=repo_id, filename=filename, **how)
        return str(self.folder(repo_id) / filename)

    def snapshot_download(self, repo_id: str, **how: Any) -> str:
        self.note("snapshot", repo_id=repo_id, **how)
        return str(self.folder(repo_id))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")

    def api(**how: Any) -> FakeHub:
        fake.note("log in", **how)
        return fake

    monkeypatch.setattr(huggingface_hub, "HfApi", api)
    for name in ("hf_hub_download", "snapshot_download"):
        monkeypatch.setattr(huggingface_hub, name, getattr(fake, name))
    return fake


@pytest.fixture(scope="module")
def kept() -> sc.Result:
    torch.manual_seed(0)
    return sc.prune(Mlp(), torch.randn(2, 4), keep=0.5)


@pytest.fixture(scope="module")
def rewritten() -> sc.Result:
    torch.manual_seed(0)
    net = LiteralNet()
    return sc.prune(net, example(net), keep=0.5)


def same(one: nn.Module, other: nn.Module, inputs: Tensor) -> bool:
    return torch.equal(one.eval()(inputs), other.eval()(inputs))


# ---------------------------------------------------------------------- there and back


def test_the_artefact_and_its_card_are_uploaded_and_nothing_else(hub: FakeHub, kept: sc.Result) -> None:
    done = sc.push_to_hub(kept, "user/half", private=True, token="secret", about={"licence": "mit"})
    (_, login), (_, created), (_, uploaded) = hub.asked
    assert login["token"] == "secret"
    assert created == {"repo_id": "user/half", "private": True, "exist_ok": True}
    assert uploaded["files"] == ARTEFACT
    assert uploaded["revision"] is None
    assert done.revision == COMMIT
    assert f'sc.from_pretrained("user/half", revision="{COMMIT}")' in str(done)
    card = (hub.folder("user/half") / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: secateur\n")
    assert 'license: "mit"' in card
    assert 'sc.from_pretrained("user/half", model=...)' in card
    assert "sc.load" not in card


def test_a_result_comes_back_from_the_commit_that_is_noted(hub: FakeHub, kept: sc.Result) -> None:
    sc.push_to_hub(kept, "user/half")
    hub.asked.clear()
    back = sc.from_pretrained("user/half", model=Mlp(), revision="main", token="secret")
    assert same(back, kept.model, torch.randn(5, 4))
    assert sc.hub.source(back) == sc.hub.Source(repo_id="user/half", revision=COMMIT)
    (_, first), (_, rest) = hub.asked
    assert (first["filename"], first["revision"], first["token"]) == ("artifact.json", "main", "secret")
    assert rest["revision"] == COMMIT, "both downloads are of one commit, whatever happens to the branch"
    assert sorted(rest["allow_patterns"]) == [name for name in ARTEFACT if name != "README.md"]


def test_a_rewritten_result_needs_no_class(hub: FakeHub, rewritten: sc.Result) -> None:
    sc.push_to_hub(rewritten, "user/graph")
    back = sc.from_pretrained("user/graph")
    assert same(back, rewritten.model, torch.randn(3, 1, 6, 6))
    assert 'model = sc.from_pretrained("user/graph")\n' in (hub.folder("user/graph") / "README.md").read_text()


def test_of_a_runs_directory_the_artefact_alone_is_uploaded(hub: FakeHub, kept: sc.Result, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sc.save(kept, folder)
    (folder / "config.yaml").write_text("weights: /home/someone/trained.pt")
    sc.push_to_hub(folder, "user/half")
    assert hub.asked[-1][1]["files"] == ARTEFACT
    assert 'sc.from_pretrained("user/half", model=...)' in (hub.folder("user/half") / "README.md").read_text()
    assert (folder / "README.md").read_text().count("sc.load") == 1, "the directory stays as it was"


def test_a_card_of_the_users_own_stays(hub: FakeHub, kept: sc.Result, tmp_path: Path) -> None:
    sc.save(kept, tmp_path / "run")
    (tmp_path / "run" / "README.md").write_text("# Mine\n")
    sc.push_to_hub(tmp_path / "run", "user/half")
    assert (hub.folder("user/half") / "README.md").read_text() == "# Mine\n"


def test_a_directory_needs_no_hub(hub: FakeHub, kept: sc.Result, tmp_path: Path) -> None:
    sc.save(kept, tmp_path / "run")
    back = sc.from_pretrained(tmp_path / "run", model=Mlp())
    assert same(back, kept.model, torch.randn(5, 4))
    assert sc.hub.source(back) is None
    assert hub.asked == []


# ---------------------------------------------------------------------- the mixin


class Shared(sc.hub.HubMixin, nn.Module):
    """A network of a user's own."""

    def __init__(self, hidden: int, *, act: str = "relu", **more: Any) -> None:
        super().__init__()
        self.act, self.up, self.down = act, nn.Linear(4, hidden), nn.Linear(hidden, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(getattr(torch, self.act)(self.up(x)))


def test_a_class_shares_its_pruned_self(hub: FakeHub) -> None:
    torch.manual_seed(0)
    small = sc.prune(Shared(8, act="tanh"), torch.randn(2, 4), keep=0.5).model
    assert isinstance(small, Shared)
    assert small.push_to_hub("user/shared").revision == COMMIT
    assert hub.asked[-1][1]["files"] == ARTEFACT
    back = Shared.from_pretrained("user/shared")
    assert isinstance(back, Shared)
    assert (back.act, back.up.out_features) == ("tanh", 4)
    assert same(back, small, torch.randn(5, 4))
    assert sc.hub.source(back) == sc.hub.Source(repo_id="user/shared", revision=COMMIT)


def test_a_class_saves_to_a_directory_and_loads_it(tmp_path: Path) -> None:
    small = sc.prune(Shared(8), torch.randn(2, 4), keep=0.5).model
    assert isinstance(small, Shared)
    small.save_pretrained(tmp_path / "small", about={"name": "Small"})
    assert "# Small" in (tmp_path / "small" / "README.md").read_text()
    assert same(Shared.from_pretrained(tmp_path / "small"), small, torch.randn(5, 4))


def test_a_file_can_not_ask_for_more_than_it_holds(tmp_path: Path) -> None:
    small = sc.prune(Shared(8), torch.randn(2, 4), keep=0.5).model
    for arguments, said in (
        ({"hidden": 10**9}, "pass model=<the dense model>"),
        ({"width": 8}, "can't be rebuilt: TypeError"),
    ):
        sc.save(small, tmp_path / "small", {"callable": f"{__name__}:Shared", "args": arguments}, overwrite=True)
        with pytest.raises(ArtifactError, match=said):
            Shared.from_pretrained(tmp_path / "small")


class Other(sc.hub.HubMixin, Mlp):
    """Another class than the one that was saved."""


def test_only_the_class_itself_is_built(tmp_path: Path) -> None:
    small = sc.prune(Shared(8), torch.randn(2, 4), keep=0.5).model
    assert isinstance(small, Shared)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ArtifactError, match="Other builds no"):
        Other.from_pretrained(tmp_path / "small")


def test_arguments_that_are_no_plain_data_want_the_model(tmp_path: Path) -> None:
    dense = Shared(8, extra=torch.zeros(1))
    small = sc.prune(dense, torch.randn(2, 4), keep=0.5).model
    assert isinstance(small, Shared)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(ArtifactError, match="does not say how to build it"):
        Shared.from_pretrained(tmp_path / "small")
    assert same(Shared.from_pretrained(tmp_path / "small", model=dense), small, torch.randn(5, 4))


# ---------------------------------------------------------------------- what goes wrong


def _error(name: str, status: int = 404) -> Exception:
    """An error of huggingface_hub's, made without an answer of a server."""
    kind: Any = getattr(huggingface_hub.errors, name)
    made = kind.__new__(kind)
    made.args = (f"{name} in the Hub's words\n\nand many more",)
    made.response = SimpleNamespace(status_code=status)
    return made


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (_error("OfflineModeIsEnabled"), "HF_HUB_OFFLINE forbids the network"),
        (_error("LocalEntryNotFoundError"), "it is not on this machine, and the Hub can't be reached"),
        (_error("RepositoryNotFoundError"), "there is no such repository, or it is private"),
        (_error("GatedRepoError", 403), "its owner grants access by request"),
        (_error("RevisionNotFoundError"), "the repository has no such revision"),
        (_error("RemoteEntryNotFoundError"), "it holds no result of secateur"),
        (_error("HfHubHTTPError", 401), "log in with `hf auth login`"),
        (_error("HfHubHTTPError", 500), "HfHubHTTPError: HfHubHTTPError in the Hub's words"),
        (ConnectionError("refused"), "the Hub can't be reached"),
        (TimeoutError(), "the Hub can't be reached"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_goes_wrong_at_the_hub_says_what_to_do(hub: FakeHub, kept: sc.Result, error: Exception, said: str) -> None:
    hub.fails = error
    with pytest.raises(HubError, match=r"^loading user/half failed: ") as loading:
        sc.from_pretrained("user/half")
    assert said in str(loading.value)
    assert "many more" not in str(loading.value)
    with pytest.raises(HubError, match=r"^uploading to user/half failed: ") as uploading:
        sc.push_to_hub(kept, "user/half")
    assert said in str(uploading.value)


def test_names_that_are_no_repository(kept: sc.Result) -> None:
    with pytest.raises(HubError, match='write "user/name"'):
        sc.push_to_hub(kept, "user/a name")
    for name in ("./runs/half", "/tmp/half", "a/b/c", Path("half")):
        with pytest.raises(HubError, match="there is no directory"):
            sc.from_pretrained(name)


def test_a_directory_has_no_revisions(kept: sc.Result, tmp_path: Path) -> None:
    sc.save(kept, tmp_path / "run")
    with pytest.raises(HubError, match="has no revision 'v2'"):
        sc.from_pretrained(tmp_path / "run", model=Mlp(), revision="v2")


def test_a_single_file_is_not_uploaded(hub: FakeHub, kept: sc.Result, tmp_path: Path) -> None:
    sc.save(kept, tmp_path / "small.safetensors")
    with pytest.raises(HubError, match="is a single file; the Hub wants a directory"):
        sc.push_to_hub(tmp_path / "small.safetensors", "user/half")
    assert hub.asked == []


@pytest.mark.parametrize("files", ['{"../../secret": {}}', '{"*": {}}', "[]", "{}"])
def test_a_record_that_names_other_places_is_refused(hub: FakeHub, files: str) -> None:
    hub.folder("user/bad").mkdir(parents=True)
    (hub.folder("user/bad") / "artifact.json").write_text(f'{{"files": {files}}}')
    with pytest.raises(ArtifactError, match="names no files, or files that no result has"):
        sc.from_pretrained("user/bad")
    assert [what for what, _ in hub.asked] == ["file"]


def test_what_was_altered_on_the_hub_is_not_loaded(hub: FakeHub, kept: sc.Result) -> None:
    sc.push_to_hub(kept, "user/half")
    weights = hub.folder("user/half") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00")
    with pytest.raises(ArtifactError, match="truncated or altered"):
        sc.from_pretrained("user/half", model=Mlp())


def test_without_the_package_the_error_names_the_extra(kept: sc.Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: sc.push_to_hub(kept, "user/half"), lambda: sc.from_pretrained("user/half")):
        with pytest.raises(MissingExtra, match=r"the Hugging Face Hub needs huggingface_hub.*'secateur\[hub\]'"):
            call()


def test_the_contract_with_the_installed_package_holds() -> None:
    """Every argument that we pass is one that huggingface_hub takes."""

    def takes(function: Any, *names: str) -> bool:
        return set(names) <= set(inspect.signature(function).parameters)

    assert takes(huggingface_hub.HfApi.__init__, "token", "library_name")
    assert takes(huggingface_hub.HfApi.create_repo, "repo_id", "private", "exist_ok")
    assert takes(
        huggingface_hub.HfApi.upload_folder, "repo_id", "folder_path", "commit_message", "revision", "create_pr"
    )
    how = ("revision", "token", "cache_dir", "local_files_only", "force_download", "library_name")
    assert takes(huggingface_hub.hf_hub_download, "repo_id", "filename", *how)
    assert takes(huggingface_hub.snapshot_download, "repo_id", "allow_patterns", *how)
    fields = huggingface_hub.CommitInfo.__dataclass_fields__
    assert {"oid", "commit_url", "pr_url"} <= set(fields)
