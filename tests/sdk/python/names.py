"""A name server for `test_hosts.py`: every name is this machine's (RFC 1035, 4.1)."""

import socket
import sys

at = (sys.argv[1], 53)
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(at)
print("ready", flush=True)
while True:
    question, asker = server.recvfrom(512)
    end = question.index(0, 12) + 5
    is_a = question[end - 4 : end] == b"\0\1\0\1"
    head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
    address = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("127.0.0.1")
    server.sendto(head + question[12:end] + (address if is_a else b""), asker)
