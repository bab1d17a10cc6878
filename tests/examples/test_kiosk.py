"""The kiosk: its server by its unit's own command and socket, its units as systemd reads them, its page."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import programs
import pytest
import units
from serving import CHAT

from edgepack.cli import main

FOLDER = programs.FOLDER / "kiosk"
KIT = Path(__file__).parents[2] / "sdk" / "edgepack_ship" / "kit" / "files" / "edgepack.service"
URL = urlsplit(units.command(FOLDER / "kiosk-screen.service")[-1])


@pytest.fixture(scope="module")
def store(one_variant: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a kit leaves behind: the bundle, by its name."""
    out = tmp_path_factory.mktemp("device") / "store"
    assert main(["install", str(one_variant), "--name", "museum", "--store", str(out)]) == 0
    return out


@contextmanager
def served(store: Path, folder: Path) -> Iterator[tuple[int, units.Systemd, subprocess.Popen[str]]]:
    """Start the server as its unit does, and wait until it says that it is ready."""
    program, *words = units.command(FOLDER / "kiosk.service")
    assert program.endswith("/museum/bin/edgepack")
    with units.listening(folder) as (systemd, variables), socket.create_server(("127.0.0.1", 0)) as given:
        start = units.with_socket(["-m", "edgepack", *words], given)
        env = units.environment(variables, {"LISTEN_FDS": "1", "EDGEPACK_STORE": str(store)})
        pipe = subprocess.PIPE
        with subprocess.Popen(
            start, env=env, pass_fds=[given.fileno()], stdout=subprocess.DEVNULL, stderr=pipe, text=True
        ) as running:
            try:
                systemd.hear("READY=1")
                yield given.getsockname()[1], systemd, running
            finally:
                running.terminate()
                running.communicate(timeout=60)


def test_it_serves_as_its_unit_says(store: Path, tmp_path: Path) -> None:
    with served(store, tmp_path) as (port, systemd, running):
        asking = HTTPConnection("127.0.0.1", port, timeout=60)
        asking.request("GET", f"{URL.path}?{URL.query}")
        page = asking.getresponse()
        assert (page.status, page.getheader("Content-Type")) == (200, "text/html; charset=utf-8")
        page.read()
        question = {"model": "museum", "messages": [{"role": "user", "content": "What is a token?"}]}
        asking.request("POST", CHAT, json.dumps(question), {"Content-Type": "application/json"})
        answer: dict[str, Any] = json.loads(asking.getresponse().read())
        assert answer["choices"][0]["message"]["content"].startswith("A token is")
        systemd.hear("WATCHDOG=1")
        running.terminate()
        systemd.hear("STOPPING=1")
        _, log = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "token is" not in log


def test_the_screen_shows_the_page_at_the_socket_s_address() -> None:
    assert units.values(FOLDER / "kiosk.socket", "ListenStream") == [URL.netloc]
    assert {"kiosk=1", "idle=60", "title=Ask%20the%20museum"} < set(URL.query.split("&"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_its_units(tmp_path: Path) -> None:
    programs_there = {
        "/opt/edgepack/current/museum/bin/edgepack": sys.executable,
        "/usr/bin/cage": sys.executable,
        "@{name}": "museum",
        "@PREFIX@": "/opt/edgepack",
        "@STORE@": "/var/lib/edgepack/store",
    }
    texts = {"edgepack-museum.service": KIT.read_text(), **{each.name: each.read_text() for each in UNITS}}
    for before, after in programs_there.items():
        texts = {name: text.replace(before, after) for name, text in texts.items()}
    assert units.complaints(texts, tmp_path) == []


UNITS = sorted(each for each in FOLDER.iterdir() if each.suffix in (".service", ".socket"))


@pytest.mark.browser
def test_the_screen(store: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the browser extra is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this system")
    arguments = units.command(FOLDER / "kiosk-screen.service")
    flags = [each for each in arguments if each.startswith("--") and "ozone" not in each and each != "--"]
    with served(store, tmp_path) as (port, _, _), sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        page = browser.new_page()
        page.goto(URL._replace(netloc=f"127.0.0.1:{port}").geturl())
        sync_api.expect(page.get_by_role("heading", level=1)).to_have_text("Ask the museum")
        page.get_by_role("textbox").fill("What is a token?")
        page.keyboard.press("Enter")
        sync_api.expect(page.locator("#turns")).to_contain_text("A token is", timeout=60_000)
        browser.close()
