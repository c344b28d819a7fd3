"""Client of a Triton server that serves PaddleX multi-label image classification models.

    >>> from mlcls_client import create_model
    >>> with create_model("PP-LCNet_x1_0_ML", url=server.url) as model:
    ...     for res in model.predict("photos/", batch_size=8):
    ...         res.print()
    ...         res.save_to_img("output/")
    ...         res.save_to_json("output/")
    {'res': {'input_path': 'photos/img2.png', 'page_index': None, 'class_ids': [1], 'scores': [0.78431], 'label_names': ['green']}}
    {'res': {'input_path': 'photos/img10.png', 'page_index': None, 'class_ids': [2], 'scores': [0.78431], 'label_names': ['blue']}}

On asyncio, `create_async_model` and `async for` do the same.

Importing this package imports neither numpy, Pillow nor tritonclient; they come with the first call that needs them.
"""  # noqa: E501

from mlcls_client.async_model import AsyncModel, create_async_model
from mlcls_client.errors import (
    DeadlineExceededError,
    ImageRejectedError,
    InputError,
    InvalidRequestError,
    MlclsClientError,
    ModelNotFoundError,
    OutputError,
    ProtocolError,
    ServerError,
    ServerUnavailableError,
)
from mlcls_client.inputs.fetch import FetchLimits
from mlcls_client.model import Model, create_model
from mlcls_client.result import MultiLabelResult
from mlcls_client.server_state import ServedModel, ServerHealth, list_models, read_health

__version__ = "0.1.0"

__all__ = [
    "AsyncModel",
    "DeadlineExceededError",
    "FetchLimits",
    "ImageRejectedError",
    "InputError",
    "InvalidRequestError",
    "MlclsClientError",
    "Model",
    "ModelNotFoundError",
    "MultiLabelResult",
    "OutputError",
    "ProtocolError",
    "ServedModel",
    "ServerError",
    "ServerHealth",
    "ServerUnavailableError",
    "__version__",
    "create_async_model",
    "create_model",
    "list_models",
    "read_health",
]
