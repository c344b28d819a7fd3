"""The key of a server's closed APIs: where it is set, and how it travels."""

from __future__ import annotations

from typing import Final

#: Environment variable with the key of the closed APIs; without it, a random key that nobody knows closes them.
ADMIN_KEY_VARIABLE: Final = "MLCLS_ADMIN_KEY"
#: Header of an HTTP request that carries it.
ADMIN_KEY_HEADER: Final = "mlcls-admin-key"
