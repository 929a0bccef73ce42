"""A web server that sends parts of files, as object stores do, and fails on request."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """`sent` counts the bytes of all answers.

    The next `failures` requests for bytes and the next `refusals` requests of any kind get an error; the next
    `silences` requests get no answer.
    """

    daemon_threads = True

    def __init__(self, root: Path):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.sent, self.failures, self.refusals, self.silences = root, 0, 0, 0, 0
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers HEAD, GET, and GET with a range of bytes."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        file = self.server.root / self.path.lstrip("/")
        if self.server.silences > 0:
            self.server.silences -= 1
            self.server.closing.wait()
        if self.server.refusals > 0:
            self.server.refusals -= 1
            return self._send(503, b"", {})
        if body and self.server.failures > 0:
            self.server.failures -= 1
            return self._send(503, b"", {})
        if not file.is_file():
            return self._send(404, b"", {})
        data, headers, status = file.read_bytes(), {"Accept-Ranges": "bytes"}, 200
        if body and (span := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            first, last = int(span[1]), min(int(span[2] or len(data) - 1), len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        self._send(status, data, headers, body)

    def _send(self, status: int, data: bytes, headers: dict[str, str], body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.server.sent += len(data)
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def serve(root: Path) -> Iterator[Server]:
    """Serve the files in a folder during the context."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
