"""Runs a coroutine to its end, also while an event loop runs in this thread: Playwright's does from the first canvas
test of a process on, and a process that is through with them is given files of another layer.
"""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import torch


def run_async(coroutine: Coroutine) -> Any:
    """What the coroutine returns or raises, as `asyncio.run`, in a thread of its own with this thread's context."""
    inference = torch.is_inference_mode_enabled()

    def run():
        with torch.inference_mode(inference):
            return asyncio.run(coroutine)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(copy_context().run, run).result()
