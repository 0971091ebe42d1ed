"""The gateway's tokenizer: loaded from tokenizer.json or built from a GGUF file's metadata."""
