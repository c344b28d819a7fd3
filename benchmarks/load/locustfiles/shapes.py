"""The shape of a load test in locust: the users that `curves` has, and an end at which no answer is lost."""

from __future__ import annotations

import time
from typing import Final

from locust import LoadTestShape
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner

from benchmarks.load.locustfiles.curves import choose_curve
from benchmarks.load.locustfiles.locust_events import current_tally, is_ending

_DEFAULT_RUN_TIME_S: Final = 60.0
_ALL_AT_ONCE: Final = 1000.0


class ChosenShape(LoadTestShape):  # type: ignore[misc]  # locust is not in mypy's environment
    """`--shape ramp`, `soak` or `spike`, with locust's own `--users`, `--spawn-rate` and `--run-time`.

    At the end all users are stopped and waited for: locust's own end gives workers half a second, and what is in
    flight then would go uncounted.
    """

    abstract = False
    use_common_options = True

    def __init__(self) -> None:
        """Start the clock."""
        super().__init__()
        self._draining_since: float | None = None

    def tick(self) -> tuple[int, float] | None:
        """Return the users and the rate at which they come, or None once all have ended."""
        options = self.runner.environment.parsed_options
        users = options.num_users or 1
        curve = choose_curve(
            options.shape, users, options.run_time or _DEFAULT_RUN_TIME_S, options.steps, options.spike_factor
        )
        wanted = None if is_ending() else curve.users_at(self.get_run_time())
        rate = float(options.spawn_rate or _ALL_AT_ONCE)
        if wanted is not None:
            self._draining_since = None
            return wanted, rate
        if self._draining_since is None:
            self._draining_since = time.monotonic()
        return None if self._is_drained(time.monotonic() - self._draining_since) else (0, _ALL_AT_ONCE)

    def _is_drained(self, drained_s: float) -> bool:
        """Return whether the users have ended and all workers have reported, or have had their time."""
        if drained_s > self.runner.environment.stop_timeout + 2 * WORKER_REPORT_INTERVAL:
            return True
        if self.runner.user_count > 0:
            return False
        if not isinstance(self.runner, MasterRunner):
            return True
        return drained_s > 2 * WORKER_REPORT_INTERVAL and current_tally().count_unfinished() <= 0
