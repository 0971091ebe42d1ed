"""The scheduler process: the only owner of sequences, block tables, prefix cache, admission and batching."""
