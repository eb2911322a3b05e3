"""`revisit web`: starts the server of the page."""

from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

if TYPE_CHECKING:  # loaded once the flags are checked
    from revisit.commands.describe import Describer
    from revisit.commands.describe_on_server import ServerDescriber


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
    from revisit.commands.page import Page
    from revisit.commands.page_server import Server

    server = Server(host, port)
    describer = _describer(model, base_url)
    server.page = Page(describer, made=model is None and base_url is None)
    server.page.prepare()
    server.server_activate()
    print(f"open {server.url} (stop with Ctrl-C)", flush=True)
    try:
        server.serve_forever()
    finally:
        server.server_close()


def _describer(model: str | None, base_url: str | None) -> "Describer | ServerDescriber":
    if base_url is not None:
        from revisit.commands.describe_on_server import ServerDescriber

        describer = ServerDescriber(base_url, model)
        describer.check_reachable()
        return describer
    import transformers

    from revisit.commands.describe import Describer, demo_model

    transformers.logging.set_verbosity_error()
    return Describer(model or demo_model())
