"""Run `paddle.distributed.launch` with paddle imported as elsewhere: quietly, and a signal ends it without a trace."""

from __future__ import annotations

from mlcls.paddle.runtime import import_paddle

if __name__ == "__main__":
    import_paddle("train")
    from paddle.distributed.launch.main import launch

    launch()
