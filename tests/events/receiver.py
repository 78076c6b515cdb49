"""A receiver of webhooks as somebody else would write it: it verifies by its own code, and keeps every event in a file.

It writes ``listening PORT`` first. ``--answer STATUS`` gives another answer than 204, ``--hang`` none at all. A line of the
file is JSON: the headers and the body of one event. What cannot be verified is answered with 401 and not kept.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kept")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret")
    parser.add_argument("--answer", type=int, default=204)
    parser.add_argument("--hang", action="store_true")
    arguments = parser.parse_args()
    kept = os.open(arguments.kept, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if arguments.hang:
                threading.Event().wait()
            status = arguments.answer if self._is_genuine(body) else 401
            if 200 <= status <= 299:
                line = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": body.decode()}
                os.write(kept, json.dumps(line).encode() + b"\n")
            self.send_response(status)
            self.send_header("content-length", "0")
            if 300 <= status <= 399:
                self.send_header("location", "/elsewhere")
            self.end_headers()

        def _is_genuine(self, body: bytes) -> bool:
            if arguments.secret is None:
                return "webhook-signature" not in self.headers
            timestamp = self.headers["webhook-timestamp"]
            if abs(time.time() - int(timestamp)) > 60:
                return False
            signed = b".".join([self.headers["webhook-id"].encode(), timestamp.encode(), body])
            expected = base64.b64encode(hmac.new(arguments.secret.encode(), signed, hashlib.sha256).digest()).decode()
            return f"v1,{expected}" in self.headers["webhook-signature"].split()

        def log_message(self, format: str, *args: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    server = Server(("127.0.0.1", arguments.port), Handler)
    os.write(1, f"listening {server.server_port}\n".encode())
    server.serve_forever()


if __name__ == "__main__":
    main()
