"""A server on this machine that says whatever a test has it say, byte by byte where it wants, for tests of clients."""

import socket
import threading
import time
from contextlib import suppress


class HostileServer:
    """Hands each connection's socket to `act(server, socket, request)`; `requests` keeps the bytes that came in."""

    def __init__(self, act):
        self.act, self.requests, self.stopped = act, [], threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while not self.stopped.is_set():
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection):
        with connection, suppress(OSError):
            request = read_request(connection)
            self.requests.append(request)
            self.act(self, connection, request)

    def close(self):
        self.stopped.set()
        # Before its number is another socket's: the thread that waits for connections would take those.
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=5)
        self._socket.close()


def read_request(connection):
    """The bytes of one request, body included."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = connection.recv(65536)
        if not piece:
            return data
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def answering(body=b"", status="200 OK", **headers):
    """An act that sends one whole answer and closes."""
    body = body if isinstance(body, bytes) else body.encode()
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]

    def act(server, connection, request):
        connection.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    return act


def dripping(opening, piece, pause=0.02):
    """An act that sends `opening` and then `piece` again and again for ever."""

    def act(server, connection, request):
        connection.sendall(opening)
        while not server.stopped.is_set():
            connection.sendall(piece)
            if pause:
                time.sleep(pause)

    return act
