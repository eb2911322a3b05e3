"""`revisit web`: the page of `revisit.commands.page`, served."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

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
    from revisit.commands.page import Page, Server

    server = Server(host, port)
    speaker = _speaker(model, base_url)
    server.page = Page(speaker, made=model is None and base_url is None)
    server.page.prepare()
    server.server_activate()
    print(f"open {server.url} (stop with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


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
