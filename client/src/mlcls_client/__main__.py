"""`python -m mlcls_client` is the `mlcls-client` command."""

import sys

from mlcls_client.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
