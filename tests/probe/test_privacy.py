"""What leaves the machine says neither whose it is nor where they live."""

from __future__ import annotations

import getpass
from pathlib import Path

import pytest

from cookbook.probe import privacy, redacted

HOME = Path("/home/me")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/home/me", "~"),
        ("/home/me/.cache/x", "~/.cache/x"),
        ("cannot open '/home/me/a': see /home/me.", "cannot open '~/a': see ~."),
        ("/home/me/a:/home/me/b", "~/a:~/b"),
        ("/home/me-too/a", "/home/me-too/a"),
        ("/home/me.old/a", "/home/me.old/a"),
        ("/backup/home/me/a", "/backup/home/USER/a"),
        ("/scratch/me/a", "/scratch/USER/a"),
        ("/scratch/menu/a", "/scratch/menu/a"),
        ("D:\\data\\me\\a", "D:\\data\\USER\\a"),
        ("call me", "call me"),
    ],
)
def test_paths_are_told_without_their_owner(text: str, told: str) -> None:
    assert redacted(text, home=HOME, user="me") == told


def test_nested_values_keep_their_shape() -> None:
    value = {"/home/me/key": ["/home/me", ("/home/me/b", 3, None, True, 0.5)], "n": {"m": "/home/me"}}
    assert redacted(value, home=HOME, user="me") == {"~/key": ["~", ("~/b", 3, None, True, 0.5)], "n": {"m": "~"}}


def test_the_running_user_is_meant_by_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: tmp_path / "link"))
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    assert redacted([f"{tmp_path}/link/a", f"{tmp_path}/real/a", "/disk/ada/a"]) == ["~/a", "~/a", "/disk/USER/a"]


def test_an_account_without_home_or_name_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*ignored: object) -> Path:
        raise RuntimeError("Could not determine home directory.")

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(Path, "home", classmethod(missing))
    monkeypatch.setattr(getpass, "getuser", nameless)
    assert redacted("/home/me/a") == "/home/me/a"
    monkeypatch.setattr(Path, "home", classmethod(lambda cls: Path("/")))
    assert privacy._homes() == []
