"""The server of `revisit web`: the page, and the captions of images that its users send.

`GET /` is the page. `POST /describe` is answered with lines of JSON while the words come; its body
is an image, or empty where its address has the number of an example.
"""

import json
import socket
from collections.abc import Mapping
from contextlib import closing, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from revisit.commands import CommandError
from revisit.commands.page import MOST_BYTES, Page

_LOCAL = ("127.0.0.1", "::1", "localhost")
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class Server(ThreadingHTTPServer):
    """Takes its address at once, before a model is loaded; `server_activate` begins to listen.

    Raises:
        CommandError: nothing can listen at this address.
    """

    daemon_threads = True
    page: Page

    def __init__(self, host: str, port: int) -> None:
        try:
            self.address_family = socket.getaddrinfo(host, port)[0][0]
            super().__init__((host, port), _Handler, bind_and_activate=False)
            self.server_bind()
        except OSError as error:
            raise CommandError(
                f"cannot listen on --host {host} --port {port}: {error.strerror}; is that an "
                "address of this machine, and the port free?"
            ) from error
        self.local = host in _LOCAL

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = str(self.server_address[0]), self.server_address[1]
        return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closed the connection is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = 60  # seconds for each read

    def log_message(self, *_: Any) -> None:
        """Requests are not logged."""

    def do_GET(self) -> None:
        if not self._is_for_us() or self.path != "/":
            return self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        self._begin(HTTPStatus.OK, "text/html; charset=utf-8")
        self.wfile.write(self.server.page.html().encode())

    def do_POST(self) -> None:
        address = urlsplit(self.path)
        # For a page of another site, the browser asks before it sends this type, and gets no leave.
        from_page = self.headers.get_content_type() == "application/octet-stream"
        if not self._is_for_us() or address.path != "/describe" or not from_page:
            return self._refuse(HTTPStatus.NOT_FOUND, "there is nothing at this address")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MOST_BYTES:
            most = f"an image of at most {MOST_BYTES // 2**20} MiB is taken"
            return self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, most)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            return None
        self._begin(HTTPStatus.OK, "application/x-ndjson")
        with (
            suppress(OSError),  # the browser has closed the connection
            closing(self.server.page.answer(dict(parse_qsl(address.query)), body)) as lines,
        ):
            for line in lines:
                self._write(line)
                self.wfile.flush()

    def _is_for_us(self) -> bool:
        """Whether the request names a local host: another name that leads here is an attack."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        return not self.server.local or host in _LOCAL

    def _refuse(self, status: HTTPStatus, reason: str) -> None:
        self._begin(status, "application/x-ndjson")
        self._write({"error": reason})

    def _write(self, line: Mapping[str, Any]) -> None:
        self.wfile.write(json.dumps(line).encode() + b"\n")

    def _begin(self, status: HTTPStatus, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.end_headers()
