"""Is all there that the processes need? Checked before anything is downloaded or loaded."""

import importlib.util

from scheduler_service.supervisor.errors import ServiceError

_NEEDED_MODULES = ("zmq", "msgspec", "tokenizers", "pydantic", "starlette", "uvicorn", "torch")


def check_packages() -> None:
    """Are the packages of all processes installed?

    Raises:
        ServiceError: some are not.
    """
    missing = [name for name in _NEEDED_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        raise ServiceError(
            f"the Python packages {', '.join(missing)} are not installed: pip install 'pagewire[all]' "
            "(the base install is the client alone)"
        )
