"""Run while the image is built: the Python bindings must be those of the TensorRT that the image serves with.

A plan loads in the TensorRT version that built it and in no other.
"""

import ctypes
import glob
import re
import sys


def read_library_version(library: ctypes.CDLL) -> tuple[int, int, int]:
    """The version of a loaded libnvinfer; TensorRT 10 and 11 encode it as major * 10000 + minor * 100 + patch."""
    number = library.getInferLibVersion()
    return number // 10000, number // 100 % 100, number % 100


def describe_mismatch(package: str, library: tuple[int, int, int]) -> str | None:
    """What is wrong, or None where the package (`11.4.0.106`) fits the library."""
    if tuple(map(int, re.findall(r"\d+", package)[:3])) == library:
        return None
    version = ".".join(map(str, library))
    return (
        f"The image has TensorRT {version}, and requirements/tensorrt.txt has the Python package {package}. Name the "
        f"image's version in requirements/tensorrt.in (pip index versions tensorrt-cu13-bindings), run `make lock`, "
        f"and build again."
    )


def main() -> int:
    """Compares; without GPU and driver."""
    names = sorted(glob.glob("/usr/lib/*/libnvinfer.so.[0-9]*") + glob.glob("/opt/tensorrt/lib/libnvinfer.so.[0-9]*"))
    if not names:
        print("Expected TensorRT's libnvinfer in the image, got none.", file=sys.stderr)
        return 1
    from importlib.metadata import version

    mismatch = describe_mismatch(version("tensorrt-cu13-bindings"), read_library_version(ctypes.CDLL(names[0])))
    if mismatch:
        print(mismatch, file=sys.stderr)
        return 1
    import tensorrt

    print(f"TensorRT {tensorrt.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
