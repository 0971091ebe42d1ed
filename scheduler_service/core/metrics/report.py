"""Which metrics does the scheduler tell, and under which names? vLLM's for what vLLM has, `pagewire:` for the rest."""

from collections.abc import Mapping
from dataclasses import dataclass

from pagewire.ipc.metrics import Buckets, Family, MetricKind, Sample, counter, gauge
from pagewire.ipc.requests import EngineState, RejectReason
from scheduler_service.core.metrics.engine_metrics import EngineMetrics
from scheduler_service.core.metrics.histogram import Histogram
from scheduler_service.core.metrics.times import Outcome
from scheduler_service.core.scheduler import Scheduler

_SUCCESSES = (Outcome.STOP, Outcome.LENGTH)


@dataclass(frozen=True, slots=True)
class EngineReport:
    """What there is to tell. `scheduler` is None before the workers were first ready."""

    state: EngineState
    scheduler: Scheduler | None
    refusals: Mapping[RejectReason, int]
    num_dropped_messages: int

    def families(self) -> list[Family]:
        """Every metric with its value now."""
        told = [_state(self.state), _refusals(self.refusals)]
        told.append(counter("pagewire:messages_dropped", "Messages that were none of ours.", self.num_dropped_messages))
        if self.scheduler is None:
            return [*told, *_load(0, 0, 0.0)]
        return [*told, *_of_scheduler(self.scheduler), *_of_metrics(self.scheduler.metrics)]


def _of_scheduler(scheduler: Scheduler) -> list[Family]:
    load, config, usage = scheduler.load, scheduler.config, scheduler.usage
    num_waiting, num_waiting_tokens = usage.backlog
    cache = {
        "block_size": str(config.block_size),
        "num_gpu_blocks": str(usage.num_blocks),
        "enable_prefix_caching": str(config.prefix_caching),
    }
    return [
        *_load(load.num_running, load.num_waiting, 1 - load.num_free_blocks / usage.num_blocks),
        Family("vllm:cache_config_info", MetricKind.GAUGE, "Sizes of the KV cache.", [Sample(1, cache)]),
        counter("vllm:prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", usage.num_prompt_queries),
        counter("vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache.", usage.num_prompt_hits),
        counter("vllm:num_preemptions", "Sequences that had to make room for others.", usage.num_preemptions),
        gauge("pagewire:backlog_requests", "Requests that wait for their first turn.", num_waiting),
        gauge("pagewire:backlog_tokens", "Tokens of those requests.", num_waiting_tokens),
        gauge("pagewire:steps_in_flight", "Steps that the workers have not answered.", usage.num_steps_in_flight),
        gauge("pagewire:orphans", "Sequences whose gateway is gone, kept for who resumes them.", usage.num_orphans),
        gauge("pagewire:suspects", "Sequences suspected of killing workers, which run alone.", usage.num_suspects),
    ]


def _of_metrics(metrics: EngineMetrics) -> list[Family]:
    last_step_s = metrics.last_step_s
    age_s = 0.0 if last_step_s is None else metrics.now() - last_step_s
    successes = [Sample(metrics.ends[outcome], {"finished_reason": outcome.value}) for outcome in _SUCCESSES]
    others = [Sample(metrics.ends[end], {"reason": end.value}) for end in Outcome if end not in _SUCCESSES]
    return [
        counter("vllm:prompt_tokens", "Tokens of prompts that were computed.", metrics.num_prompt_tokens),
        counter("vllm:generation_tokens", "Tokens generated.", metrics.num_output_tokens),
        Family("vllm:request_success", MetricKind.COUNTER, "Sequences that came to their end.", successes),
        Family(
            "pagewire:requests_unfinished", MetricKind.COUNTER, "Sequences that ended before, and for what.", others
        ),
        _histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.", metrics.time_to_first_token),
        _histogram("vllm:inter_token_latency_seconds", "Between two tokens.", metrics.inter_token_latency),
        _histogram(
            "vllm:request_time_per_output_token_seconds",
            "Mean time between a sequence's tokens.",
            metrics.time_per_output_token,
        ),
        _histogram("vllm:e2e_request_latency_seconds", "From arrival to the end.", metrics.request_latency),
        _histogram("vllm:request_queue_time_seconds", "From arrival to the first slot.", metrics.queue_time),
        _histogram("vllm:request_prefill_time_seconds", "From the slot to the first token.", metrics.prefill_time),
        _histogram("vllm:request_decode_time_seconds", "From the first to the last token.", metrics.decode_time),
        _histogram("vllm:request_inference_time_seconds", "From the slot to the last token.", metrics.inference_time),
        _histogram("vllm:request_prompt_tokens", "Tokens of a sequence's prompt.", metrics.prompt_lengths),
        _histogram("vllm:request_generation_tokens", "Tokens of a sequence's output.", metrics.output_lengths),
        _histogram("vllm:request_max_num_generation_tokens", "Most output tokens asked for.", metrics.max_tokens),
        _histogram("vllm:request_params_max_tokens", "The parameter max_tokens.", metrics.max_tokens),
        _histogram("vllm:iteration_tokens_total", "Tokens computed in one step.", metrics.step_tokens),
        _histogram("pagewire:step_seconds", "From a step's departure to its result.", metrics.step_time),
        gauge("pagewire:last_step_age_seconds", "Since the last step's result; 0 before the first.", age_s),
        counter("pagewire:worker_recoveries", "Times that workers came back with nothing.", metrics.num_resets),
        counter("pagewire:sequences_requeued", "Sequences that had to be computed again.", metrics.num_requeued),
        counter("pagewire:sequences_resumed", "Sequences that went on in another stream.", metrics.num_resumed),
    ]


def _load(num_running: int, num_waiting: int, kv_usage: float) -> list[Family]:
    return [
        gauge("vllm:num_requests_running", "Sequences that hold a slot.", num_running),
        gauge("vllm:num_requests_waiting", "Sequences that wait for a slot.", num_waiting),
        gauge("vllm:kv_cache_usage_perc", "Part of the KV blocks that is in use; 1 is all.", kv_usage),
    ]


def _state(now: EngineState) -> Family:
    samples = [Sample(float(state is now), {"state": state.name.lower()}) for state in EngineState]
    return Family("pagewire:engine_state", MetricKind.GAUGE, "1 for the state that the engine is in.", samples)


def _refusals(refusals: Mapping[RejectReason, int]) -> Family:
    samples = [Sample(refusals.get(reason, 0), {"reason": reason.name.lower()}) for reason in RejectReason]
    return Family("pagewire:requests_refused", MetricKind.COUNTER, "Requests that were not accepted.", samples)


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    buckets = Buckets(histogram.edges, list(histogram.counts), histogram.sum)
    return Family(name, MetricKind.HISTOGRAM, text, buckets=buckets)
