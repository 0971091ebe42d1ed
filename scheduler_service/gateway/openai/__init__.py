"""OpenAI's HTTP API, with vLLM's additions: requests become GenerateRequests, their answers become JSON and events."""
