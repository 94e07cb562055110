"""Internet of `e2b-suite`. A name server leads every name to the given address. A web server answers
on every address by HTTPS. 1.1.1.1 and 8.8.8.8 answer with redirects, as their real servers do. Other
addresses answer with an empty body."""

import http.server
import ssl
import sys
import threading

import names

MOVED = {"1.1.1.1": 301, "8.8.8.8": 302}


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        status = MOVED.get(self.request.getsockname()[0], 204)
        self.send_response(status)
        if status != 204:
            self.send_header("Location", "https://elsewhere.example/")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


address, certificate, key = sys.argv[1:]
web = http.server.ThreadingHTTPServer(("0.0.0.0", 443), Web)
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)
# Each connection has its own handshake, so an unfinished handshake delays no other connection.
web.socket = context.wrap_socket(web.socket, server_side=True, do_handshake_on_connect=False)
threading.Thread(target=web.serve_forever, daemon=True).start()
names.serve(address, address)
