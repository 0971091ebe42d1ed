"""How do token ids become vectors, and vectors logits, with the vocabulary split over the ranks?"""

import torch
import torch.nn.functional as F

from gpu_worker.layers.context import LayerContext
from gpu_worker.parallel import split_vocab


class VocabParallelEmbedding:
    """Each rank looks up its own token ids; the ranks' results are summed."""

    def __init__(self, context: LayerContext, table: torch.Tensor, first_id: int) -> None:
        """Take a table [this rank's token ids, hidden] whose first row is that of `first_id`."""
        self._table = table
        self._first_id = first_id
        self._parallel = context.parallel

    def __call__(self, input_ids: torch.Tensor) -> torch.Tensor:
        """[num_tokens] int64 -> [num_tokens, hidden] float32, a new tensor."""
        if self._parallel.world_size == 1:
            return F.embedding(input_ids, self._table).float()
        local = input_ids - self._first_id
        mine = (local >= 0) & (local < self._table.shape[0])
        rows = F.embedding(local.where(mine, 0), self._table).float()
        return self._parallel.all_reduce(rows * mine[:, None])


class VocabParallelHead:
    """Each rank computes the logits of its own token ids."""

    def __init__(self, context: LayerContext, weight: torch.Tensor) -> None:
        """Take over a weight [this rank's token ids, hidden] of the method's weight_dtype."""
        self._multiply = context.method.pack_head(weight)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        """[num_sampled, hidden] -> [num_sampled, this rank's token ids] float32."""
        return self._multiply(hidden)


def load_embedding_and_head(
    context: LayerContext, vocab_size: int, hidden_size: int, tied: bool
) -> tuple[VocabParallelEmbedding, VocabParallelHead]:
    """Load both ends of the model.

    Tied ones share their memory where the head multiplies by the weight as it is; where it packs it, the embedding
    keeps a copy whose rows can be read.
    """
    parallel, method = context.parallel, context.method
    ids = split_vocab(vocab_size, parallel.rank, parallel.world_size)

    def load(name: str, dtype: torch.dtype) -> torch.Tensor:
        return context.copy(context.source.read(f"{name}.weight", (vocab_size, hidden_size), rows=ids), dtype)

    if not tied:
        table = load("model.embed_tokens", method.table_dtype)
        head = VocabParallelHead(context, load("lm_head", method.weight_dtype))
        return VocabParallelEmbedding(context, table, ids.start), head
    weight = load("model.embed_tokens", method.weight_dtype)
    head = VocabParallelHead(context, weight)
    return VocabParallelEmbedding(context, weight.to(method.table_dtype), ids.start), head
