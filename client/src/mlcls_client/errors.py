"""The exceptions of this package: one tree, so that `except MlclsClientError` catches everything.

Errors of tritonclient, gRPC, the HTTP library and the operating system are mapped to these classes
(`mlcls_client.transport.error_mapping`); the original is `__cause__`.
"""

from __future__ import annotations


class MlclsClientError(Exception):
    """Base of all errors of this package.

    Attributes:
        server_text: The server's own text, unchanged; None if the error did not come from a server.
        request_id: Id of the failed request, as in the server's log and spans; None if none was sent.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> try:
        ...     results = list(model.predict("missing.png"))
        ... except MlclsClientError as error:
        ...     print(error)
        Expected an image file or a folder at 'missing.png', which does not exist; check the path.
        >>> model.close()
    """

    def __init__(self, message: str, *, server_text: str | None = None) -> None:
        """Make an error. The message says what was expected, what came and what to do."""
        super().__init__(message)
        self.server_text = server_text
        self.request_id: str | None = None

    def __str__(self) -> str:
        text = super().__str__()
        return text if self.request_id is None else f"{text} (request {self.request_id})"


class InputError(MlclsClientError):
    """An input cannot be sent.

    A file is missing or unreadable, a URL cannot be fetched, a folder has no image, or a type is not supported.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> [result.error for result in model.predict("missing.png", on_error="yield")]
        [InputError("Expected an image file or a folder at 'missing.png', which does not exist; check the path.")]
        >>> model.close()
    """


class OutputError(MlclsClientError):
    """A result cannot be written to the requested file.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> result = next(model.predict("photo.png"))
        >>> result.save_to_json("photo.png/result.json")
        Traceback (most recent call last):
            ...
        mlcls_client.errors.OutputError: Cannot write 'photo.png/result.json': File exists.
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
    """The server answers but has no model of this name.

    Examples:
        >>> with create_model("another", url=server.url) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ModelNotFoundError: ... has no model 'another': ...
    """


class InvalidRequestError(MlclsClientError):
    """The request itself is wrong (a threshold, an option), according to the client or the server (INVALID_ARGUMENT).

    Examples:
        >>> create_model("PP-LCNet_x1_0_ML", url="http://localhost:8000")
        Traceback (most recent call last):
            ...
        mlcls_client.errors.InvalidRequestError: Expected an address of the form host:port, without a scheme, got ...
    """


class ImageRejectedError(MlclsClientError):
    """The server gave no result for one image; the other images of its request are answered.

    Attributes:
        input_path: Path of the image; None for an image from memory.
        reason: The server's own text: the output `status`, or the error of a request without a single good image.

    Examples:
        >>> model = create_model("PP-LCNet_x1_0_ML", url=server.url)
        >>> results = list(model.predict(["photo.png", b"no image"], on_error="yield"))
        >>> results[1].error.reason
        'image: expected an encoded image, got 8 bytes in no known format.'
        >>> model.close()
    """

    def __init__(self, message: str, *, input_path: str | None = None, reason: str = "") -> None:
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
        mlcls_client.errors.DeadlineExceededError: Expected an answer for model 'PP-LCNet_x1_0_ML' ... within 0.1 s, ...
    """


class ServerError(MlclsClientError):
    """The server failed on a valid request, or refused it for a reason of its own (access, internal error).

    Examples:
        >>> server.admin_key = "secret"
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url, shared_memory=True) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ServerError: ... accepts no shared memory from this client: This protocol is restricted, ...
    """


class ProtocolError(MlclsClientError):
    """The answer does not follow the served contract: a tensor is missing, or its content has another form.

    Examples:
        >>> server.raw_result = b"another model's answer"
        >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
        ...     list(model.predict("photo.png"))
        Traceback (most recent call last):
            ...
        mlcls_client.errors.ProtocolError: Expected output 'result' to be JSON with the lists class_ids, ...
    """
