"""The order of a run's measurements: in each round, every load on one subject after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

import anyio

from benchmarks.jobs import WrongAnswers
from benchmarks.loads import WARM_UP, Load
from benchmarks.machine import describe_machine
from benchmarks.measurement import measure
from benchmarks.processes import ProcessFailed
from benchmarks.results import Results
from benchmarks.subjects import RunningSubject, Subject
from benchmarks.system import System, running_system

# Seconds until a worker that listens has the engine's key and answers.
READY_LIMIT_S = 30.0
READY_POLL_S = 0.1

Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """The measurements of a run: `loads` on `subjects`, `rounds` times."""

    subjects: Sequence[Subject]
    loads: Sequence[Load]
    rounds: int
    quick: bool


async def run(plan: Plan, say: Say) -> Results:
    """Carry out `plan`; `say` gets a line for each step. Raises `ProcessFailed`.

    Subjects that can't run here are skipped, with the reason in the results.
    """
    reasons = {subject.name: reason for subject in plan.subjects if (reason := subject.missing())}
    for name, reason in reasons.items():
        say(f"{name} is skipped: {reason}")
    subjects = [subject for subject in plan.subjects if subject.name not in reasons]
    machine = await asyncio.to_thread(describe_machine)
    names = [subject.name for subject in subjects]
    results = Results(plan.loads, names, plan.rounds, plan.quick, machine, dict(reasons))
    async with running_system() as system, AsyncExitStack() as stack:
        ready: list[RunningSubject] = []
        for subject in subjects:
            running = await stack.enter_async_context(subject.running(system.around))
            await warm_up(running, system)
            ready.append(running)
        for number in range(1, plan.rounds + 1):
            say(f"round {number} of {plan.rounds}")
            for index, load in enumerate(plan.loads):
                # Subjects take turns at being first, so that none always runs after the same one.
                first = (number + index) % len(ready)
                for running in ready[first:] + ready[:first]:
                    await _measure_into(results, load, running, system, number, say)
    return results


async def warm_up(running: RunningSubject, system: System) -> None:
    """Wait until the subject answers, and have it serve some requests and streams of both kinds.

    Raises `ProcessFailed` if it gives other answers for 30 s.
    """
    last = "no answer"
    with anyio.move_on_after(READY_LIMIT_S):
        while True:
            try:
                for load in WARM_UP:
                    await measure(load, running, system)
                return
            except WrongAnswers as e:
                last = str(e)
            await anyio.sleep(READY_POLL_S)
    raise ProcessFailed(f"{running.subject.name} doesn't get ready: {last}")


async def _measure_into(
    results: Results, load: Load, running: RunningSubject, system: System, number: int, say: Say
) -> None:
    """Measure and add to `results`; a subject that has failed under a load once is not tried again."""
    subject = running.subject
    key = (load.name, subject.name)
    if not subject.takes(load) or key in results.failed:
        return
    try:
        if load.fresh:
            async with subject.running(system.around) as fresh:
                await warm_up(fresh, system)
                figures = await measure(load, fresh, system)
        else:
            figures = await measure(load, running, system)
    except WrongAnswers as e:
        results.failed[key] = str(e)
        say(f"  {load.name}, {subject.name}: failed: {e}")
        return
    results.add(load, subject.name, number, figures)
    said = ", ".join(f"{name} {value:.1f}" for name, value in figures.items())
    say(f"  {load.name}, {subject.name}: {said}")
