"""The worker process: executes step batches on the device. It decides nothing.

Named dimensions used in every docstring below:

    num_tokens      tokens in one step batch, over all its sequences
    num_seqs        sequences in one step batch
    num_sampled     sequences of the batch that draw a token
    num_heads       query heads of this rank
    num_kv_heads    key/value heads of this rank
    head_dim        size of one head
    hidden          size of the residual stream
    num_blocks      KV blocks in the pool
    block_size      tokens in one KV block
    max_blocks      block table width: blocks of the longest sequence
    vocab           token ids the model knows
"""
