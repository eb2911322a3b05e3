"""A small HTTP server that streams chat completions as OpenAI's API does."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GREEDY = ["A", " dog", ", a", " cat", " and", " a", " meadow", "."]
REFINED = ["A", " dog", " and", " a", " meadow", "."]


class Server(ThreadingHTTPServer):
    """Answers by its `manner`, and keeps the requests.

    "right": GREEDY, or REFINED to a request for ReVisiT. "refuse": HTTP 400 to the latter. "cut":
    closes the connection in the middle of an answer of known length; "end": ends in the middle.
    "fail": an event with an error; "error": ends by an error. "page": HTML. "odd": JSON that is no
    answer. "long": cut at the limit of tokens. "silent": no answer. "endless": never ends.
    """

    daemon_threads = True
    manner = "right"

    def __init__(self, port=0):
        self.asked = []
        self.done = threading.Event()  # ends silent and endless answers
        self.left = threading.Event()  # a client closed the connection
        super().__init__(("127.0.0.1", port), Handler)

    @property
    def base_url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path != "/v1/models":
            return self.whole(404, {"detail": "Not Found"})
        self.whole(200, {"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    def do_POST(self):
        if self.path != "/v1/chat/completions":
            return self.whole(404, {"detail": "Not Found"})  # as FastAPI says it
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(asked)
        getattr(self, self.server.manner)(asked)

    def whole(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin(self, kind="text/event-stream", **headers):
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def event(self, data):
        text = data if isinstance(data, str) else json.dumps(data)
        self.wfile.write(f"data: {text}\n\n".encode())

    def piece(self, text, reason=None):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": reason}
        self.event({"id": "1", "object": "chat.completion.chunk", "choices": [choice]})

    def say(self, pieces, reason="stop"):
        for text in pieces:
            self.piece(text)
        if reason:
            self.piece("", reason)
            self.event({"id": "1", "object": "chat.completion.chunk", "choices": []})  # its usage
            self.event("[DONE]")

    def right(self, asked):
        self.begin()
        self.say(REFINED if "vllm_xargs" in asked else GREEDY)

    def refuse(self, asked):
        if "vllm_xargs" not in asked:
            return self.right(asked)
        message = "revisit: alpha (relative_top) must be <b>in</b> [0, 1]"
        self.whole(400, {"error": {"message": message, "type": "BadRequestError", "code": 400}})

    def cut(self, asked):
        self.begin(Content_Length="100000")
        self.say(GREEDY[:3], None)

    def end(self, asked):
        self.begin()
        self.say(GREEDY[:3], None)

    def fail(self, asked):
        self.begin()
        self.say(GREEDY[:3], None)
        self.event({"error": {"message": "EngineCore died", "code": 500}})

    def error(self, asked):
        self.begin()
        self.say(GREEDY[:3], "error")

    def page(self, asked):
        self.begin("text/html")
        self.wfile.write(b"<html>Welcome</html>")

    def odd(self, asked):
        self.begin()
        self.event({"choices": [{"delta": None}]})
        self.event("{not json")

    def long(self, asked):
        self.begin()
        self.say(GREEDY[:5], "length")

    def silent(self, asked):
        self.server.done.wait(30)

    def endless(self, asked):
        self.begin()
        try:
            while not self.server.done.wait(0.01):
                self.piece(" word")
        except OSError:
            self.server.left.set()


@contextmanager
def serving(port=0):
    server = Server(port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.done.set()
        server.shutdown()
        server.server_close()
        thread.join()
