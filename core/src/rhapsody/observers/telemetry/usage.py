"""How much of this machine is used: its cores, memory, disks and network by psutil, its GPUs by nvidia-ml-py."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from typing import Any

import psutil

from rhapsody.log import get_logger
from rhapsody.observers.telemetry.events import ResourceUpdate

log = get_logger(__name__)


class Usage:
    """Reads the use of this machine. What cannot be had is left out."""

    def __init__(self) -> None:
        self._node = platform.node()
        self._nvml: Any = None
        self._gpus: list[Any] = []
        psutil.cpu_percent()  # the first one has nothing to compare with
        with contextlib.suppress(ImportError):
            import pynvml

            try:
                pynvml.nvmlInit()
                self._gpus = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
                self._nvml = pynvml
            except pynvml.NVMLError as error:  # there is no driver: no GPU of its kind
                log.debug("gpus_not_watched", error=str(error))

    def read(self, session: str, backend: str) -> Iterator[ResourceUpdate]:
        """Yield the use of the machine at present, and of each GPU."""
        who: dict[str, Any] = {"session_id": session, "backend": backend, "node_id": self._node}
        io: dict[str, Any] = {}
        with contextlib.suppress(OSError, RuntimeError):  # a container may hide its disks
            disk, net = psutil.disk_io_counters(), psutil.net_io_counters()
            if disk is not None:
                io |= {"disk_read_bytes": disk.read_bytes, "disk_write_bytes": disk.write_bytes}
            if net is not None:
                io |= {"net_sent_bytes": net.bytes_sent, "net_recv_bytes": net.bytes_recv}
        memory = psutil.virtual_memory().percent
        yield ResourceUpdate(**who, cpu_percent=psutil.cpu_percent(), memory_percent=memory, **io)
        for number, gpu in enumerate(self._gpus):
            with contextlib.suppress(self._nvml.NVMLError):
                used = float(self._nvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
                yield ResourceUpdate(**who, gpu_id=number, gpu_percent=used)

    def close(self) -> None:
        """Let go of the GPUs' driver."""
        if self._nvml is not None:
            with contextlib.suppress(self._nvml.NVMLError):
                self._nvml.nvmlShutdown()
            self._nvml = None
