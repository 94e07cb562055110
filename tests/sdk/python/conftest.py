"""Tests of E2B's official Python SDK, unmodified, against a platform with real guests. The SDK finds
the platform by its own variables: E2B_API_KEY, E2B_API_URL and E2B_SANDBOX_URL. `test_hosts.py` uses
E2B_DOMAIN."""

import uuid

import pytest


@pytest.fixture(scope="session")
def box():
    """Sandbox that tests share. Tests change only files of their own in it."""
    from e2b import Sandbox

    box = Sandbox.create(timeout=600, metadata={"suite": "shared"}, envs={"SHARED": "ü"})
    yield box
    box.kill()


@pytest.fixture
def create():
    """Returns a function that makes sandboxes, which end with the test."""
    from e2b import Sandbox  # Some environments lack this package.

    made = []

    def make(*args, **more):
        made.append(Sandbox.create(*args, **{"timeout": 120, **more}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def mark():
    """Unique word."""
    return uuid.uuid4().hex
