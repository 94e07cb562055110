"""E2B's official Python SDK, unmodified, against a platform with real guests. The SDK finds it by
its own variables: E2B_API_KEY, E2B_API_URL, E2B_SANDBOX_URL; by E2B_DOMAIN in `test_hosts.py`."""

import uuid

import pytest


@pytest.fixture(scope="session")
def box():
    """A sandbox that tests share, who leave it as it is but for files of their own."""
    from e2b import Sandbox

    box = Sandbox.create(timeout=600, metadata={"suite": "shared"}, envs={"SHARED": "ü"})
    yield box
    box.kill()


@pytest.fixture
def create():
    """Makes sandboxes that end with the test."""
    from e2b import Sandbox  # Which some environments lack.

    made = []

    def make(*args, **more):
        made.append(Sandbox.create(*args, **{"timeout": 120, **more}))
        return made[-1]

    yield make
    for one in made:
        one.kill()


@pytest.fixture
def mark():
    """A word that nobody else has."""
    return uuid.uuid4().hex
