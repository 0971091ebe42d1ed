"""Which gRPC methods need which role? A method that is not named here needs GENERATE, so no new one is ever open."""

from scheduler_service.gateway.auth.caller import Role

# Probes have no keys.
_OPEN_SERVICES = frozenset({"grpc.health.v1.Health"})
# What any key may ask for.
_ANY_ROLE_SERVICES = frozenset({"grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"})
# What tells of other callers, or has effects on them.
_ADMIN_SERVICES = frozenset({"grpc.channelz.v1.Channelz"})
_ADMIN_METHODS = frozenset(
    {"/vllm.grpc.engine.VllmEngine/FlushCache", "/vllm.grpc.engine.VllmEngine/SubscribeKvEvents"}
)


def is_open(method: str) -> bool:
    """Whether a method ("/package.Service/Method") is for everybody."""
    return _service(method) in _OPEN_SERVICES


def role_for(method: str) -> Role | None:
    """The role that callers of a method need; None: any."""
    service = _service(method)
    if service in _ANY_ROLE_SERVICES:
        return None
    return Role.ADMIN if service in _ADMIN_SERVICES or method in _ADMIN_METHODS else Role.GENERATE


def _service(method: str) -> str:
    return method.removeprefix("/").partition("/")[0]
