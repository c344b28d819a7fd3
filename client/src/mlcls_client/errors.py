"""The exceptions of this package: one tree, so that `except MlclsClientError` catches all that can go wrong.

What tritonclient, gRPC, the HTTP library and the operating system raise is mapped to these classes
(`mlcls_client.transport.error_mapping`); the original stays reachable as `__cause__`.
"""

from __future__ import annotations


class MlclsClientError(Exception):
    """Base of all errors of this package.

    Attributes:
        server_text: What the server itself said, word for word; None where the error did not come from a server.
        request_id: Of the request that failed, which the server's log and its spans have too; None where none was sent.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> try:
        ...     results = list(model.predict("missing.png"))
        ... except MlclsClientError as error:
        ...     print(error)
        expected an image file or a folder at 'missing.png', there is none; check the path
        >>> model.close()
    """

    def __init__(self, message: str, *, server_text: str | None = None) -> None:
        """Make an error whose message says what was expected, what came and what to do."""
        super().__init__(message)
        self.server_text = server_text
        self.request_id: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.request_id is None else f"{text} (request {self.request_id})"


class InputError(MlclsClientError):
    """An input cannot be sent.

    A file is missing or unreadable, a URL cannot be fetched, a folder holds no image, a type is not supported.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> [result.error for result in model.predict("missing.png", on_error="yield")]
        [InputError("expected an image file or a folder at 'missing.png', there is none; check the path")]
        >>> model.close()
    """


class OutputError(MlclsClientError):
    """A result cannot be written to the file that was asked for.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> result = next(model.predict("photo.png"))
        >>> result.save_to_json("photo.png/result.json")
        Traceback (most recent call last):
            ...
        mlcls_client.errors.OutputError: cannot write 'photo.png/result.json': File exists
        >>> model.close()
    """


class ServerUnavailableError(MlclsClientError):
    """No server answers at the address, the connection was lost, or the server or the model is not ready.

    Examples:
        >>> with create_model("PP-LCNet_x1_0_ML", url="127.0.0.1:9", retries=0) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ServerUnavailableError: ...
    """


class ModelNotFoundError(MlclsClientError):
    """The server answers and has no model of this name.

    Examples:
        >>> with create_model("another", url=server.url) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ModelNotFoundError: ... has no model 'another': ...
    """


class InvalidRequestError(MlclsClientError):
    """The request itself is wrong (a threshold, an option), found here or by the server (INVALID_ARGUMENT).

    Examples:
        >>> create_model("PP-LCNet_x1_0_ML", url="http://localhost:8000")
        Traceback (most recent call last):
            ...
        mlcls_client.errors.InvalidRequestError: expected an address of the form host:port, without a scheme, got ...
    """


class ImageRejectedError(MlclsClientError):
    """The server gave no result for one image; the other images of its request are answered.

    Attributes:
        input_path: Path of the image; None for an image that came from memory.
        reason: The server's words (the `status` output, or the error of a request in which no image was good).

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> results = list(model.predict(["photo.png", b"no image"], on_error="yield"))
        >>> results[1].error.reason
        'expected an encoded image, got 8 bytes that are none'
        >>> model.close()
    """

    def __init__(self, message: str, *, input_path: str | None = None, reason: str = "") -> None:
        """Make an error about one image."""
        super().__init__(message, server_text=reason)
        self.input_path = input_path
        self.reason = reason


class DeadlineExceededError(MlclsClientError):
    """The answer did not come within the time limit.

    Examples:
        >>> server.delay = lambda images: time.sleep(0.5)
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url, timeout_s=0.1) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.DeadlineExceededError: expected an answer for model 'PP-LCNet_x1_0_ML' ... within 0.1 s, ...
    """


class ServerError(MlclsClientError):
    """The server failed on a request that was in order, or refused it for a reason of its own (access, internal).

    Examples:
        >>> server.admin_key = "secret"
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url, shared_memory=True) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ServerError: ... takes no shared memory from this client: This protocol is restricted, ...
    """


class ProtocolError(MlclsClientError):
    """What answers is not a server of the served contract: a tensor is missing, or its content has another form.

    Examples:
        >>> server.raw_result = b"another model's answer"
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ProtocolError: expected output 'result' to be JSON with the lists class_ids, ...
    """
