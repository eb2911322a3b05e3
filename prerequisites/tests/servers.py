"""Real HTTP servers on the loopback: one for files, one that speaks the hub's protocol."""

import hashlib
import json
import re
import threading
from collections import defaultdict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Request(NamedTuple):
    method: str
    path: str
    range: str
    token: str


class Server:
    """Serves `files`: address path -> bytes, with ranges and ETags as a good server does.

    What it does otherwise is in the attributes. `script`: path -> the next answers, each a status
    to refuse with, or ("cut", n) to close the connection after n bytes of the body, or ("stall", n)
    to stop there until `resume` is set.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.script: dict[str, deque] = defaultdict(deque)
        self.requests: list[Request] = []
        self.ranges = True
        self.knows_if_range = True
        self.validators = ("ETag", "Last-Modified")
        self.weak = False
        self.headers: dict[str, str] = {}  # replace what would be sent
        self.sent = 0
        self.stalled, self.resume = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self, "protocol_version": "HTTP/1.1"})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, path: str, content: bytes) -> str:
        self.files[path] = content
        return self.url + path

    def close(self) -> None:
        self.resume.set()
        self.http.shutdown()
        self.http.server_close()

    def ranges_asked(self, path: str) -> list[str]:
        return [request.range for request in self.requests if request.path == path]

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        """Answer a request for one of `files`."""
        path = http.path.partition("?")[0]
        action = self.script[path].popleft() if self.script[path] else None
        content = self.files.get(path)
        if isinstance(action, int) or content is None:
            return self.refuse(http, action or 404)
        self.serve(http, content, action)

    def refuse(self, http: BaseHTTPRequestHandler, status: int, **headers: str) -> None:
        http.send_response(status)
        for name, value in {**headers, **self.headers, "Content-Length": "0"}.items():
            http.send_header(name.replace("_", "-"), value)
        http.end_headers()

    def serve(self, http, content: bytes, action=None, **more: str) -> None:
        digest = hashlib.sha256(content).hexdigest()
        tag = f'"{digest[:32]}"'
        known = {"ETag": f"W/{tag}" if self.weak else tag, "Last-Modified": f"version {digest[:8]}"}
        headers = {name: known[name] for name in self.validators}
        start, status = 0, 200
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", http.headers.get("Range", ""))
        same = http.headers.get("If-Range") in (None, *headers.values())
        if self.ranges and asked and (same or not self.knows_if_range):
            start, status = int(asked[1]), 206
            if start >= len(content):
                return self.refuse(http, 416)
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        headers["Content-Length"] = str(len(content) - start)
        http.send_response(status)
        for name, value in {**headers, **more, **self.headers}.items():
            http.send_header(name, value)
        http.end_headers()
        if http.command == "HEAD":
            return
        body = content[start:]
        if action:
            http.wfile.write(body[: action[1]])
            http.wfile.flush()
            self.sent += len(body[: action[1]])
            if action[0] == "cut":
                http.close_connection = True
                http.connection.shutdown(2)
                return
            self.stalled.set()
            self.resume.wait(60)
            body = body[action[1] :]
        http.wfile.write(body)
        self.sent += len(body)


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    wbufsize = -1

    def do_GET(self) -> None:
        headers = self.headers
        token = headers.get("Authorization", "").removeprefix("Bearer ")
        path = self.path.partition("?")[0]
        self.owner.requests.append(Request(self.command, path, headers.get("Range", ""), token))
        try:
            self.owner.answer(self)
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


class Hub(Server):
    """The part of the Hugging Face hub that a download needs.

    `models`: name -> commit -> file -> bytes; the last commit is `main`. `token`: what it asks for,
    if anything; `gated`: the models whose terms nobody has accepted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.models: dict[str, dict[str, dict[str, bytes]]] = {}
        self.token = ""
        self.gated: set[str] = set()
        self.wrong_hash: set[str] = set()

    def newest(self, model: str) -> str:
        return list(self.models[model])[-1]

    @staticmethod
    def is_large(file: str) -> bool:
        return file.endswith((".bin", ".safetensors", ".model"))

    def tag(self, file: str, content: bytes) -> str:
        if file in self.wrong_hash:
            content += b"another"
        if self.is_large(file):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        path = http.path.partition("?")[0]
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path)
        found = info or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        action = self.script[path].popleft() if self.script[path] else None
        if isinstance(action, int):
            return self.refuse(http, action)
        if self.token and http.headers.get("Authorization") != f"Bearer {self.token}":
            given = "Authorization" in http.headers
            words = "Invalid credentials in Authorization header" if given else "no token"
            return self.refuse(http, 401, X_Error_Message=words)
        if not found or found[1] not in self.models:
            return self.refuse(http, 404, X_Error_Code="RepoNotFound")
        model, revision = found[1], found[2]
        if model in self.gated:
            return self.refuse(http, 403, X_Error_Code="GatedRepo")
        commit = self.newest(model) if revision == "main" else revision
        files = self.models[model].get(commit)
        if files is None:
            return self.refuse(http, 404, X_Error_Code="RevisionNotFound")
        if info:
            return self.serve(http, json.dumps(self._info(model, commit)).encode())
        file = found[3]
        if file not in files:
            return self.refuse(http, 404, X_Error_Code="EntryNotFound")
        content = files[file]
        tag = self.tag(file, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        if self.is_large(file):
            headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        self.serve(http, content, action if http.command == "GET" else None, **headers)

    def _info(self, model: str, commit: str) -> dict:
        def sibling(file: str, content: bytes) -> dict:
            tag = self.tag(file, content)
            entry = {"rfilename": file, "size": len(content), "blobId": tag}
            if self.is_large(file):
                entry["blobId"] = "0" * 40
                entry["lfs"] = {"sha256": tag, "size": len(content), "pointerSize": 130}
            return entry

        files = [sibling(file, content) for file, content in self.models[model][commit].items()]
        return {"id": model, "modelId": model, "sha": commit, "siblings": files}
