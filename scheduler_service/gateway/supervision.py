"""How does a gateway live with its supervisor? It shows that its loop turns, and takes the supervisor's reports."""

import asyncio
import logging
from collections.abc import Callable

from pagewire.ipc.supervision import BEAT_PERIOD_S, Heart, ProcessState, ServiceReport
from scheduler_service.gateway.open_calls import OpenCalls

logger = logging.getLogger(__name__)


async def show_progress(heart: Heart, calls: OpenCalls) -> None:
    """Note again and again that the event loop turns, until cancelled."""
    while True:
        if calls.is_draining:
            heart.note(ProcessState.DRAINING)
        else:
            heart.note(ProcessState.BUSY if calls.num_open else ProcessState.IDLE)
        await asyncio.sleep(BEAT_PERIOD_S)


def follow_reports(heart: Heart, on_report: Callable[[ServiceReport], None]) -> None:
    """Call `on_report` with every report that comes, on this event loop."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            while (report := heart.receive()) is not None:
                on_report(report)
        except ValueError as error:
            logger.warning("report of the supervisor dropped error=%s", error)
        except OSError as error:
            logger.warning("supervisor lost error=%s", error)
            loop.remove_reader(heart.fileno())

    loop.add_reader(heart.fileno(), read)
