"""One of several processes of a training: the file that `paddle.distributed.launch` runs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlcls.base.files import write_text
from mlcls.errors import MlclsError
from mlcls.training.processes import FAILURE_FILE, ProcessGroup, set_device
from mlcls.training.settings import Device, TrainSettings
from mlcls.training.train import train_in_process


def main(settings_file: Path) -> int:
    """Do this process's part of the training; write a failure where the starting process finds it."""
    try:
        settings = TrainSettings.from_config(json.loads(settings_file.read_text(encoding="utf-8")))
        set_device(Device.parse(settings.device))
        train_in_process(settings, ProcessGroup.join())
    except MlclsError as error:
        write_text(settings_file.with_name(FAILURE_FILE), f"{error}\n")
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
