"""vLLM's gRPC protocol, `vllm.grpc.engine.VllmEngine`. Its messages are those of the package smg-grpc-proto."""
