"""Health check of the container: exit status 0 where all models of the server are ready."""

import sys
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8000/v2/health/ready"


def main(url: str = URL) -> int:
    """Asks once; a server that refuses, hangs or is not there is not ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy has no way to this machine
    try:
        with opener.open(url, timeout=5) as response:
            return 0 if response.status == 200 else 1
    except (OSError, urllib.error.URLError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
