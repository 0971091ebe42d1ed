"""What can go wrong between a caller and the engine? One exception per kind; `errors.py` maps them to statuses."""


class ModelFileError(Exception):
    """The model's files cannot be read; the message says which file, why, and what to do."""


class StartError(Exception):
    """The gateway cannot start to serve; the message says why and what to do."""


class RequestError(Exception):
    """A request that ends without its result."""


class InvalidArgumentError(RequestError):
    """A field of the request has a value that can never be served.

    Args:
        field: path of the field in the request message, for example "sampling.top_p".
        problem: what is wrong with it, and what would be right.
    """

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}" if field else problem)
        self.field = field
        self.problem = problem


class NotServedError(RequestError):
    """A field of the API that this server does not serve yet."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} is not served yet: leave it out")
        self.field = field


class UnauthenticatedError(RequestError):
    """A call without a valid API key. The message holds nothing of what was sent."""


class NotAllowedError(RequestError):
    """A call that its caller may not make, however often it is tried."""


class QuotaExceededError(RequestError):
    """A tenant has used up what its key allows; the same request may succeed later.

    Args:
        tenant: whose quota it is.
        quota: name of the limit that is reached.
        limit: its value.
        retry_after_s: there is room then.
    """

    def __init__(self, tenant: str, quota: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"the key {tenant!r} has reached its {quota} of {limit}: try again in {retry_after_s:.1f} s")
        self.tenant = tenant
        self.quota = quota
        self.retry_after_s = retry_after_s


class UnknownMethodError(RequestError):
    """A gRPC method that this server does not have."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not a method of this server: ask its reflection for those that are")
        self.method = method


class MethodNotServedError(RequestError):
    """A method of a protocol that this server does not serve."""

    def __init__(self, method: str) -> None:
        super().__init__(f"{method} is not served: this server generates text, and has no other kind of work")


class UnknownServiceError(RequestError):
    """A service of whose health this server knows nothing."""

    def __init__(self, name: str) -> None:
        super().__init__(f"service {name!r} is not served here: ask the server's reflection for those that are")
        self.name = name


class UnknownModelError(RequestError):
    """A model that this server does not have."""

    def __init__(self, name: str, served: str) -> None:
        super().__init__(f"model {name!r} is not served here: this server has {served!r}")
        self.name = name


class TemplateRefusedError(RequestError):
    """A chat template sent by a caller, where the server runs only the model's own."""

    def __init__(self) -> None:
        super().__init__(
            "chat.template: this server does not run callers' templates; "
            "start the gateway with --trust-request-chat-template to allow them"
        )


class NoChatTemplateError(RequestError):
    """A chat prompt for a model without a chat template."""

    def __init__(self) -> None:
        super().__init__("the model has no chat template: send text or token ids")


class EngineUnavailableError(RequestError):
    """No engine can run the request now; the same request may succeed later."""


class GatewayDrainingError(RequestError):
    """This gateway takes no new calls and ends the open ones, because it is about to end; another one goes on."""

    def __init__(self) -> None:
        super().__init__("the gateway is shutting down: send the request to another one, or resume it there")


class EngineOverloadedError(RequestError):
    """The engine has more work than it takes; the same request may succeed later.

    Args:
        quota: the limit that is reached.
        retry_after_s: there may be room then.
    """

    def __init__(self, message: str, quota: str, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: {message}")
        self.quota = quota
        self.retry_after_s = retry_after_s


class DeadlinePassedError(RequestError):
    """The request's deadline passed before it was complete."""

    def __init__(self) -> None:
        super().__init__("the deadline passed before the completion ended")


class StreamReplacedError(RequestError):
    """The same request was resumed elsewhere, and its output goes there."""

    def __init__(self) -> None:
        super().__init__("another call resumed this request: its output goes there")


class StreamChangedError(RequestError):
    """A stream of which only the length is known was run again, and its beginning came out differently."""

    def __init__(self) -> None:
        super().__init__("the stream was run again, and its tokens are not those that were sent: start it anew")


class SequenceFailedError(RequestError):
    """The engine gave this request up; others are not affected."""
