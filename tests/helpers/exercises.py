"""Tasks that show what the browser's worker does with tasks; a process of its own imports them."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from tide.browser.worker import Teller


class Exercises:
    """Tasks that show what the worker does with tasks."""

    def handle(self, what: str, arguments: dict[str, Any], teller: Teller) -> Any:
        if what == "pid":
            return os.getpid()
        if what == "count":
            for i in range(arguments["to"]):
                teller.tell("step", step=i)
                time.sleep(arguments.get("seconds", 0))
        if what == "pausing":
            for i in range(arguments["to"]):
                teller.pause(done=i)
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "leave":
            os._exit(3)
        if what == "fail":
            raise arguments["error"]
        return None
