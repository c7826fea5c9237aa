"""A repository of the first generation, as its README runs it: the worker, its client, its load test."""

from __future__ import annotations

from pathlib import Path

import pytest
from aiohttp.test_utils import TestServer

from tests.e2e.author_runs import assert_totals, loud_lines, output_of, write_files
from tests.fakes.command import done
from tests.fakes.worker import Setup
from tests.system import engine_and_model_server, worker_process
from tests.workers.tgi.fake_server import FakeTgi

LOADED = '{"message":"Connected","target":"text_generation_router"}\n'

DATA_TYPES = """
import dataclasses
import inspect
import random
from typing import Any, Dict

from lib.data_types import ApiPayload, JsonDataException

WORDS = ["river", "stone", "lantern", "paper", "winter"]


@dataclasses.dataclass
class InputParameters:
    max_new_tokens: int = 256

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "InputParameters":
        known = inspect.signature(cls).parameters
        return cls(**{name: value for name, value in json_msg.items() if name in known})


@dataclasses.dataclass
class InputData(ApiPayload):
    inputs: str
    parameters: InputParameters

    @classmethod
    def for_test(cls) -> "InputData":
        prompt = " ".join(random.choices(WORDS, k=20))
        return cls(inputs=prompt, parameters=InputParameters(max_new_tokens=7))

    def generate_payload_json(self) -> Dict[str, Any]:
        return dataclasses.asdict(self)

    def count_workload(self) -> int:
        return self.parameters.max_new_tokens

    @classmethod
    def from_json_msg(cls, json_msg: Dict[str, Any]) -> "InputData":
        errors = {}
        for param in inspect.signature(cls).parameters:
            if param not in json_msg:
                errors[param] = "missing parameter"
        if errors:
            raise JsonDataException(errors)
        parameters = InputParameters.from_json_msg(json_msg["parameters"])
        return cls(inputs=json_msg["inputs"], parameters=parameters)
"""

SERVER = """
import dataclasses
import logging
import os
from typing import Optional, Type, Union

from aiohttp import ClientResponse, web

from lib.backend import Backend, LogAction
from lib.data_types import EndpointHandler
from lib.server import start_server
from .data_types import InputData

MODEL_SERVER_START_LOG_MSG = '"message":"Connected","target":"text_generation_router"'
MODEL_SERVER_ERROR_LOG_MSGS = ["Error: WebserverFailed", "Error: DownloadError", "Error: ShardCannotStart"]

logging.basicConfig(
    level=logging.DEBUG,
    format="%(asctime)s[%(levelname)-5s] %(message)s",
    datefmt="%Y-%m-%d %H:%M:%S",
)
log = logging.getLogger(__file__)


@dataclasses.dataclass
class GenerateHandler(EndpointHandler[InputData]):
    @property
    def endpoint(self) -> str:
        return "/generate"

    @property
    def healthcheck_endpoint(self) -> Optional[str]:
        return f"{os.environ['MODEL_SERVER_URL']}/health"

    @classmethod
    def payload_cls(cls) -> Type[InputData]:
        return InputData

    def generate_payload_json(self, payload: InputData):
        return dataclasses.asdict(payload)

    def make_benchmark_payload(self) -> InputData:
        return InputData.for_test()

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> Union[web.Response, web.StreamResponse]:
        if model_response.status == 200:
            log.debug("SUCCESS")
            data = await model_response.json()
            return web.json_response(data=data)
        log.debug("SENDING RESPONSE: ERROR: unknown code")
        return web.Response(status=model_response.status)


class GenerateStreamHandler(GenerateHandler):
    @property
    def endpoint(self) -> str:
        return "/generate_stream"

    async def generate_client_response(
        self, client_request: web.Request, model_response: ClientResponse
    ) -> Union[web.Response, web.StreamResponse]:
        if model_response.status != 200:
            return web.Response(status=model_response.status)
        res = web.StreamResponse()
        res.content_type = "text/event-stream"
        await res.prepare(client_request)
        async for chunk in model_response.content:
            await res.write(chunk)
        await res.write_eof()
        return res


backend = Backend(
    model_server_url=os.environ["MODEL_SERVER_URL"],
    model_log_file=os.environ["MODEL_LOG"],
    allow_parallel_requests=True,
    benchmark_handler=GenerateHandler(benchmark_runs=3, benchmark_words=256),
    log_actions=[
        (LogAction.ModelLoaded, MODEL_SERVER_START_LOG_MSG),
        (LogAction.Info, '"message":"Download'),
        *[(LogAction.ModelError, error_msg) for error_msg in MODEL_SERVER_ERROR_LOG_MSGS],
    ],
)


async def handle_ping(_):
    return web.Response(body="pong")


routes = [
    web.post("/generate", backend.create_handler(GenerateHandler())),
    web.post("/generate_stream", backend.create_handler(GenerateStreamHandler())),
    web.get("/ping", handle_ping),
]

if __name__ == "__main__":
    start_server(backend, routes)
"""

CLIENT = """
import json
import logging
import sys
from urllib.parse import urljoin

import requests

from lib.test_utils import print_truncate_res, test_args

logging.basicConfig(level=logging.DEBUG, format="%(asctime)s[%(levelname)-5s] %(message)s")
log = logging.getLogger(__file__)

COST = 4


def get_endpoint_api_key(endpoint_name: str, account_api_key: str, server_url: str):
    response = requests.get(
        urljoin(server_url, "/api/v0/endptjobs/"),
        headers={"Authorization": f"Bearer {account_api_key}"},
        timeout=4,
    )
    response.raise_for_status()
    for endpoint in response.json()["results"]:
        if endpoint["endpoint_name"] == endpoint_name:
            return endpoint["api_key"]
    return None


def route(endpoint_group_name: str, api_key: str, server_url: str):
    route_payload = {"endpoint": endpoint_group_name, "api_key": api_key, "cost": COST}
    response = requests.post(urljoin(server_url, "/route/"), json=route_payload, timeout=4)
    response.raise_for_status()
    message = response.json()
    auth_data = dict(
        signature=message["signature"],
        cost=message["cost"],
        endpoint=message["endpoint"],
        reqnum=message["reqnum"],
        url=message["url"],
        request_idx=message["request_idx"],
    )
    return message["url"], auth_data


def call_generate(endpoint_group_name: str, api_key: str, server_url: str, inputs: str) -> None:
    url, auth_data = route(endpoint_group_name, api_key, server_url)
    payload = dict(inputs=inputs, parameters=dict(max_new_tokens=COST))
    response = requests.post(urljoin(url, "/generate"), json=dict(payload=payload, auth_data=auth_data))
    response.raise_for_status()
    print_truncate_res(str(response.json()))


def call_generate_stream(endpoint_group_name: str, api_key: str, server_url: str, inputs: str) -> None:
    url, auth_data = route(endpoint_group_name, api_key, server_url)
    payload = dict(inputs=inputs, parameters=dict(max_new_tokens=COST))
    req_data = dict(payload=payload, auth_data=auth_data)
    response = requests.post(urljoin(url, "/generate_stream"), json=req_data, stream=True)
    response.raise_for_status()
    for line in response.iter_lines():
        payload = line.decode().lstrip("data:").rstrip()
        if payload:
            data = json.loads(payload)
            print(data["token"]["text"], end="")
            sys.stdout.flush()
    print()


if __name__ == "__main__":
    test_args.add_argument("-p", dest="prompt", default="tell me about cats")
    args = test_args.parse_args()
    endpoint_api_key = get_endpoint_api_key(args.endpoint_group_name, args.api_key, args.server_url)
    if endpoint_api_key:
        try:
            for call in (call_generate, call_generate_stream):
                call(
                    api_key=endpoint_api_key,
                    endpoint_group_name=args.endpoint_group_name,
                    server_url=args.server_url,
                    inputs=args.prompt,
                )
        except Exception as e:
            log.error(f"Error during API call: {e}")
            sys.exit(1)
    else:
        log.error(f"Failed to get API key for endpoint {args.endpoint_group_name} ")
"""

TEST_LOAD = """
import os

from lib.test_utils import test_args, test_load_cmd
from .data_types import InputData

WORKER_ENDPOINT = "/generate_stream"

if __name__ == "__main__":
    test_args.add_argument("-m", dest="model", required=not os.environ.get("MODEL_NAME"))
    known_args, _ = test_args.parse_known_args()
    print("model:", known_args.model)
    test_load_cmd(InputData, WORKER_ENDPOINT, arg_parser=test_args)
"""

FILES = {
    "workers/prose/__init__.py": "",
    "workers/prose/data_types.py": DATA_TYPES,
    "workers/prose/server.py": SERVER,
    "workers/prose/client.py": CLIENT,
    "workers/prose/test_load.py": TEST_LOAD,
}


@pytest.mark.one_python
async def test_its_worker_client_and_load_test_run_end_to_end(tmp_path: Path) -> None:
    write_files(tmp_path, FILES)
    async with TestServer(FakeTgi().app()) as model, engine_and_model_server(tmp_path) as system:
        system.write_log(LOADED)
        env = {"MODEL_SERVER_URL": str(model.make_url("")), "MODEL_LOG": str(system.model_log)}
        target = ("-k", "account-key", "-e", "local", "--engine", system.engine_url)
        module = "workers.prose.server"
        async with worker_process(system, tmp_path, Setup(), env, module=module) as worker:
            system.worker = worker
            await system.ready()
            assert system.last_report.max_perf > 0
            called = await output_of(tmp_path, "python", "-m", "workers.prose.client", *target)
            assert called.splitlines() == [
                "{'generated_text': ' word word word word'}",
                " word word word word",
            ]
            load = ("-n", "20", "-rps", "100", "-m", "any", *target)
            loaded = await output_of(tmp_path, "python", "-m", "workers.prose.test_load", *load)
            assert loaded.startswith("model: any\n20 of 20 requests in ")
            assert "workers used                     1" in loaded
            # 4 tokens each of the client's requests, 7 each of the load test's.
            await assert_totals(system, 2 * 4 + 20 * 7.0, Success=22)
            crash = ("python", "-m", "workers.prose.client", "-p", "crash", *target)
            crashed = await done(*crash, cwd=tmp_path)
            assert (crashed.status, crashed.output) == (1, "")
            assert "Error during API call: 500 Server Error" in crashed.errors
            await assert_totals(system, 148.0, errored=4.0, Success=22, Error=1)
            log = await worker.final_output()
        assert await worker.exit_status() == 0
    assert "POST /generate 500 errored workload=4" in log
    assert loud_lines(log) == []
