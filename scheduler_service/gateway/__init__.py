"""The gateway process: speaks every public protocol, tokenizes and detokenizes, and owns nothing else."""
