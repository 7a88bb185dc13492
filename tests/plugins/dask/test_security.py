"""Who may reach the cluster of a session: nobody but its user."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import LocalCluster, Security
from rhapsody.api import BackendConfigurationError, ComputeTask, Session
from rhapsody.backends import DaskExecutionBackend
from rhapsody_dask.options import is_open

pytestmark = [pytest.mark.engine("dask"), pytest.mark.timeout(120)]
THREADS: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "processes": False}
NOBODY = 65534
# It attacks once before the user changes, who may not read this environment: all that is imported is, by then.
INTRUDER = """
import asyncio, os, sys
import distributed.client, distributed.comm.tcp, cryptography.x509
from distributed import Security
from distributed.comm import connect

own = Security.temporary().get_connection_args("client")

async def attack(protocol, arguments):
    comm = await connect(f"{protocol}://{sys.argv[1].partition('://')[2]}", timeout=2, **arguments)
    await comm.write({"op": "identity", "reply": True})
    return await comm.read()

def attempt(act):
    try:
        return act()
    except (OSError, RuntimeError) as error:
        return 'PermissionError' if isinstance(error, PermissionError) else 'OSError'

attempt(lambda: asyncio.run(attack('tcp', {})))
attempt(lambda: asyncio.run(attack('tls', own)))
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[3]))
print(attempt(lambda: "joined" if asyncio.run(attack('tcp', {}))["type"] == "Scheduler" else ""))
print(attempt(lambda: "joined" if asyncio.run(attack('tls', own))["type"] == "Scheduler" else ""))
print(attempt(lambda: os.listdir(sys.argv[2])))
print(attempt(lambda: os.kill(int(sys.argv[4]), 0)))
"""


def intrude(address: str | None, folder: Path) -> list[str]:
    """Attack as another user; returns what came of a plain connection, of own certificates, of reading, of a signal."""
    command = [sys.executable, "-c", INTRUDER, str(address), str(folder), str(NOBODY), str(os.getpid())]
    tries = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert tries.returncode == 0, tries.stderr
    return tries.stdout.split()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can act as another user")
async def test_other_user_is_kept_out(tmp_path: Path) -> None:
    """Another user of the machine cannot connect to a session's cluster, read its folder, or signal it."""
    for parent in tmp_path.parents[:2]:
        parent.chmod(0o755)
    tmp_path.chmod(0o755)
    backend = DaskExecutionBackend(resources={**THREADS, "protocol": "tls"})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        task = ComputeTask(executable="echo", arguments=["secret"], capture_stdio=True)
        await session.submit_tasks([task])
        await task
        assert str(backend.scheduler_address).startswith("tls://127.0.0.1:")
        tries = await asyncio.to_thread(intrude, backend.scheduler_address, tmp_path / session.uid)
    assert tries == ["OSError", "OSError", "PermissionError", "PermissionError"]
    backend = DaskExecutionBackend(resources={**THREADS, "protocol": "tcp"})  # without, the attack has teeth
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        await session.submit_tasks([ComputeTask(function=abs, args=(-1,))])
        await session.wait_tasks()
        assert (await asyncio.to_thread(intrude, backend.scheduler_address, tmp_path))[0] == "joined"


async def test_own_cluster(tmp_path: Path) -> None:
    """An own cluster has certificates, in no command line, and listens on the loopback alone."""

    def mine() -> list[psutil.Process]:
        return [psutil.Process(), *psutil.Process().children(recursive=True)]

    def listening() -> set[Any]:
        return {c.laddr for one in mine() for c in one.net_connections() if c.status == psutil.CONN_LISTEN}

    before = listening()  # of engines that other tests have used in this process
    backend = DaskExecutionBackend(resources={"n_workers": 1, "threads_per_worker": 1})
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        task = ComputeTask(function=abs, args=(-1,))
        await session.submit_tasks([task])
        await task
        assert str(backend.scheduler_address).startswith("tls://")
        assert {address.ip for address in listening() - before} == {"127.0.0.1"}
        assert not [one for one in mine() if any("tls-" in part or "BEGIN" in part for part in one.cmdline())]


async def test_certificates_are_passed_on(tmp_path: Path) -> None:
    """The user's Security opens a protected scheduler at an address; False leaves an own cluster without any."""
    security = Security.temporary()
    async with LocalCluster(
        n_workers=1, processes=False, dashboard_address="127.0.0.1:0", security=security, asynchronous=True
    ) as cluster:
        backend = DaskExecutionBackend(cluster=cluster.scheduler_address, security=security)
        async with Session(backends=[backend], work_dir=tmp_path) as session:
            task = ComputeTask(function=abs, args=(-1,))
            await session.submit_tasks([task])
            await task
    backend = DaskExecutionBackend(resources={"n_workers": 1, "threads_per_worker": 1}, security=False)
    async with Session(backends=[backend], work_dir=tmp_path) as session:
        await session.submit_tasks([ComputeTask(function=abs, args=(-1,))])
        await session.wait_tasks()
        assert str(backend.scheduler_address).startswith("tcp://127.0.0.1:")


async def test_open_scheduler_is_warned_of(tmp_path: Path) -> None:
    """A scheduler that listens beyond the loopback without certificates is one warning, with the remedy."""
    async with LocalCluster(
        n_workers=1, processes=False, protocol="tcp", host="0.0.0.0", dashboard_address="127.0.0.1:0", asynchronous=True
    ) as cluster:
        if not is_open(cluster.scheduler_address):
            pytest.skip("this machine has no address but the loopback")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            async with Session(backends=[DaskExecutionBackend(cluster=cluster)], work_dir=tmp_path) as session:
                await session.submit_tasks([ComputeTask(function=abs, args=(-1,))])
                await session.wait_tasks()
    (text,) = [str(one.message) for one in caught if "can run code as you" in str(one.message)]
    assert "security=Security(...)" in text


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("tcp://10.0.0.1:8786", True),
        ("tcp://[fe80::1]:8786", True),
        ("tls://10.0.0.1:8786", False),
        ("tcp://127.0.0.1:8786", False),
        ("tcp://[::1]:8786", False),
        ("inproc://10.0.0.1/1/1", False),
        (None, False),
    ],
)
def test_is_open(address: str | None, expected: bool) -> None:
    """What listens beyond the loopback without certificates is open."""
    assert is_open(address) is expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"security": "yes"},
        {"security": True, "cluster": "tcp://127.0.0.1:1"},
        {"security": False, "cluster": "tls://127.0.0.1:1"},
    ],
)
def test_security_of_what_is_given(arguments: dict[str, Any]) -> None:
    """Certificates for what has its own, or none for an address, are an error where they are written."""
    with pytest.raises(BackendConfigurationError, match="security"):
        DaskExecutionBackend(**arguments)
