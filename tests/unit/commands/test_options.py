"""Options that several commands share."""

from argparse import Namespace
from pathlib import Path

import pytest

from mlcls.commands.options import default_repository, describe_rollback


@pytest.mark.parametrize(
    ("url", "repository", "version", "command"),
    [
        (None, default_repository(), None, "mlcls rollback cats"),
        ("http://gpu:8000", default_repository(), 3, "mlcls rollback cats --to 3 --url http://gpu:8000"),
        (None, Path("my models"), None, "mlcls rollback cats --repository 'my models'"),
    ],
)
def test_the_way_back_names_the_same_server_and_repository(
    url: str | None, repository: Path, version: int | None, command: str
) -> None:
    assert describe_rollback(Namespace(url=url, repository=repository), "cats", version) == command
