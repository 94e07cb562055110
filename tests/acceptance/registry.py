"""Registry on the loopback that serves one tree of files as an image of many names.

usage: registry.py TREE.tar PORT_FILE
Any repository and any tag stand for the image. The port is written to PORT_FILE once it serves.
"""

import gzip
import hashlib
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OCI = "application/vnd.oci.image."


def described(kind, data):
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": OCI + kind, "digest": digest, "size": len(data)}


def image(tree):
    """Returns the manifest, and all blobs by digest."""
    with open(tree, "rb") as file:
        plain = file.read()
    layer = gzip.compress(plain, 1, mtime=0)
    path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    config = json.dumps({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": [path], "Cmd": ["bash"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": ["sha256:" + hashlib.sha256(plain).hexdigest()],
        },
    }).encode()
    parts = [described("config.v1+json", config), described("layer.v1.tar+gzip", layer)]
    manifest = json.dumps({
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": parts[0],
        "layers": parts[1:],
    }).encode()
    return manifest, {parts[0]["digest"]: config, parts[1]["digest"]: layer}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    manifest, blobs = b"", {}

    def answer(self, body):
        if self.path.rstrip("/") == "/v2":
            found, kind = b"{}", "application/json"
        elif "/blobs/" in self.path:
            found, kind = self.blobs.get(self.path.rsplit("/", 1)[1]), "application/octet-stream"
        elif "/manifests/" in self.path:
            found, kind = self.manifest, OCI + "manifest.v1+json"
        else:
            found, kind = None, ""
        if found is None:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(found)))
        if found is self.manifest:
            digest = "sha256:" + hashlib.sha256(found).hexdigest()
            self.send_header("Docker-Content-Digest", digest)
        self.end_headers()
        if body:
            self.wfile.write(found)

    def do_GET(self):
        self.answer(True)

    def do_HEAD(self):
        self.answer(False)

    def log_message(self, *_):
        pass


def main():
    tree, port_file = sys.argv[1:]
    Handler.manifest, Handler.blobs = image(tree)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with open(port_file + ".new", "w", encoding="utf-8") as file:
        file.write(str(server.server_port))
    os.rename(port_file + ".new", port_file)
    server.serve_forever()


main()
