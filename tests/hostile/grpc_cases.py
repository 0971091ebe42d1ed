"""Which calls does the fuzz make? Of every method of every service that a gateway lists by reflection."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import grpc
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.json_format import ParseDict
from google.protobuf.message import Message
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.hostile import corpus
from tests.hostile.messages import change, fill
from tests.hostile.mutations import mutate

_MAX_WEIGHT = 40


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make: messages that are sent, and when its caller gives up."""

    path: str
    messages: tuple[bytes, ...]
    timeout_s: float
    cancel_after_s: float | None
    metadata: tuple[tuple[str, str | bytes], ...]
    is_streaming: bool


class Method:
    """Makes calls of one method.

    Args:
        descriptor: of it.
    """

    def __init__(self, descriptor: MethodDescriptor) -> None:
        self.service: str = descriptor.containing_service.full_name
        self.name = f"{self.service}.{descriptor.name}"
        self._path = f"/{self.service}/{descriptor.name}"
        self._is_streaming = bool(descriptor.server_streaming)
        self._kind: type[Message] = message_factory.GetMessageClass(descriptor.input_type)
        self._valid = [ParseDict(fields, self._kind()) for fields in corpus.REQUESTS.get(self.name, [{}])]
        # The more a message can hold, the more there is to try.
        self.weight = min(_MAX_WEIGHT, 1 + _num_fields(descriptor.input_type, set()))

    def make(self, choice: random.Random) -> Call:
        """Any call of it."""
        num_messages = choice.choices((1, 0, 2), (20, 1, 1))[0]
        return Call(
            path=self._path,
            messages=tuple(self._message(choice) for _ in range(num_messages)),
            timeout_s=choice.choice((0.001, 0.05, 0.5, 2.0, 2.0)),
            cancel_after_s=choice.choice((0.0, 0.005, 0.05)) if choice.random() < 0.15 else None,
            metadata=_metadata(choice),
            is_streaming=self._is_streaming,
        )

    def _message(self, choice: random.Random) -> bytes:
        message = self._kind()
        message.CopyFrom(choice.choice(self._valid))
        match choice.choices(("changed", "random", "mutated", "valid"), (5, 2, 4, 1))[0]:
            case "changed":
                change(message, choice, choice.randint(1, 3))
            case "random":
                message.Clear()
                fill(message, choice)
            case "mutated":
                if choice.random() < 0.3:
                    change(message, choice, 1)
                other = choice.choice(self._valid).SerializeToString()
                return mutate(message.SerializeToString(), choice, other)
        return message.SerializeToString()


def find_methods(address: str) -> list[Method]:
    """All methods that a gateway serves."""
    with grpc.insecure_channel(address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = descriptor_pool.DescriptorPool(database)
        services = [pool.FindServiceByName(name) for name in sorted(database.get_services())]
        return [Method(method) for service in services for method in service.methods]


def choose(methods: Sequence[Method], choice: random.Random) -> Method:
    """One of them, by weight."""
    return choice.choices(methods, [method.weight for method in methods])[0]


def _metadata(choice: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    if choice.random() < 0.8:
        return ()
    text = "".join(choice.choices("azAZ09 ~!{}%", k=choice.choice((0, 1, 100, 2000))))
    return choice.choice(
        (
            (("authorization", text),),
            (("x-trace-bin", choice.randbytes(40)),),
            (("grpc-accept-encoding", text.strip()), ("traceparent", text.strip())),
            tuple((f"x-{index}", "v") for index in range(30)),
        )
    )


def _num_fields(descriptor: Descriptor, seen: set[str]) -> int:
    if descriptor.full_name in seen:
        return 0
    seen.add(descriptor.full_name)
    inner = (field.message_type for field in descriptor.fields if field.message_type is not None)
    return len(descriptor.fields) + sum(_num_fields(one, seen) for one in inner)
