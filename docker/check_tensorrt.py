"""Check, while the image is built, that the Python bindings fit the TensorRT that the image serves with.

A plan loads only in the TensorRT version that built it.
"""

import sys
from importlib.metadata import version
from typing import Final

from mlcls.base.machine import read_tensorrt_version
from mlcls.engines.tensorrt.library import load_library, parse_version
from mlcls.errors import MlclsError

PACKAGE: Final = "tensorrt-cu13-bindings"


def describe_mismatch(package: str, library: str | None) -> str | None:
    """Return what is wrong; None if the package (`11.4.0.106`) fits the library (`11.4.0`, or with a build number)."""
    if library is None:
        return "Expected TensorRT's libnvinfer in the image, got none."
    if parse_version(package)[:3] == parse_version(library)[:3]:
        return None
    return (
        f"The image has TensorRT {library}, and requirements/tensorrt.txt has {PACKAGE} {package}. Name the image's "
        f"version in requirements/tensorrt.in (pip index versions {PACKAGE}), run `make lock`, and build again."
    )


def main() -> int:
    """Compare the versions and load the bindings; needs no GPU and no driver."""
    mismatch = describe_mismatch(version(PACKAGE), read_tensorrt_version())
    try:
        if mismatch is None:
            print(f"TensorRT {load_library('tensorrt').__version__}")
    except MlclsError as error:
        mismatch = str(error)
    if mismatch is not None:
        print(mismatch, file=sys.stderr)
    return 0 if mismatch is None else 1


if __name__ == "__main__":
    sys.exit(main())
