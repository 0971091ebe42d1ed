"""What do callers send who behave? Hostile messages are made from these, so that they get past the first check.

Every method that is not named here starts from an empty message.
"""

import base64
from typing import Any


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


_PROMPT = {"ids": [11, 12, 13, 14, 15]}
_FULL: dict[str, Any] = {
    "model": "tiny",
    "text": "hello world",
    "sampling": {
        "temperature": 0.7,
        "topK": 5,
        "topP": 0.9,
        "minP": 0.01,
        "seed": "7",
        "n": 3,
        "presencePenalty": 0.5,
        "frequencyPenalty": -0.5,
        "repetitionPenalty": 1.1,
        "logitBias": {"7": 3.5},
        "allowedTokenIds": list(range(50)),
        "badWords": ["or", "he"],
        "bannedTokenIds": [3],
    },
    "stopping": {"maxTokens": 40, "minTokens": 2, "stop": ["ll", "zz"], "stopTokenIds": [9], "ignoreEos": True},
    "output": {"logprobs": 2, "promptLogprobs": 2, "echo": True, "skipSpecialTokens": False},
    "priority": 5,
    "cacheSalt": "salt",
    "requestId": "mine.1",
}
_RESUME = {"requestId": "mine.2", "seed": "5", "receivedTokenIds": [1, 2, 3]}
_TWO_CHOICES = {"requestId": "mine.3", "choices": [{"index": 1, "receivedTokenIds": [4, 5]}]}
_MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello", "name": "me"}]
_CHAT = {
    "messages": [
        *_MESSAGES,
        {"role": "assistant", "toolCalls": [{"function": {"name": "f", "arguments": {"a": [1]}}}]},
    ],
    "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"x": 1e300, "y": [None, True, {"z": ""}]}}}
    ],
    "templateArgs": {"thinking": True},
}

REQUESTS: dict[str, list[dict[str, Any]]] = {
    "pagewire.v1.InferenceService.Generate": [
        {"text": "hello", "stopping": {"maxTokens": 8}},
        {"tokenIds": _PROMPT, "sampling": {"temperature": 0}, "stopping": {"maxTokens": 64}},
        {"tokenIds": _PROMPT, "sampling": {"n": 4}, "output": {"kind": "OUTPUT_KIND_FINAL_ONLY"}},
        {"chat": _CHAT, "stopping": {"maxTokens": 100, "stop": ["e"], "includeStop": True}, "truncatePromptTokens": 64},
        {"tokenIds": _PROMPT, "resume": _RESUME, "stopping": {"maxTokens": 30}},
        {"tokenIds": _PROMPT, "resume": _TWO_CHOICES, "sampling": {"n": 2}, "stopping": {"maxTokens": 30}},
        _FULL,
    ],
    "pagewire.v1.InferenceService.Tokenize": [{"text": "hello world", "addSpecialTokens": True}, {"chat": _CHAT}],
    "pagewire.v1.InferenceService.Detokenize": [{"tokenIds": [1, 2, 3, 265], "skipSpecialTokens": False}],
    "grpc.health.v1.Health.Check": [{"service": "pagewire.v1.InferenceService"}],
    "grpc.health.v1.Health.Watch": [{"service": "pagewire.v1.InferenceService"}],
    "grpc.reflection.v1alpha.ServerReflection.ServerReflectionInfo": [
        {"listServices": ""},
        {"fileByFilename": "pagewire/v1/generate.proto"},
        {"fileContainingSymbol": "pagewire.v1.GenerateRequest"},
        {"fileContainingExtension": {"containingType": "google.protobuf.FieldOptions", "extensionNumber": 5}},
        {"allExtensionNumbersOfType": "google.protobuf.FieldOptions"},
    ],
    "grpc.channelz.v1.Channelz.GetServer": [{"serverId": "1"}],
    "grpc.channelz.v1.Channelz.GetSocket": [{"socketId": "3"}],
}

_TEXT_TENSOR = {
    "name": "text_input",
    "datatype": "BYTES",
    "shape": ["1"],
    "contents": {"bytesContents": [_base64("a")]},
}
_STREAM_TENSOR = {"name": "stream", "datatype": "BOOL", "shape": ["1"], "contents": {"boolContents": [True]}}
_PARAMETERS_TENSOR = {
    "name": "sampling_parameters",
    "datatype": "BYTES",
    "shape": ["1"],
    "contents": {
        "bytesContents": [_base64('{"max_tokens": "9", "stop": ["a"], "temperature": 0.5, "logit_bias": {"7": 1}}')]
    },
}
_INFERENCES: list[dict[str, Any]] = [
    {"modelName": "tiny", "inputs": [_TEXT_TENSOR], "parameters": {"max_tokens": {"int64Param": "8"}}},
    {"modelName": "tiny", "modelVersion": "1", "id": "1", "inputs": [_TEXT_TENSOR, _PARAMETERS_TENSOR]},
    {"inputs": [_TEXT_TENSOR, _STREAM_TENSOR, _PARAMETERS_TENSOR], "outputs": [{"name": "text_output"}]},
]
_VLLM_SAMPLING = {"temperature": 0.5, "topP": 0.9, "topK": 5, "maxTokens": 20, "n": 2, "stop": ["e"], "logprobs": 2}

REQUESTS |= {
    "inference.GRPCInferenceService.ModelInfer": _INFERENCES,
    "inference.GRPCInferenceService.ModelStreamInfer": _INFERENCES,
    "inference.GRPCInferenceService.ModelReady": [{"name": "tiny", "version": "1"}],
    "inference.GRPCInferenceService.ModelMetadata": [{"name": "tiny", "version": "1"}],
    "vllm.grpc.engine.VllmEngine.Generate": [
        {"requestId": "a", "text": "hello", "samplingParams": {"maxTokens": 8}},
        {"requestId": "b", "tokenized": {"inputIds": [11, 12]}, "samplingParams": _VLLM_SAMPLING, "stream": True},
        {"requestId": "c", "tokenized": {"inputIds": [11, 12]}, "samplingParams": _VLLM_SAMPLING},
    ],
    "vllm.grpc.engine.VllmEngine.Abort": [{"requestIds": ["a", "b"]}],
}

BODIES: dict[str, list[dict[str, Any]]] = {
    "/v1/completions": [
        {"prompt": "hello world", "max_tokens": 8},
        {"prompt": [11, 12, 13], "max_tokens": 40, "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": ["a", "b"], "n": 2, "logprobs": 2, "seed": 3, "stop": ["l"], "return_token_ids": True},
        {"prompt": "a", "logit_bias": {"7": 3}, "bad_words": ["or"], "top_k": 4, "min_p": 0.1, "stream": True},
    ],
    "/v1/chat/completions": [
        {"messages": _MESSAGES, "max_tokens": 8},
        {"messages": _MESSAGES, "max_completion_tokens": 30, "stream": True, "n": 2, "logprobs": True},
        {"messages": _MESSAGES, "top_logprobs": 3, "logprobs": True, "temperature": 0, "stop": "e", "user": "me"},
    ],
    "/v1/embeddings": [{"input": "hello", "model": "tiny"}],
}
