"""Counts of tasks, and how long they took, as metrics of OpenTelemetry."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from opentelemetry.sdk.resources import Resource

from rhapsody.observers.telemetry.events import ResourceUpdate
from rhapsody.version import __version__

COUNTED: Final = ("submitted", "started", "completed", "failed", "canceled")
_ERRORS: Final = 50  # kinds of error that a metric distinguishes; the others are one, as OpenTelemetry has it
_TIMES: Final = 100  # that are put into the histogram at a time
_OTHER: Final = "_OTHER"
_Key = tuple[str, str]  # backend, and the kind of error or nothing


class Measures:
    """Counts what happens to tasks. How much it keeps does not depend on their number: no attribute holds a uid.

    The counts are read when metrics are collected, so that a task costs one addition each.

    Args:
        readers: of metrics; one in memory is added.
        resource: describes this program.
    """

    def __init__(self, readers: Sequence[MetricReader], resource: Resource) -> None:
        self.counts: dict[str, Counter[_Key]] = {name: Counter() for name in COUNTED}
        self.running: Counter[_Key] = Counter()
        self.nodes: dict[tuple[str, str, int | None], ResourceUpdate] = {}
        self._seconds: list[float] = []  # total, shortest, longest
        self._timed = 0
        self._times: defaultdict[str, list[float]] = defaultdict(list)  # by backend
        self._errors: set[str] = set()
        self._reader = InMemoryMetricReader()
        self._last: Any = None
        self._provider: MeterProvider | None = MeterProvider([self._reader, *readers], resource=resource)
        meter = self._provider.get_meter("rhapsody", __version__)
        for name in COUNTED:
            read = _reading(self.counts[name])
            meter.create_observable_counter(f"tasks_{name}", [read], "{task}", f"Tasks that were {name}")
        running = _reading(self.running)
        meter.create_observable_up_down_counter("tasks_running", [running], "{task}", "Tasks that run")
        self._record = meter.create_histogram("task_duration_seconds", "s", "How long tasks ran").record
        for field, what in (("cpu", "all cores"), ("memory", "memory"), ("gpu", "one GPU")):
            name = f"node_{field}_utilization"
            meter.create_observable_gauge(name, [self._utilization(f"{field}_percent")], "%", f"Use of {what}")

    def ended(self, name: str, backend: str, seconds: float | None, error: str = "") -> None:
        """Count a task that has ended, and how long it ran; None for one that did not run."""
        if error and error not in self._errors:
            if len(self._errors) < _ERRORS:
                self._errors.add(error)
            else:
                error = _OTHER
        self.counts[name][backend, error] += 1
        if seconds is not None:
            self._times[backend].append(seconds)

    def take_times(self) -> None:
        """Put the times since the last call into the histogram: all of them, or a hundred where there are more.

        One costs OpenTelemetry 4 us, so that all of many short tasks would cost more than these do.
        """
        for backend, times in self._times.items():
            if times:
                total, shortest, longest = self._seconds or (0.0, times[0], times[0])
                self._seconds = [total + sum(times), min(shortest, *times), max(longest, *times)]
                self._timed += len(times)
                for seconds in times[:: len(times) // _TIMES + 1]:
                    self._record(seconds, {"backend": backend})
                times.clear()

    def set_usage(self, update: ResourceUpdate) -> None:
        """Take the use of a machine, or of a GPU, for the present one."""
        self.nodes[update.backend, update.node_id or "", update.gpu_id] = update

    def totals(self) -> dict[str, int]:
        """Return how many tasks were submitted, and what became of them."""
        totals = {name: self.counts[name].total() for name in COUNTED}
        return {**totals, "running": self.running.total()}

    def durations(self) -> dict[str, float | None]:
        """Return how long tasks ran, in seconds."""
        total, shortest, longest = self._seconds or (0.0, None, None)
        mean = total / self._timed if self._timed else None
        return {"total_seconds": total, "mean_seconds": mean, "min_seconds": shortest, "max_seconds": longest}

    def read(self) -> Any:
        """Return the metrics as `opentelemetry.sdk.metrics.export.MetricsData`."""
        if self._provider is not None:
            self._last = self._reader.get_metrics_data()
        return self._last

    def close(self) -> Callable[[], object]:
        """Keep the metrics as they are; return what exports them a last time, which may take a while."""
        self.read()
        provider, self._provider = self._provider, None
        return provider.shutdown if provider is not None else lambda: None

    def _utilization(self, field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(_: CallbackOptions) -> Iterable[Observation]:
            for (backend, node, gpu), update in list(self.nodes.items()):
                value = getattr(update, field)
                if value is not None:
                    attributes: dict[str, str | int] = {"backend": backend, "node_id": node}
                    yield Observation(value, attributes if gpu is None else {**attributes, "gpu_id": gpu})

        return read


def _reading(counter: Counter[_Key]) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        for (backend, error), count in list(counter.items()):
            yield Observation(count, {"backend": backend, "error.type": error} if error else {"backend": backend})

    return read
