"""`revisit web`: what is refused before a model is loaded."""

import signal
import socket
import subprocess
import sys

import pytest

from revisit.commands import web
from revisit.commands.main import main


@pytest.fixture(autouse=True)
def no_model(monkeypatch):
    monkeypatch.setattr(web, "_describer", lambda *_: pytest.fail("the model was loaded"))


def test_a_port_in_use_is_refused(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["web", "--port", str(port)]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "99999"], "Must be <= 65535"),
        (["--port", "-1"], "Must be >= 0"),
        (["--host", "192.0.2.1"], "--host 192.0.2.1 --port 7860: Cannot assign"),
        (["--host", "no.such.host.invalid"], "--host no.such.host.invalid"),
    ],
    ids=str,
)
def test_an_address_of_another_machine_is_refused(flags, message, capsys):
    assert main(["web", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_server_that_does_not_answer_is_named(monkeypatch, capsys):
    monkeypatch.undo()
    pytest.importorskip("openai")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert main(["web", "--base_url", f"http://127.0.0.1:{port}/v1", "--port", "0"]) == 2
    assert "cannot be reached" in capsys.readouterr().err


def test_ctrl_c_ends_it_with_one_line():
    pytest.importorskip("torchvision", reason="the processor of the demo's model needs it")
    pytest.importorskip("transformers.models.qwen2_5_vl", reason="the demo's model is one")
    serving = subprocess.Popen(
        [sys.executable, "-m", "revisit", "web", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert serving.stdout.readline().startswith("open http://127.0.0.1:")
    serving.send_signal(signal.SIGINT)
    _, err = serving.communicate(timeout=30)
    assert serving.returncode == 130
    assert err.splitlines()[-1] == "revisit web: interrupted" and "Traceback" not in err
