"""Writes smollm2_greedy.json: what float32 transformers generates greedily for the demo model.

    python tests/golden/make_smollm2.py PATH_OF_GGUF

Prompts are token ids, so that no tokenizer stands between them and the model: slices of this repository's LICENSE from
5 to 1,500 tokens long, and short questions. `margin` is the smallest gap between the two best logits on the way; where
it comes near float32's rounding error two right implementations may differ.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_NEW_TOKENS = 64
LENGTHS = (5, 9, 15, 16, 17, 31, 33, 47, 64, 65, 100, 128, 200, 255, 256, 300, 511, 700, 1000, 1500)
QUESTIONS = (
    "What is the capital of France?",
    "Write a function that reverses a list.",
    "Why is the sky blue? Explain it to a child.",
    "List five colours and a fruit of each colour.",
)


def main() -> None:
    """Generate and write."""
    gguf = Path(sys.argv[1])
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = load_model(gguf)
    licence = tokenizer((Path(__file__).parents[2] / "LICENSE").read_text())["input_ids"]
    starts = [37 * i % (len(licence) - length) for i, length in enumerate(LENGTHS)]
    prompts = [licence[start : start + length] for start, length in zip(starts, LENGTHS, strict=True)]
    for question in QUESTIONS:
        chat = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
        prompts.append(tokenizer(chat)["input_ids"])
    cases = []
    for prompt in prompts:
        output_ids, margin = generate(model, prompt)
        cases.append({"prompt_ids": prompt, "output_ids": output_ids, "margin": margin})
        print(len(prompt), f"{margin:.2e}", tokenizer.decode(output_ids)[:60].replace("\n", " "), flush=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "smollm2_greedy.json").write_text(f"[\n{lines}\n]\n")


def load_model(gguf: Path) -> torch.nn.Module:
    """The model in float32, read by transformers alone."""
    return AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()


@torch.inference_mode()
def generate(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], float]:
    """Greedy tokens, EOS ignored, and the smallest gap between the best two logits."""
    input_ids, cache, margin = torch.tensor([prompt]), None, float("inf")
    output_ids = []
    for _ in range(NUM_NEW_TOKENS):
        result = model(input_ids=input_ids, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        best = result.logits[0, -1].topk(2)
        margin = min(margin, float(best.values[0] - best.values[1]))
        output_ids.append(int(best.indices[0]))
        input_ids = best.indices[:1][None]
    return output_ids, margin


if __name__ == "__main__":
    main()
