"""What several unit tests share: a file system without exchange, the log of the client."""

import logging

import pytest

from mlcls.base import files


@pytest.fixture
def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that cannot have two paths change places."""
    monkeypatch.setattr(files, "_RENAME_EXCHANGE", 1 << 30)  # the kernel answers EINVAL to a flag it does not know


@pytest.fixture
def client_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the client logs, whatever the libraries of earlier tests in this process have done to logging."""
    monkeypatch.setattr(logging.getLogger("mlcls_client"), "disabled", False)
    monkeypatch.setattr(logging.getLogger("mlcls_client"), "propagate", True)
    caplog.set_level(logging.WARNING, logger="mlcls_client")
    return caplog
