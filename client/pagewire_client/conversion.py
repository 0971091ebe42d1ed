"""How do the client's own types become protobuf messages, and back?"""

from collections.abc import Iterable
from typing import Any

from pagewire.v1 import generate_pb2, inference_pb2
from pagewire_client.params import RequestOptions, RequestOutputKind, SamplingParams, StructuredOutputs
from pagewire_client.prompts import Prompt, as_proto
from pagewire_client.types import (
    Engine,
    EngineState,
    FinishReason,
    Model,
    Process,
    ProcessState,
    Progress,
    ServerInfo,
    ServerLimits,
    ServerLoad,
    TokenLogprobs,
    TopLogprob,
)

_FINISH_REASONS = {
    generate_pb2.FINISH_REASON_STOP: FinishReason.STOP,
    generate_pb2.FINISH_REASON_LENGTH: FinishReason.LENGTH,
}
_OUTPUT_KINDS = {
    RequestOutputKind.DELTA: generate_pb2.OUTPUT_KIND_DELTA,
    RequestOutputKind.FINAL_ONLY: generate_pb2.OUTPUT_KIND_FINAL_ONLY,
}
_ENGINE_STATES = {
    inference_pb2.ENGINE_STATE_STARTING: EngineState.STARTING,
    inference_pb2.ENGINE_STATE_READY: EngineState.READY,
    inference_pb2.ENGINE_STATE_UNAVAILABLE: EngineState.UNAVAILABLE,
    inference_pb2.ENGINE_STATE_DRAINING: EngineState.DRAINING,
}
_PROCESS_STATES = {
    inference_pb2.PROCESS_STATE_STARTING: ProcessState.STARTING,
    inference_pb2.PROCESS_STATE_IDLE: ProcessState.IDLE,
    inference_pb2.PROCESS_STATE_BUSY: ProcessState.BUSY,
    inference_pb2.PROCESS_STATE_DRAINING: ProcessState.DRAINING,
    inference_pb2.PROCESS_STATE_HUNG: ProcessState.HUNG,
    inference_pb2.PROCESS_STATE_DEAD: ProcessState.DEAD,
}


def generate_request(
    prompt: Prompt, params: SamplingParams | None, options: RequestOptions
) -> generate_pb2.GenerateRequest:
    """Build the message for one prompt."""
    params = params or SamplingParams()
    request = generate_pb2.GenerateRequest(
        model=options.get("model", ""),
        sampling=_sampling(params),
        stopping=_stopping(params),
        output=_output(params),
        adapter=options.get("adapter", ""),
        priority=options.get("priority", 0),
        cache_salt=options.get("cache_salt", ""),
        request_id=options.get("request_id", ""),
        add_special_tokens=options.get("add_special_tokens"),
        truncate_prompt_tokens=params.truncate_prompt_tokens,
        **prompt_field(prompt),
    )
    if params.structured_outputs is not None:
        request.constraint.CopyFrom(_constraint(params.structured_outputs))
    if "resume" in options:
        resume = options["resume"]
        request.resume.request_id = resume.request_id
        request.resume.seed = resume.seed
        request.resume.received_token_ids.extend(resume.received_token_ids)
        request.resume.num_received_prompt_logprobs = resume.num_received_prompt_logprobs
        request.resume.num_received_echoes = resume.num_received_echoes
        for index, token_ids in resume.choices.items():
            request.resume.choices.add(index=index, received_token_ids=token_ids)
    return request


def prompt_field(prompt: Prompt) -> dict[str, Any]:
    """Name and value of the member of the `prompt` oneof."""
    proto = as_proto(prompt)
    if isinstance(proto, str):
        return {"text": proto}
    return {"token_ids" if isinstance(proto, generate_pb2.TokenIds) else "chat": proto}


def finish_reason(number: int) -> FinishReason:
    """Translate the enum; a value of a newer server is UNKNOWN."""
    return _FINISH_REASONS.get(number, FinishReason.UNKNOWN)  # type: ignore[call-overload, no-any-return]


def token_logprobs(entries: Iterable[generate_pb2.TokenLogprobs]) -> tuple[TokenLogprobs, ...]:
    """Translate the log probabilities of one delta."""
    return tuple(
        TokenLogprobs(e.token_id, e.logprob, e.rank, tuple(TopLogprob(t.token_id, t.logprob) for t in e.top))
        for e in entries
    )


def model(proto: inference_pb2.Model) -> Model:
    """Translate a served model."""
    return Model(proto.name, proto.architecture, proto.max_model_len, proto.vocab_size, proto.has_chat_template)


def server_info(proto: inference_pb2.GetServerInfoResponse) -> ServerInfo:
    """Translate the state of a service."""
    limits, progress = proto.limits, proto.progress
    return ServerInfo(
        version=proto.version,
        gateway_incarnation=proto.gateway_incarnation,
        scheduler_incarnation=proto.scheduler_incarnation,
        state=_ENGINE_STATES.get(proto.engine_state, EngineState.UNKNOWN),
        limits=ServerLimits(
            max_model_len=limits.max_model_len,
            max_num_seqs=limits.max_num_seqs,
            max_num_batched_tokens=limits.max_num_batched_tokens,
            block_size=limits.block_size,
            num_blocks=limits.num_blocks,
            max_message_bytes=limits.max_message_bytes,
        ),
        load=_load(proto.load),
        progress=Progress(progress.stage, progress.done, progress.total),
        detail=proto.detail,
        service_state=_PROCESS_STATES.get(proto.state, ProcessState.UNKNOWN),
        service_state_reason=proto.state_reason,
        processes=tuple(_process(process) for process in proto.processes),
        engines=tuple(_engine(engine) for engine in proto.engines),
    )


def _engine(proto: inference_pb2.Engine) -> Engine:
    return Engine(
        address=proto.address,
        scheduler_incarnation=proto.scheduler_incarnation,
        state=_ENGINE_STATES.get(proto.state, EngineState.UNKNOWN),
        detail=proto.detail,
        load=_load(proto.load),
        num_streams=proto.num_streams,
    )


def _load(proto: inference_pb2.ServerLoad) -> ServerLoad:
    return ServerLoad(proto.num_running, proto.num_waiting, proto.num_free_blocks)


def _process(proto: inference_pb2.Process) -> Process:
    return Process(
        name=proto.name,
        state=_PROCESS_STATES.get(proto.state, ProcessState.UNKNOWN),
        detail=proto.detail,
        pid=proto.pid,
        incarnation=proto.incarnation,
        num_restarts=proto.num_restarts,
        num_steps=proto.num_steps,
        last_step_age_s=proto.last_step_age_ms / 1000 if proto.HasField("last_step_age_ms") else None,
    )


def _sampling(params: SamplingParams) -> generate_pb2.SamplingParams:
    return generate_pb2.SamplingParams(
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        min_p=params.min_p,
        seed=params.seed,
        n=params.n,
        presence_penalty=params.presence_penalty,
        frequency_penalty=params.frequency_penalty,
        repetition_penalty=params.repetition_penalty,
        logit_bias=params.logit_bias,
        allowed_token_ids=params.allowed_token_ids,
        bad_words=params.bad_words,
        banned_token_ids=params.banned_token_ids,
    )


def _stopping(params: SamplingParams) -> generate_pb2.StopConditions:
    return generate_pb2.StopConditions(
        max_tokens=params.max_tokens,
        min_tokens=params.min_tokens,
        stop=[params.stop] if isinstance(params.stop, str) else params.stop,
        stop_token_ids=params.stop_token_ids,
        ignore_eos=params.ignore_eos,
        include_stop=params.include_stop_str_in_output,
    )


def _output(params: SamplingParams) -> generate_pb2.OutputOptions:
    return generate_pb2.OutputOptions(
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        skip_special_tokens=params.skip_special_tokens,
        token_ids_only=not params.detokenize,
        echo=params.echo,
        kind=_OUTPUT_KINDS[params.output_kind],
    )


def _constraint(outputs: StructuredOutputs) -> generate_pb2.Constraint:
    constraint = generate_pb2.Constraint()
    if outputs.choice is not None:
        constraint.choice.texts.extend(outputs.choice)
    elif outputs.json_object is not None:
        constraint.json_object = outputs.json_object
    elif outputs.json is not None:
        constraint.json_schema = outputs.json
    elif outputs.regex is not None:
        constraint.regex = outputs.regex
    elif outputs.grammar is not None:
        constraint.grammar = outputs.grammar
    elif outputs.structural_tag is not None:
        constraint.structural_tag = outputs.structural_tag
    return constraint
