"""`--include` ships what git would, nothing that looks secret, nothing from elsewhere; privately."""

import subprocess
from pathlib import Path

import pytest

from pelagos.infra.storage.local import DirectoryStore
from pelagos.jobs.submission.shipping.included_files import included_files, looks_secret
from pelagos.jobs.submission.shipping.package import build_archives, names_in, upload


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    here = tmp_path / "project"
    for name in ("train.py", "lib/a.py", "lib/.hidden", "data/big.bin", "notes/secrets.md"):
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    monkeypatch.chdir(here)
    return here


def git(project: Path, *ignored: str) -> None:
    (project / ".gitignore").write_text("\n".join(ignored))
    subprocess.run(["git", "init", "--quiet", str(project)], check=True)


def test_a_folder_is_what_git_tracks_or_would(project: Path) -> None:
    git(project, "data/", "*.log", ".env")
    (project / "run.log").write_text("x")
    (project / ".env").write_text("KEY=planted")
    (project / "lib/.env").write_text("KEY=planted")
    assert sorted(included_files(["."])) == [
        ".gitignore",
        "lib/.hidden",
        "lib/a.py",
        "notes/secrets.md",
        "train.py",
    ]
    assert sorted(included_files(["lib", "train.py"])) == ["lib/.hidden", "lib/a.py", "train.py"]


def test_without_git_hidden_files_stay(project: Path) -> None:
    assert sorted(included_files(["."])) == [
        "data/big.bin",
        "lib/a.py",
        "notes/secrets.md",
        "train.py",
    ]


@pytest.mark.parametrize(
    "name",
    [
        *(".env", "prod.env", "lib/id_rsa", "tls.pem", "server.key", "credentials", "lab.token"),
        *("my-secrets.yaml", "db_password.txt", "service-account-7.json", ".aws/config"),
        *("kubeconfig", ".netrc", "terraform.tfstate"),
    ],
)
def test_what_looks_secret_is_refused_by_name(project: Path, name: str) -> None:
    git(project)
    (project / name).parent.mkdir(exist_ok=True)
    (project / name).write_text("planted")
    for include in (".", name):
        with pytest.raises(ValueError, match="looks like a secret") as caught:
            build_archives([include])
        assert name in str(caught.value)
        assert "planted" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "tokens.py", "keys.yaml", "password_reset.md", "environment.yml"]
)
def test_ordinary_names_pass(name: str) -> None:
    assert not looks_secret(Path(name))


def test_links_do_not_lead_out(project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/private").write_text("planted")
    (project / "lib/inside").symlink_to(project / "train.py")
    assert included_files(["lib"])["lib/inside"] == b"train.py"
    for repository in (False, True):
        if repository:
            git(project)
        (project / "lib/link").symlink_to(tmp_path / "outside/private")
        with pytest.raises(ValueError, match=r"link to .*private"):
            included_files(["."])
        (project / "lib/link").unlink()
        (project / "lib/folder").symlink_to(tmp_path / "outside")
        assert not any("private" in name for name in included_files(["."]))
        with pytest.raises(ValueError, match="lies outside"):
            included_files(["lib/folder"])
        (project / "lib/folder").unlink()


def test_archives_are_private_named_and_replaced_if_exchanged(project: Path) -> None:
    archive, contents = build_archives(["train.py", "lib"])
    assert names_in(contents) == archive.names == ("lib/a.py", "train.py")
    store = DirectoryStore(str(project / "storage"))
    assert upload(store, contents) == archive.num_bytes
    for key in contents:
        assert (store.root / key).stat().st_mode & 0o777 == 0o600
    key = archive.key("files.zip")
    store.write(key, b"x" * len(contents[key]))  # of the same size
    assert upload(store, contents) == len(contents[key])
    assert store.read(key) == contents[key]
