"""An HTTP server on the loopback that tests download from, with the faults that they ask for."""

import hashlib
import json
import re
import threading
from collections import defaultdict
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """Serves `files`, path -> bytes, and partial content where a client asks for a range.

    `script`: path -> its next answers: a status to refuse with, ("cut", n) to close after n bytes
    of the body, or ("stall", n) to stop there until `resume` is set. `headers` are added to every
    answer. With a `token`, a request without it is refused. `asked`: path and range of each GET.
    """

    def __init__(self) -> None:
        self.files, self.headers, self.headers_of, self.token = {}, {}, {}, ""
        self.script, self.ranges = defaultdict(list), True
        self.asked: list[tuple[str, str]] = []
        self.stalled, self.resume = threading.Event(), threading.Event()
        handler = type("Handler", (_Handler,), {"owner": self, "protocol_version": "HTTP/1.1"})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def add(self, path: str, content: bytes, **headers: str) -> str:
        self.files[path], self.headers_of[path] = content, headers
        return self.url + path

    def add_model(self, name: str, commit: str, files: dict[str, bytes], wrong=()) -> None:
        """Serve files as the Hugging Face Hub does, at a commit and as `main`.

        The hashes that are announced of the files `wrong` are not theirs.
        """
        entries = []
        for file, content in files.items():
            hashed = content + b"another" * (file in wrong)
            hash = hashlib.sha1(b"blob %d\0" % len(content) + hashed).hexdigest()
            entry = {"rfilename": file, "path": file, "size": len(content), "blobId": hash}
            entries.append(entry | {"type": "file", "oid": hash})
            if file.endswith((".bin", ".safetensors", ".model")):
                hash = hashlib.sha256(hashed).hexdigest()
                entries[-1]["lfs"] = {"sha256": hash, "oid": hash, "size": len(content)}
                entries[-1]["lfs"]["pointerSize"] = 130
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hash}"'}
            for revision in (commit, "main"):
                self.add(f"/{name}/resolve/{revision}/{file}", content, **headers)
        about = json.dumps({"id": name, "sha": commit, "siblings": entries}).encode()
        for revision in (commit, "main"):
            self.add(f"/api/models/{name}/revision/{revision}", about)
            self.add(f"/api/models/{name}/tree/{revision}", json.dumps(entries).encode())

    def close(self) -> None:
        self.resume.set()
        self.http.shutdown()
        self.http.server_close()

    def ranges_asked(self, end: str) -> list[str]:
        return [byte_range for path, byte_range in self.asked if path.endswith(end)]


class _Handler(BaseHTTPRequestHandler):
    owner: Server
    wbufsize = -1

    def do_GET(self) -> None:
        owner, path, action = self.owner, self.path.partition("?")[0], None
        if self.command == "GET":
            owner.asked.append((path, self.headers.get("Range", "")))
            action = owner.script[path].pop(0) if owner.script[path] else None
        if owner.token and self.headers.get("Authorization") != f"Bearer {owner.token}":
            action = 401
        content, headers = owner.files.get(path), dict(owner.headers_of.get(path, {}))
        if isinstance(action, int) or content is None:
            code = "" if action else "EntryNotFound"
            return self.begin(action or 404, {"X-Error-Code": code, "Content-Length": "0"})
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
