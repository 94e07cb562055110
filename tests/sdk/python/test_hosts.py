"""Tests of sandboxes by host names. Each sandbox has a host of its own, over TLS, with a certificate
of the platform's own authority. `run` makes the names lead to the platform (E2B_DOMAIN)."""

import asyncio
import os
import time

import httpx
import pytest
from e2b import AsyncSandbox, Sandbox

SERVE = "python3 -m http.server 8000"
ECHO = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        named = dict(self.headers.items())
        self.wfile.write(f"{named['Host']} {named['X-Forwarded-Proto']}".encode())
http.server.HTTPServer(("", 8000), Echo).serve_forever()
"""


def get(url, **headers):
    return httpx.get(url, headers=headers, verify=True, timeout=20)


def serve(box, command=SERVE):
    box.commands.run(command, background=True, cwd="/home/user")
    box.commands.run("until curl -s -o /dev/null localhost:8000; do sleep 0.1; done")


def test_a_port_is_everybodys_and_one_that_is_not_open_says_so(create):
    box = create()
    assert box.commands.run("echo by name").stdout == "by name\n"
    at = f"https://{box.get_host(8000)}"
    closed = get(at)
    assert closed.status_code == 502
    assert closed.json() == {
        "sandboxId": box.sandbox_id,
        "message": "The sandbox is running but port is not open",
        "port": 8000,
        "code": 502,
    }
    box.files.write("f.txt", "served")
    serve(box)
    assert get(f"{at}/f.txt").text == "served"
    assert "<!doctype html>" in get(f"https://{box.get_host(8001)}", accept="text/html").text
    box.kill()
    for _ in range(50):
        gone = get(at)
        if gone.status_code == 502 and gone.json()["message"] == "The sandbox was not found":
            break
        time.sleep(0.1)
    assert gone.json() == {
        "sandboxId": box.sandbox_id,
        "message": "The sandbox was not found",
        "code": 502,
    }


def test_traffic_that_is_private_takes_the_token(create):
    box = create(network={"allow_public_traffic": False})
    serve(box)
    at = f"https://{box.get_host(8000)}"
    assert get(at).status_code == 403
    token = box.traffic_access_token
    assert token and get(at, **{"e2b-traffic-access-token": "x" + token}).status_code == 403
    assert get(at, **{"e2b-traffic-access-token": token}).status_code == 200
    assert get(f"https://{box.get_host(49983)}/health", **{"X-Access-Token": "x"}).status_code != 204


def test_programs_are_asked_by_the_name_that_was_chosen(create):
    box = create(network={"mask_request_host": "localhost:${PORT}"})
    box.files.write("echo.py", ECHO)
    serve(box, "python3 echo.py")
    assert get(f"https://{box.get_host(8000)}").text == "localhost:8000 https"


def test_files_go_up_and_down_by_signed_urls(create):
    box = create()
    box.files.write("down", "signed")
    url = box.download_url("down", user="user")
    assert get(url).text == "signed"
    assert get(url.replace("down", "down2")).status_code == 401
    late = box.download_url("down", user="user", use_signature_expiration=-5)
    refused = get(late)
    assert refused.json() == {"code": 401, "message": "signature is already expired"}
    up = box.upload_url("up", user="user", use_signature_expiration=60)
    sent = httpx.post(up, files={"file": ("up", b"sent")}, verify=True)
    assert sent.status_code == 200 and box.files.read("up") == "sent"
    assert httpx.post(url, files={"file": ("up", b"x")}, verify=True).status_code == 401


def test_the_async_half_signs_urls_too():
    async def lives():
        box = await AsyncSandbox.create(timeout=60)
        try:
            await box.files.write("down", "signed")
            assert get(box.download_url("down", user="user")).text == "signed"
            up = box.upload_url("up", user="user")
            sent = httpx.post(up, files={"file": ("up", b"sent")}, verify=True)
            assert sent.status_code == 200 and await box.files.read("up") == "sent"
        finally:
            await box.kill()

    asyncio.run(lives())


def test_what_only_the_host_may_ask_is_not_there(create):
    box = create()
    at = f"https://{box.get_host(49983)}"
    for path in ("/init", "/snapshot/prepare"):
        asked = httpx.post(at + path, json={}, headers={"X-Access-Token": box._envd_access_token})
        assert asked.status_code == 404, path


def test_http_2_is_spoken():
    with httpx.Client(http2=True, verify=True) as client:
        asked = client.get(f"https://api.{os.environ['E2B_DOMAIN']}/health")
        assert (asked.status_code, asked.http_version) == (200, "HTTP/2")


def test_a_sandbox_is_connected_to_by_name(create):
    box = create()
    again = Sandbox.connect(box.sandbox_id)
    with pytest.raises(Exception):
        again.commands.run("exit 1")
    assert again.commands.run("hostname").stdout
