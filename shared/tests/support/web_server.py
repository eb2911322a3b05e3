"""The page of `revisit web`, served while a test looks at it."""

import threading
from contextlib import contextmanager

from revisit.commands.page_server import Server


@contextmanager
def serving_page(page):
    """Gives the address of the page."""
    server = Server("127.0.0.1", 0)
    server.page = page
    server.server_activate()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server.url
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
