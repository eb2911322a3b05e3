"""A real HTTP server on the loopback: files, with faults, and what a download needs of the hub."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`: path -> bytes, with ranges as a good server does.

    `script`: path -> the next answers, each a status to refuse with, ("cut", n) to close after n
    bytes of the body, or ("stall", n) to stop there until `resume` is set. `headers` replace what
    would be sent. `models`: name -> commit -> file -> bytes is a hub, its last commit `main`, which
    asks for `token` if there is one, and announces another hash of the files `misnamed`.
    """

    def __init__(self) -> None:
        self.files, self.models, self.headers, self.token = {}, {}, {}, ""
        self.script, self.ranges, self.misnamed = defaultdict(list), True, set()
        self.asked: list[tuple[str, str]] = []  # path and range, of each GET
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

    def ranges_asked(self, end: str) -> list[str]:
        return [byte_range for path, byte_range in self.asked if path.endswith(end)]

    def find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        """The contents of an address and its headers; what the hub says of a missing one."""
        info = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/([^/]+)()", path)
        found = info or re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        if not self.models or not found:
            return self.files.get(path), {}
        name, commit, file = found.groups()
        model = self.models.get(name, {})
        commit = [*model, ""][-2] if commit == "main" else commit
        if commit not in model or (file and file not in model[commit]):
            missing = "Repo" if not model else "Entry" if commit in model else "Revision"
            return None, {"X-Error-Code": f"{missing}NotFound"}
        if info:
            files = [self.describe(*each) for each in model[commit].items()]
            whole = {"id": name, "sha": commit, "siblings": files}
            return json.dumps(files if "/tree/" in path else whole).encode(), {}
        content = model[commit][file]
        large = self.describe(file, content).get("lfs")
        tag = large["oid"] if large else self.describe(file, content)["oid"]
        about = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        linked = {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
        return content, about | (linked if large else {})

    def describe(self, file: str, content: bytes) -> dict:
        content, size = content + b"another" * (file in self.misnamed), len(content)
        blob = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
        entry = {"rfilename": file, "path": file, "size": size, "blobId": blob}
        entry |= {"type": "file", "oid": blob}
        if file.endswith((".bin", ".safetensors", ".model")):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": size, "pointerSize": 130}
        return entry


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    wbufsize = -1

    def do_GET(self) -> None:
        owner, path, action = self.owner, self.path.partition("?")[0], None
        if self.command == "GET":
            owner.asked.append((path, self.headers.get("Range", "")))
            action = owner.script[path].pop(0) if owner.script[path] else None
        content, headers = owner.find(path)
        if owner.token and self.headers.get("Authorization") != f"Bearer {owner.token}":
            action, headers = 401, {"X-Error-Message": "no valid token"}
        if isinstance(action, int) or content is None:
            return self.begin(action or 404, {**headers, "Content-Length": "0"})
        start, asked = 0, re.fullmatch(r"bytes=(\d+)-.*", self.headers.get("Range", ""))
        if owner.ranges and asked:
            start = int(asked[1])
            if start >= len(content):
                return self.begin(416, {"Content-Length": "0"})
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.begin(206 if start else 200, {"Content-Length": str(len(content) - start), **headers})
        if self.command == "HEAD":
            return
        count = action[1] if action else len(content)
        self.wfile.write(content[start : start + count])
        self.wfile.flush()
        if action and action[0] == "cut":
            self.close_connection = True
            self.connection.shutdown(2)
        elif action:
            owner.stalled.set()
            owner.resume.wait(60)
            self.wfile.write(content[start + count :])

    do_HEAD = do_GET

    def begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, **self.owner.headers}.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self) -> None:
        with suppress(ConnectionError, TimeoutError):
            super().handle()

    def log_message(self, *args) -> None:
        pass
