"""The Open Inference Protocol, version 2: `inference.GRPCInferenceService`, as Triton's clients call it."""
