"""Endpoints over TLS, with certificates made for the test: trusted ones are asked, others are told nothing."""

import select
import shutil
import socket
import ssl
import subprocess
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from memfactory.engines import connection
from memfactory.engines.endpoint import Endpoint
from memfactory.engines.pool import TryAgain

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")


class Echo(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.headers["Authorization"], body))
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class TlsServer(ThreadingHTTPServer):
    """`seen` keeps the key and the body of every request."""

    daemon_threads = True

    def __init__(self, certificate: Path) -> None:
        super().__init__(("127.0.0.1", 0), Echo)
        self.seen: list[tuple[str, bytes]] = []
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: object) -> None:
        """A client that does not trust the certificate hangs up."""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for 127.0.0.1, signed by itself, and its key in one file."""
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        ["openssl", *words.split(), "-keyout", str(path), "-out", f"{path}.crt"], check=True, capture_output=True
    )
    path.write_text(path.read_text() + Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def server(certificate: Path):
    server = TlsServer(certificate)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch):
    """The system trusts the certificate."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    connection._tls.cache_clear()
    yield
    connection._tls.cache_clear()


def ask(address: str, *, near: bool = True) -> bytes:
    return Endpoint(address, name="the server", key="sk-test-123456789", timeout=5, near=near).post("/chat", [1]).body


@pytest.mark.usefixtures("trusted")
def test_a_trusted_server_is_asked_over_tls(server: TlsServer) -> None:
    endpoint = Endpoint(
        f"https://127.0.0.1:{server.server_port}/v1", name="the server", key="sk-test-123456789", timeout=5, near=True
    )
    # The second request goes through the connection of the first.
    assert [endpoint.post("/chat", [number]).body for number in (1, 2)] == [b"[1]", b"[2]"]
    assert server.seen == [("Bearer sk-test-123456789", b"[1]"), ("Bearer sk-test-123456789", b"[2]")]


def test_a_server_that_is_not_trusted_is_told_nothing(server: TlsServer) -> None:
    connection._tls.cache_clear()
    with pytest.raises(TryAgain, match="certificate"):
        ask(f"https://127.0.0.1:{server.server_port}/v1")
    assert server.seen == []


@pytest.mark.usefixtures("trusted")
def test_a_certificate_of_another_host_is_refused(server: TlsServer) -> None:
    with pytest.raises(TryAgain, match=r"certificate.*localhost"):
        ask(f"https://localhost:{server.server_port}/v1")
    assert server.seen == []


@pytest.mark.usefixtures("trusted")
def test_tls_goes_through_a_proxy(server: TlsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    listening = socket.create_server(("127.0.0.1", 0))

    def proxy() -> None:
        client, _ = listening.accept()
        with client, suppress(OSError):
            asked.append(client.recv(65536))
            with socket.create_connection(("127.0.0.1", server.server_port)) as upstream:
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                while True:
                    for ready in select.select([client, upstream], [], [], 5)[0]:
                        piece = ready.recv(65536)
                        if not piece:
                            return
                        (upstream if ready is client else client).sendall(piece)

    threading.Thread(target=proxy, daemon=True).start()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", f"http://user:word@127.0.0.1:{listening.getsockname()[1]}")
    assert ask(f"https://127.0.0.1:{server.server_port}/v1", near=False) == b"[1]"
    head = asked[0].decode()
    assert head.startswith(f"CONNECT 127.0.0.1:{server.server_port} HTTP/1.1\r\n")
    # The proxy is told its own password and nothing of the request.
    assert "Proxy-Authorization: Basic dXNlcjp3b3Jk" in head and "sk-test" not in head
    listening.close()
