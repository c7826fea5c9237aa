"""The choice of the first route that a model server answers."""

from __future__ import annotations

from functools import partial

from aiohttp import web

from tests.workers.noted_answers import NotingCaller, caller_of
from workers.openai.route_choice import RouteChoice

PATHS = ("/a", "/b", "/c")


class Statuses:
    """Answers each path with its status and notes the calls. `statuses` may change."""

    def __init__(self, **statuses: int) -> None:
        self.statuses = statuses
        self.called: list[str] = []

    def app(self) -> web.Application:
        app = web.Application()
        app.router.add_post("/{name}", self._answer)
        return app

    async def _answer(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self.called.append(name)
        return web.Response(status=self.statuses[name], text=f"from {name}")


async def ask(choice: RouteChoice, caller: NotingCaller) -> tuple[str, int, object]:
    path, answer = await choice.ask({path: partial(caller.post_json, path, {}) for path in PATHS})
    return path, answer.status, answer.body


async def test_the_first_route_that_does_not_refuse_is_chosen_and_remembered() -> None:
    server, choice = Statuses(a=404, b=200, c=200), RouteChoice({404})
    async with caller_of(server.app()) as caller:
        for _ in range(2):
            assert await ask(choice, caller) == ("/b", 200, b"from b")
    assert server.called == ["a", "b", "b"]


async def test_if_all_refuse_the_answer_is_that_of_the_first_and_all_are_tried_again() -> None:
    server, choice = Statuses(a=404, b=400, c=404), RouteChoice({400, 404})
    async with caller_of(server.app()) as caller:
        assert await ask(choice, caller) == ("/a", 404, b"from a")
        server.statuses["c"] = 200
        assert await ask(choice, caller) == ("/c", 200, b"from c")
        server.statuses |= {"a": 200, "c": 404}  # the server has another model now
        assert await ask(choice, caller) == ("/c", 404, b"from c")
        assert await ask(choice, caller) == ("/a", 200, b"from a")


async def test_a_failure_is_no_refusal_and_nothing_is_remembered() -> None:
    server, choice = Statuses(a=404, b=503, c=200), RouteChoice({404})
    async with caller_of(server.app()) as caller:
        assert await ask(choice, caller) == ("/b", 503, b"from b")
        server.statuses["a"] = 200
        assert await ask(choice, caller) == ("/a", 200, b"from a")
