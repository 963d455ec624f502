"""Servers on this machine for tests: their life cycle, and doubles of services that answer in JSON."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LocalServer:
    """Serves requests with `handler` on a port of its own until it is closed; `root` ends its address."""

    def __init__(self, handler, root="/v1"):
        self._server = _Server(("127.0.0.1", 0), handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}{root}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    # Enough for the tests that ask much at the same time.
    request_queue_size = 64


class JsonServer(LocalServer):
    """Sends what `answer(path, body)` gives: a number as that HTTP status, text and bytes as they are, others as JSON.

    The body of a GET is None. `headers` go with every answer.
    """

    def __init__(self, root="/v1", headers=()):
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.respond(None)

            def do_POST(self):
                self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def respond(self, body):
                said = server.answer(self.path, body)
                status, said = (said, {"error": {"message": "no"}}) if isinstance(said, int) else (200, said)
                kind = "text/plain" if isinstance(said, str) else "application/json"
                text = said if isinstance(said, str | bytes) else json.dumps(said)
                sent = text.encode() if isinstance(text, str) else text
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(sent)))
                for name, value in headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *words):
                pass

        super().__init__(Handler, root)

    def answer(self, path, body):
        raise NotImplementedError
