"""Tests gRPC through the sandbox proxy: every kind of call, with the official library on both sides."""

import concurrent.futures
import os
import threading

import grpc


def up(request, context):
    context.set_trailing_metadata((("x-sum", str(len(request))),))
    return request.upper()


def down(request, context):
    for number in range(3):
        yield request + str(number).encode()


def both(requests, context):
    for request in requests:
        yield request.upper()


def fails(request, context):
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not today")


HANDLERS = grpc.method_handlers_generic_handler(
    "test.Echo",
    {
        "Up": grpc.unary_unary_rpc_method_handler(up),
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Both": grpc.stream_stream_rpc_method_handler(both),
        "Fails": grpc.unary_unary_rpc_method_handler(fails),
    },
)
server = grpc.server(concurrent.futures.ThreadPoolExecutor(8))
server.add_generic_rpc_handlers((HANDLERS,))
port = server.add_insecure_port("127.0.0.1:0")
server.start()
# The program sees the capsule's public name as the authority.
name = f"{port}-{os.environ['CAPSULE']}.sandbox.test"
channel = grpc.insecure_channel(
    os.environ["PROXY_URL"].removeprefix("http://"), [("grpc.default_authority", name)]
)
key = [("x-api-key", os.environ["API_KEY"])]

answer, call = channel.unary_unary("/test.Echo/Up").with_call(b"hello", metadata=key, timeout=20)
assert answer == b"HELLO" and ("x-sum", "5") in call.trailing_metadata(), call.trailing_metadata()
large = b"x" * 3_000_000
assert channel.unary_unary("/test.Echo/Up")(large, metadata=key, timeout=20) == large.upper()
assert list(channel.unary_stream("/test.Echo/Down")(b"a", metadata=key, timeout=20)) == [b"a0", b"a1", b"a2"]

# Each message comes back before the next is sent, so no hop holds messages back.
turn, sent = threading.Semaphore(1), []


def requests():
    for number in range(20):
        turn.acquire(timeout=20)
        sent.append(number)
        yield b"m%d" % number


got = []
for answer in channel.stream_stream("/test.Echo/Both")(requests(), metadata=key, timeout=60):
    got.append(answer)
    assert len(sent) == len(got), (sent, got)
    turn.release()
assert got == [b"M%d" % number for number in range(20)], got

try:
    channel.unary_unary("/test.Echo/Fails")(b"", metadata=key, timeout=20)
    raise AssertionError("it did not fail")
except grpc.RpcError as error:
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not today"), error
try:
    channel.unary_unary("/test.Echo/Up")(b"", timeout=20)
    raise AssertionError("it needed no key")
except grpc.RpcError as error:
    assert error.code() == grpc.StatusCode.UNAUTHENTICATED, error
server.stop(None)
print("ok gRPC passes: one answer, many, both ways at once, trailers, errors")
