"""The exceptions of this package: one tree, so that `except MlclsClientError` catches all that can go wrong.

What tritonclient, gRPC, the HTTP library and the operating system raise is mapped to these classes
(`mlcls_client.error_mapping`); the original stays reachable as `__cause__`.
"""


class MlclsClientError(Exception):
    """Base of all errors of this package.

    Attributes:
        server_text: what the server itself said, word for word; None where the error did not come from a server.
    """

    def __init__(self, message: str, *, server_text: str | None = None) -> None:
        """Make an error whose message says what was expected, what came and what to do."""
        super().__init__(message)
        self.server_text = server_text


class InputError(MlclsClientError):
    """An input cannot be sent.

    A file is missing or unreadable, a URL cannot be fetched, a folder holds no image, a type is not supported.
    """


class OutputError(MlclsClientError):
    """A result cannot be written to the file that was asked for."""


class ServerUnavailableError(MlclsClientError):
    """No server answers at the address, the connection was lost, or the server or the model is not ready."""


class ModelNotFoundError(MlclsClientError):
    """The server answers and has no model of this name."""


class InvalidRequestError(MlclsClientError):
    """The request itself is wrong (a threshold, an option), found here or by the server (INVALID_ARGUMENT)."""


class ImageRejectedError(MlclsClientError):
    """The server gave no result for one image; the other images of its request are answered.

    Attributes:
        input_path: path of the image; None for an image that came from memory.
        reason: the server's words (the `status` output, or the error of a request in which no image was good).
    """

    def __init__(self, message: str, *, input_path: str | None = None, reason: str = "") -> None:
        """Make an error about one image."""
        super().__init__(message, server_text=reason)
        self.input_path = input_path
        self.reason = reason


class DeadlineExceededError(MlclsClientError):
    """The answer did not come within the time limit."""


class ServerError(MlclsClientError):
    """The server failed on a request that was in order, or refused it for a reason of its own (access, internal)."""


class ProtocolError(MlclsClientError):
    """What answers is not a server of the served contract: a tensor is missing, or its content has another form."""
