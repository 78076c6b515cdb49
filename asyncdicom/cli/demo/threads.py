"""Blocking work of the demo, on threads of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar, TypeVarTuple

Arguments = TypeVarTuple("Arguments")
Result = TypeVar("Result")


async def in_thread(executor: Executor, work: Callable[[*Arguments], Result], *arguments: *Arguments) -> Result:
    """Run a function that blocks."""
    return await asyncio.get_running_loop().run_in_executor(executor, work, *arguments)
