"""Whole models on a GPU, under the real scheduler: captured graphs and not, against transformers in float32."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

import tests.unit.gpu_worker.triton_cases as cases
from pagewire.ipc.requests import Sampling
from tests.fakes.bare_scheduler import GREEDY
from tests.gpu.families import small_families
from tests.unit.gpu_worker.launched_steps import run_prompts
from tests.unit.gpu_worker.model_harness import random_model
from tests.unit.gpu_worker.shaped_cases import MIXED, TOLERANCE, check_records, complete, predict

pytestmark = [pytest.mark.gpu, cases.needs_gpu]

VOCAB, MAX_MODEL_LEN = 32, 512
FAMILIES = small_families(VOCAB, MAX_MODEL_LEN, num_layers=2)


class Checkpoint:
    """A random model on disk and in transformers, and what it gives for some prompts."""

    def __init__(self, folder: Path, family: str) -> None:
        self.folder = folder
        # Weights that bfloat16 can hold, as those of published checkpoints are.
        self.model: PreTrainedModel = random_model(FAMILIES[family])
        for parameter in self.model.parameters():
            parameter.data = parameter.data.bfloat16().float()
        self.model.save_pretrained(folder)
        generator = random.Random(family)
        lengths = [1, 2, 15, 16, 17, 63, 64, 65, 200, 300, *(generator.randint(1, 120) for _ in range(30))]
        self.prompts = [[generator.randrange(VOCAB) for _ in range(length)] for length in lengths]
        self.greedy = [self._complete(prompt, 24) for prompt in self.prompts]

    @torch.inference_mode()
    def _complete(self, prompt: list[int], num_tokens: int) -> list[int]:
        model = self.model.to(cases.DEVICE)
        token_ids = list(prompt)
        for _ in range(num_tokens):
            inputs = torch.tensor([token_ids], device=cases.DEVICE)
            token_ids.append(int(model(inputs, use_cache=False).logits[0, -1].argmax()))
        return token_ids[len(prompt) :]

    @torch.inference_mode()
    def greedy_choices(self, num_sequences: int, length: int, num_each: int) -> tuple[list[list[int]], list[int]]:
        """Prefixes of random sequences, and the token that follows each."""
        model, generator = self.model.to(cases.DEVICE), random.Random("choices")
        contexts, choices = [], []
        for _ in range(num_sequences):
            sequence = [generator.randrange(VOCAB) for _ in range(length)]
            best = model(torch.tensor([sequence], device=cases.DEVICE), use_cache=False).logits[0].argmax(dim=1)
            for end in generator.sample(range(1, length + 1), num_each):
                contexts.append(sequence[:end])
                choices.append(int(best[end - 1]))
        return contexts, choices


@pytest.fixture(scope="module", params=list(FAMILIES))
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module", autouse=True)
def exact_products() -> Iterator[None]:
    assert torch.get_float32_matmul_precision() == "highest"
    yield
    torch.cuda.empty_cache()


def run(
    checkpoint: Checkpoint,
    prompts: list[list[int]],
    num_tokens: int,
    sampling: Sampling | None = None,
    dtype: str = "float32",
    enforce_eager: bool = False,
    num_blocks: int = 2000,
    chunk: int = 256,
    **scheduling: object,
) -> list[list[int]]:
    harness = run_prompts(
        checkpoint.folder,
        prompts,
        num_tokens,
        [sampling or GREEDY] * len(prompts),
        num_blocks,
        block_size=16,
        chunk=chunk,
        device="cuda",
        dtype=dtype,
        enforce_eager=enforce_eager,
        **scheduling,
    )
    return [harness.tokens[index] for index in range(len(prompts))]


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize("chunk", [32, 512])
def test_float32_gives_the_tokens_of_transformers(checkpoint: Checkpoint, enforce_eager: bool, chunk: int) -> None:
    assert run(checkpoint, checkpoint.prompts, 24, enforce_eager=enforce_eager, chunk=chunk) == checkpoint.greedy


def test_preempted_sequences_give_the_same_tokens(checkpoint: Checkpoint) -> None:
    assert run(checkpoint, checkpoint.prompts, 24, num_blocks=60) == checkpoint.greedy


def test_bfloat16_gives_nearly_all_tokens_of_transformers(checkpoint: Checkpoint) -> None:
    """Each token alone, so that one difference counts once: after the prefixes of random sequences, and of the greedy
    continuations, which are few and repeat themselves."""
    contexts, expected = checkpoint.greedy_choices(num_sequences=40, length=300, num_each=60)
    num_random = len(contexts)
    for prompt, greedy in zip(checkpoint.prompts, checkpoint.greedy, strict=True):
        for length, token in enumerate(greedy):
            contexts.append(prompt + greedy[:length])
            expected.append(token)
    drawn = [tokens[0] for tokens in run(checkpoint, contexts, 1, dtype="bfloat16", chunk=512)]
    same = [found == token for found, token in zip(drawn, expected, strict=True)]
    parts = {"random": same[:num_random], "continued": same[num_random:], "all": same}
    print("".join(f"\nbfloat16, {name}: {sum(part) / len(part):.2%} of {len(part)}" for name, part in parts.items()))
    assert sum(same) / len(same) >= 0.99


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (20, 0.8)])
def test_draws_depend_neither_on_the_batch_nor_on_graphs(checkpoint: Checkpoint, top_k: int, top_p: float) -> None:
    warm = Sampling(1.3, top_k, top_p, 0.0, 12345)
    together = run(checkpoint, checkpoint.prompts, 12, warm)
    assert together == run(checkpoint, checkpoint.prompts, 12, warm, enforce_eager=True, async_scheduling=False)
    assert together[3:4] == run(checkpoint, checkpoint.prompts[3:4], 12, warm)


@pytest.mark.parametrize("enforce_eager", [False, True])
def test_penalties_and_logprobs_are_those_of_transformers(checkpoint: Checkpoint, enforce_eager: bool) -> None:
    prompts = checkpoint.prompts[:16]
    samplings = [MIXED[index % len(MIXED)] for index in range(len(prompts))]
    harness = run_prompts(
        checkpoint.folder, prompts, 24, samplings, 2000, 16, 64, device="cuda", enforce_eager=enforce_eager
    )
    for stream, (prompt, sampling) in enumerate(zip(prompts, samplings, strict=True)):
        expected = complete(checkpoint.model, prompt, 24, sampling)
        assert harness.tokens[stream] == expected.token_ids
        check_records(harness.logprobs[stream], sampling.num_logprobs, expected)


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize("chunk", [32, 512])
def test_logprobs_of_prompts_are_those_of_transformers(checkpoint: Checkpoint, enforce_eager: bool, chunk: int) -> None:
    prompts = checkpoint.prompts[:12]
    counts = [None if index % 4 == 3 else index for index in range(len(prompts))]
    samplings = [Sampling(0.0, 0, 1.0, 0.0, 0, None, 1, None, count) for count in counts]
    harness = run_prompts(
        checkpoint.folder, prompts, 8, samplings, 2000, 16, chunk, device="cuda", enforce_eager=enforce_eager
    )
    for stream, (prompt, count) in enumerate(zip(prompts, counts, strict=True)):
        assert harness.tokens[stream] == checkpoint.greedy[stream][:8]
        expected = predict(checkpoint.model, prompt)
        check_records(harness.prompt_logprobs[stream], count, expected, tie=TOLERANCE)
