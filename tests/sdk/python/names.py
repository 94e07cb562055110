"""Name server that leads every name to one IPv4 address (RFC 1035, 4.1). The address is 127.0.0.1 for
`test_hosts.py` and the internet's for `e2b-suite`."""

import socket
import sys


def serve(at, address):
    """Answers on `at` forever. Questions for anything but IPv4 addresses find no record."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((at, 53))
    print("ready", flush=True)
    while True:
        question, asker = server.recvfrom(512)
        end = question.index(0, 12) + 5
        is_a = question[end - 4 : end] == b"\0\1\0\1"
        head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(address)
        server.sendto(head + question[12:end] + (record if is_a else b""), asker)


if __name__ == "__main__":
    serve(sys.argv[1], "127.0.0.1")
