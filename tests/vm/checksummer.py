"""Holds memory of several kinds, and checks that every part is still as written.

Each GET is answered with `cycle bad`, after a check of all memory and a new write of a part of it. The
memory consists of pages of random bytes with their sums, and of small objects of many sizes, each with
its sum."""

import http.server
import random
import sys
import zlib

PAGE = 4096
PAGES = int(sys.argv[2])
OBJECTS = 20_000

memory = bytearray(PAGES * PAGE)
sums = [0] * PAGES
objects = {}
cycle = 0


def write_page(number):
    memory[number * PAGE : (number + 1) * PAGE] = random.randbytes(PAGE)
    sums[number] = zlib.crc32(memory[number * PAGE : (number + 1) * PAGE])


def write_object(number):
    text = f"{number}:{random.getrandbits(64)}" * random.randrange(1, 20)
    objects[number] = (text, zlib.crc32(text.encode()))


def check():
    view = memoryview(memory)
    bad = sum(zlib.crc32(view[n * PAGE : (n + 1) * PAGE]) != sums[n] for n in range(PAGES))
    bad += sum(zlib.crc32(text.encode()) != crc for text, crc in objects.values())
    for _ in range(PAGES // 20):
        write_page(random.randrange(PAGES))
    # Some pages are cleared, which is a change too.
    for _ in range(PAGES // 50):
        number = random.randrange(PAGES)
        memory[number * PAGE : (number + 1) * PAGE] = bytes(PAGE)
        sums[number] = zlib.crc32(bytes(PAGE))
    for _ in range(OBJECTS // 20):
        write_object(random.randrange(OBJECTS))
    return bad


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global cycle
        cycle += 1
        body = f"{cycle} {check()}".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


for number in range(PAGES):
    write_page(number)
for number in range(OBJECTS):
    write_object(number)
http.server.HTTPServer(("", int(sys.argv[1])), Handler).serve_forever()
