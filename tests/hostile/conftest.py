"""Laptops with an honest and a hostile host; the hostile host is this machine, directly or over SSH."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.hostile.laptop import Laptop
from tests.support import SSHD, SshdBox, end_leftovers


@pytest.fixture(scope="session")
def near(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("near")
    laptop = Laptop(folder)
    yield laptop
    laptop.close()
    end_leftovers([folder])


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshdBox]:
    if SSHD is None:
        if os.environ.get("CI"):
            pytest.fail("sshd is not installed, and in CI it has to be: apt install openssh-server")
        pytest.skip("sshd is not installed: apt install openssh-server")
    made = SshdBox(tmp_path_factory.mktemp("sshd"))
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="session")
def far(tmp_path_factory: pytest.TempPathFactory, box: SshdBox) -> Iterator[Laptop]:
    folder = tmp_path_factory.mktemp("far")
    laptop = Laptop(folder, box)
    yield laptop
    laptop.close()
    end_leftovers([folder])
