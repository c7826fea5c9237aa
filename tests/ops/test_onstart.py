"""ops/onstart.sh as an instance runs it: the model server and the worker of a template."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest

from tests.event_loop import until
from tests.fakes.process import RunningProcess
from tests.guard import GUARD_S
from tests.ops.queries import OPS
from tests.start_script import Instance, with_instance

pytestmark = pytest.mark.one_python

# It stands for vLLM: it writes its arguments and serves nothing, as the test's model server runs already.
FAKE_VLLM = """#!{bash}
echo "vllm $*"
exec tail -f /dev/null
"""


def prepare(instance: Instance) -> None:
    """Install the fake vLLM, and let the script be fetched from the instance's checkout."""
    vllm = instance.bin / "vllm"
    vllm.write_text(FAKE_VLLM.format(bash=shutil.which("bash")))
    vllm.chmod(0o755)
    instance.env |= {
        "PYWORKER_FRAMEWORK": str(instance.script.parent),
        "SCRIPT_URL": instance.script.as_uri(),
        "MODEL_LOG": str(instance.root / "logs" / "vllm.log"),
    }


@asynccontextmanager
async def started(instance: Instance) -> AsyncGenerator[RunningProcess, None]:
    """Run the onstart script in a session of its own; all of it is ended with SIGTERM after the block."""
    process = await asyncio.create_subprocess_exec(
        *("bash", str(OPS / "onstart.sh")),
        cwd=instance.root,
        env=instance.environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    script = RunningProcess(process)
    try:
        yield script
    finally:
        # Those whose groups are their own are the worker's, which the launcher ends.
        os.killpg(process.pid, signal.SIGTERM)
        await script.end()
    _, alive = await asyncio.to_thread(psutil.wait_procs, instance.processes(), timeout=GUARD_S)
    assert not alive


async def test_it_starts_the_model_server_and_its_worker(tmp_path: Path) -> None:
    async with with_instance(tmp_path, MODEL_NAME="some/model", VLLM_ARGS="--max-model-len 4096") as instance:
        prepare(instance)
        async with started(instance) as script:
            await script.until("listening on port")
            await instance.system.ready()
            assert (await instance.system.call("/echo", 3.0))[0] == 200
            await instance.system.reported(served=3.0)
            expected = "vllm serve some/model --host 127.0.0.1 --port 18000 --max-model-len 4096\n"
            await until(lambda: Path(instance.env["MODEL_LOG"]).read_text() == expected)


async def test_its_status_says_that_the_script_could_not_be_fetched(tmp_path: Path) -> None:
    async with with_instance(tmp_path) as instance:
        prepare(instance)
        instance.env["SCRIPT_URL"] = (tmp_path / "nothing").as_uri()
        async with started(instance) as script:
            with anyio.fail_after(GUARD_S):
                assert await script.process.wait() != 0
