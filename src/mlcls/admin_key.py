"""The key of Triton's closed APIs: where it comes from, and which texts cannot be one."""

from __future__ import annotations

import os
import re
import secrets
from typing import Final

from mlcls.errors import ServerError

#: Environment variable with the key of the closed APIs; without it, a random key that nobody knows closes them.
ADMIN_KEY_VARIABLE: Final = "MLCLS_ADMIN_KEY"
#: Header of an HTTP request that carries it.
ADMIN_KEY_HEADER: Final = "mlcls-admin-key"

#: What goes through a header and through Triton's option alike, spaces within included.
_KEY: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")


def read_admin_key() -> str:
    """The key of the environment, else a random one.

    Raises:
        ServerError: The key of the environment has characters that a header cannot carry; it is not shown.
    """
    key = os.environ.get(ADMIN_KEY_VARIABLE)
    if not key:
        return secrets.token_urlsafe(24)
    if not _KEY.fullmatch(key):
        raise ServerError(
            f"{ADMIN_KEY_VARIABLE}: expected printable ASCII characters without spaces at the ends, got others, which "
            f"no header carries; make a key: openssl rand -hex 32."
        )
    return key
