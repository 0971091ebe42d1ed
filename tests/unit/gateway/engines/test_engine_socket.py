"""Does a gateway have a socket for every engine of a large installation?"""

import asyncio
import resource

from scheduler_service.gateway.engines.engine_socket import Connector, EngineSocket


def test_a_gateway_connects_to_more_engines_than_zeromq_has_sockets_for_by_default(tmp_path):
    async def connect(count: int) -> int:
        connector = Connector("test", "model")
        sockets = [
            EngineSocket(connector, f"ipc://{tmp_path}/{number}", lambda frames: None, lambda: None, lambda: None)
            for number in range(count)
        ]
        for socket in sockets:
            socket.close()
        connector.close()
        return len(sockets)

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        # Three sockets each, of 1,023.
        assert asyncio.run(connect(400)) == 400
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
