"""Web server as in users' capsules: pages, events, an echo, a WebSocket; standard library only."""

import base64
import hashlib
import http.server
import socket
import struct
import sys
import time


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body, kind="text/html", **headers):
        self.send_response(headers.pop("status", 200))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        if self.headers.get("Upgrade") == "websocket":
            return self.websocket()
        if self.path == "/events":
            return self.events()
        if self.path == "/move":
            return self.answer(b"", status=302, Location="http://localhost:8080/moved")
        self.answer(f"<h1>{self.path}</h1><pre>{self.headers}</pre>".encode())

    def do_POST(self):
        digest, left = hashlib.sha256(), int(self.headers["Content-Length"])
        while left:
            part = self.rfile.read(min(left, 65536))
            digest.update(part)
            left -= len(part)
        self.answer(digest.hexdigest().encode(), "text/plain")

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            self.wfile.write(f"data: {number}\n\n".encode())
            self.wfile.flush()
            time.sleep(0.2)
        self.close_connection = True

    def websocket(self):
        """Echoes frames (RFC 6455) until it is told to close."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(key.encode()).digest()).decode()
        self.send_header("Sec-WebSocket-Accept", accept)
        self.end_headers()
        self.close_connection = True
        while True:
            first, second = self.rfile.read(2)
            length = second & 127
            if length == 126:
                (length,) = struct.unpack(">H", self.rfile.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.rfile.read(8))
            mask = self.rfile.read(4)
            data = self.rfile.read(length)
            mask = (mask * (length // 4 + 1))[:length]
            data = (int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")
            size = (
                bytes([length]) if length < 126
                else struct.pack(">BH", 126, length) if length < 65536
                else struct.pack(">BQ", 127, length)
            )
            self.wfile.write(bytes([first]) + size + data)
            if first & 15 == 8:
                return

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


host = sys.argv[2] if len(sys.argv) > 2 else "0.0.0.0"
Server.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
Server((host, int(sys.argv[1])), Handler).serve_forever()
