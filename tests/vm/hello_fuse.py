"""Serves a file system over /dev/fuse, by the kernel's own protocol. Its one folder has the files f0 to
f99. Each file says hello, except the last, which is long. The program needs root. Its argument is an
empty folder."""

import ctypes, errno, os, stat, struct, sys

ROOT, FILES, HELLO = 1, 100, b"hello\n"
LONG, LENGTH = FILES + 1, 64 << 20
HEAD = struct.Struct("<IIQQIIII")
LOOKUP, FORGET, GETATTR, OPEN, READ, STATFS, RELEASE = 1, 2, 3, 14, 15, 17, 18
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, ACCESS, INTERRUPT, BATCH_FORGET = 25, 26, 27, 28, 29, 34, 36, 42
PARALLEL_DIROPS, DIRECT_IO = 1 << 18, 1


def attributes(node):
    folder = node == ROOT
    mode = stat.S_IFDIR | 0o755 if folder else stat.S_IFREG | 0o644
    size = 0 if folder else LENGTH if node == LONG else len(HELLO)
    return struct.pack("<6Q10I", node, size, 1, 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)


def entry(number, name):
    padding = b"\0" * (-len(name) % 8)
    return struct.pack("<QQII", number + 2, number + 1, len(name), 8) + name + padding


# The kernel must cache nothing, so that every call asks the server.
def answer(operation, node, body):
    if operation == INIT:
        flags = struct.unpack_from("<4I", body)[3] & PARALLEL_DIROPS
        return struct.pack("<4I2H2I2H8I", 7, 31, 0, flags, 128, 128, 65536, 1, 0, 0, *[0] * 8)
    if operation == LOOKUP:
        name = body.rstrip(b"\0")
        if not (name[:1] == b"f" and name[1:].isdigit() and int(name[1:]) < FILES):
            return -errno.ENOENT
        child = int(name[1:]) + 2
        return struct.pack("<4Q2I", child, 0, 0, 0, 0, 0) + attributes(child)
    if operation == GETATTR:
        return struct.pack("<Q2I", 0, 0, 0) + attributes(node)
    if operation in (OPEN, OPENDIR):
        return struct.pack("<Q2I", 0, DIRECT_IO if operation == OPEN else 0, 0)
    if operation == READ:
        _, offset, size = struct.unpack_from("<QQI", body)
        if node == LONG:
            return os.urandom(max(0, min(size, LENGTH - offset)))
        return HELLO[offset : offset + size]
    if operation == READDIR:
        _, offset, size = struct.unpack_from("<QQI", body)
        out = b""
        for number in range(offset, FILES):
            more = entry(number, b"f%d" % number)
            if len(out) + len(more) > size:
                break
            out += more
        return out
    if operation == STATFS:
        return struct.pack("<5Q10I", 0, 0, 0, 0, 0, 4096, 255, 4096, *[0] * 7)
    if operation in (RELEASE, RELEASEDIR, FLUSH, ACCESS):
        return b""
    return -errno.ENOSYS


device = os.open("/dev/fuse", os.O_RDWR)
os.makedirs(sys.argv[1], exist_ok=True)
options = b"fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other" % device
libc = ctypes.CDLL(None, use_errno=True)
if libc.mount(b"hello", sys.argv[1].encode(), b"fuse", 0, options) != 0:
    raise OSError(ctypes.get_errno(), "mount")
while True:
    try:
        request = os.read(device, 1 << 18)
    except OSError as error:
        # ENODEV means that the file system was unmounted.
        if error.errno == errno.ENODEV:
            break
        continue
    _, operation, unique, node, *_ = HEAD.unpack_from(request)
    if operation in (FORGET, BATCH_FORGET, INTERRUPT):
        continue
    said = answer(operation, node, request[HEAD.size :])
    code, said = (said, b"") if isinstance(said, int) else (0, said)
    try:
        os.write(device, struct.pack("<IiQ", 16 + len(said), code, unique) + said)
    except OSError:
        pass  # The caller has given up.
