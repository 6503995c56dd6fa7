"""W&B's server, key and mode come from where its client has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from diffuse.rundir.directory import RunDir
from diffuse.tracking.connection import folder_settings
from tests import programs
from tests.programs import TINY
from tests.wandb_server import KEY, server

ASK = """
import json
from diffuse.tracking import connection, uploader
connection.answers = lambda server: True
try:
    client = uploader.client_settings()
    print(json.dumps([*client, *connection.settle("auto", client)]))
except uploader.NotStarted as error:
    print(json.dumps(str(error)))
"""


def asked(home: Path, **env: str) -> list[Any]:
    """The client's mode, server, key and problem, and then the mode that we settle on, and why."""
    environment = programs.environment(HOME=str(home), **env)
    if "NETRC" not in env:
        del environment["NETRC"]
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    answer: list[Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("wanted", "mode"),
    [
        ("dryrun", "offline"),
        ("offline", "offline"),
        ("run", "online"),
        ("shared", "online"),
        ("disabled", "disabled"),
        ("", "online"),
    ],
)
def test_a_mode_means_what_it_means_to_the_client(wanted: str, mode: str, tmp_path: Path) -> None:
    answer = asked(tmp_path, WANDB_MODE=wanted, WANDB_API_KEY=KEY)
    assert [answer[0], *answer[2:]] == [mode, True, "", mode, ""]


def test_a_key_in_netrc_is_found_for_the_makers_server_too(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert asked(tmp_path)[2] is True
    (tmp_path / ".netrc").write_text(f"machine elsewhere login user password {KEY}\n")
    assert asked(tmp_path)[2] is False


@pytest.mark.parametrize("wanted", ["ofline", "OFFLINE", "true"])
def test_a_mode_that_nobody_knows_is_said_and_stays_offline(wanted: str, tmp_path: Path) -> None:
    *_, mode, why = asked(tmp_path, WANDB_MODE=wanted, WANDB_API_KEY=KEY)
    assert mode == "offline"
    assert why.startswith(f"WANDB_MODE={wanted!r}: W&B knows online, run, shared, offline, dryrun")


def test_a_login_to_ones_own_server_is_found(tmp_path: Path) -> None:
    with server("good") as it:
        environment = programs.environment(HOME=str(tmp_path))
        del environment["NETRC"]
        subprocess.run(
            [sys.executable, "-m", "wandb", "login", "--host", it.url, KEY],
            cwd=tmp_path,
            env=environment,
            check=True,
            capture_output=True,
            timeout=600,
        )
        assert urlsplit(it.url).netloc in (tmp_path / ".netrc").read_text()
        assert asked(tmp_path) == ["online", it.url, True, "", "online", ""]


@pytest.mark.parametrize("folder", [".config/wandb", "wandb", "elsewhere"])
def test_settings_files_say_where_the_server_is_and_whether_to_use_it(
    folder: str, tmp_path: Path
) -> None:
    path = tmp_path / folder / "settings"
    path.parent.mkdir(parents=True)
    path.write_text("[default]\nbase_url = http://own.example:8080\nmode = offline\n")
    env = {"WANDB_CONFIG_DIR": str(path.parent)} if folder == "elsewhere" else {}
    assert asked(tmp_path, WANDB_API_KEY=KEY, **env)[:2] == ["offline", "http://own.example:8080"]
    netrc = tmp_path / "keys"
    netrc.write_text(f"machine own.example:8080 login user password {KEY}\n")
    env |= {"NETRC": str(netrc), "WANDB_MODE": "online"}
    assert asked(tmp_path, **env) == ["online", "http://own.example:8080", True, "", "online", ""]
    env |= {"WANDB_BASE_URL": "http://other.example"}  # no key for that one
    *_, mode, why = asked(tmp_path, **env)
    assert (mode, why) == (
        "offline",
        "no API key for other.example: set WANDB_API_KEY or run `wandb login`",
    )


def test_the_settings_of_a_folder_are_those_that_its_client_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_MODE", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert folder_settings(tmp_path) == {}
    (tmp_path / "wandb").mkdir()
    subprocess.run(
        [sys.executable, "-m", "wandb", "offline"],
        cwd=tmp_path,
        env=programs.environment(HOME=str(tmp_path)),
        check=True,
        capture_output=True,
        timeout=600,
    )
    assert folder_settings(tmp_path) == {"WANDB_MODE": "offline"}
    monkeypatch.setenv("WANDB_MODE", "online")
    assert folder_settings(tmp_path) == {"WANDB_MODE": "online"}
    monkeypatch.setenv("WANDB_MODE", "")  # set to nothing is not set
    assert folder_settings(tmp_path) == {"WANDB_MODE": "offline"}
    (tmp_path / "wandb" / "settings").write_bytes(b"\xff\xfe nonsense")
    assert folder_settings(tmp_path) == {}


def test_settings_that_the_client_cannot_read_are_said_and_nothing_is_sent(tmp_path: Path) -> None:
    path = tmp_path / "wandb" / "settings"
    path.parent.mkdir()
    path.write_text("[default]\nmode = ofline\n")
    *_, mode, why = asked(tmp_path, WANDB_API_KEY=KEY)
    assert mode == "offline" and why.startswith("its settings files are wrong: ")
    path.unlink()
    answer = "".join(map(str, asked(tmp_path, WANDB_BASE_URL="nonsense")))
    assert "WANDB_BASE_URL=" in answer


def test_a_dry_run_sends_nothing_and_ones_own_server_gets_the_run(
    tmp_path: Path, data_dir: Path
) -> None:
    with server("good") as it:
        (tmp_path / ".config" / "wandb").mkdir(parents=True)
        settings = tmp_path / ".config" / "wandb" / "settings"
        settings.write_text(f"[default]\nbase_url = {it.url}\n")
        (tmp_path / ".netrc").write_text(f"machine {urlsplit(it.url).netloc} password {KEY}\n")
        shared = ["--preset=ddpm/quick", "--epochs=1", *TINY, "--set=model.channels=8,8"]
        shared += ["--set=tracking.mode=auto", f"--data-dir={data_dir}"]
        home = {"HOME": str(tmp_path), "NETRC": str(tmp_path / ".netrc")}
        for mode in ("dryrun", "run"):
            runs = tmp_path / mode
            done = programs.run(
                "diffuse.train", *shared, f"--runs-dir={runs}", WANDB_MODE=mode, **home
            )
            assert done.returncode == 0, done.stderr
            run: RunDir = programs.only_run(runs)
            assert bool(it.rows) == (mode == "run"), done.stderr
            is_offline = bool(list((run.path / "wandb").glob("offline-run-*")))
            assert is_offline == (mode == "dryrun")
