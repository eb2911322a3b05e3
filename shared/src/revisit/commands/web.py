"""`revisit web`: the page of `revisit.commands.page`, served."""

import socket
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from revisit.commands import CommandError

if TYPE_CHECKING:  # loaded once the flags are checked
    from revisit.commands.engines.described import Speaker


def web(
    *,
    model: Annotated[
        str | None,
        Parameter(
            name=("--model", "--model_path"),
            help="a folder or a hub id (default: the demo's tiny Qwen2.5-VL, in a clone); with "
            "--base_url the model's name there (default: the server's first)",
        ),
    ] = None,
    base_url: Annotated[
        str | None,
        Parameter(
            help="ask a vLLM server with ReVisiT, as http://127.0.0.1:8000/v1, instead of a model "
            "here"
        ),
    ] = None,
    host: Annotated[
        str,
        Parameter(help="the address to listen on; another one lets other machines in"),
    ] = "127.0.0.1",
    port: Annotated[
        int, Parameter(help="0 takes a free one", validator=Number(gte=0, lte=65535))
    ] = 7860,
) -> None:
    """Greedy decoding and ReVisiT side by side in the browser, and what ReVisiT saw.

    Serves until Ctrl-C.
    """
    if find_spec("gradio") is None:
        raise CommandError('the page needs Gradio: pip install "revisit-decoding[web]"')
    check_address(host, port)
    speaker = _speaker(model, base_url)
    from revisit.commands import page

    app = page.build(speaker, page.examples())
    try:
        _, address, _ = page.launch(app, host, port or None)
    except OSError as error:
        raise CommandError(f"cannot listen on {host}, port {port}: {error}") from error
    print(f"open {address} (stop with Ctrl-C)", flush=True)
    try:
        while True:  # Ctrl-C ends it
            time.sleep(3600)
    finally:
        app.close(verbose=False)


def check_address(host: str, port: int) -> None:
    """Raises `CommandError` where nothing can listen there, before a model is loaded."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise CommandError(
            f"cannot listen on --host {host} --port {port}: {error.strerror}; is that an address "
            "of this machine, and the port free?"
        ) from error


def _speaker(model: str | None, base_url: str | None) -> "Speaker":
    if base_url is not None:
        from revisit.commands.served import Served

        served = Served(base_url, model)
        served.reach()
        return served
    import transformers

    from revisit.commands.describe import Describer, demo_model

    transformers.logging.set_verbosity_error()
    return Describer(model or demo_model())
