"""How does the whole stack compare with `transformers` generate in float32 on this machine's CPU?

Both run the same shapes in turn: random prompts, greedy, EOS ignored. Decode tokens/s count from the first token of
all streams to the end; the stack's include gRPC, gateway, scheduler and ZeroMQ.

    python -m benchmarks.compare_transformers [--model GGUF] [--batches 1 8 32] [--rounds 2] [--dtypes float32 float16]
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

DEMO = Path.home() / ".cache" / "pagewire" / "SmolLM2-135M-Instruct.Q4_1.gguf"
INPUT_LEN, OUTPUT_LEN, VOCAB = 128, 128, 49152


class Transformers:
    """The peer, in this process."""

    def __init__(self, path: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    @torch.inference_mode()
    def run(self, batch: int, output_len: int) -> float:
        """Seconds of one generate call."""
        prompts = torch.randint(0, VOCAB, (batch, INPUT_LEN))
        start = time.perf_counter()
        self.model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=output_len,
            min_new_tokens=output_len,
            do_sample=False,
            pad_token_id=0,
        )
        return time.perf_counter() - start

    def measure(self, batch: int) -> dict[str, float]:
        """Decode tokens/s and time to first token, in milliseconds."""
        first_s = self.run(batch, 1)
        whole_s = self.run(batch, OUTPUT_LEN)
        return {"decode": batch * (OUTPUT_LEN - 1) / (whole_s - first_s), "ttft_ms": first_s * 1000}


def measure_stack(model: Path, batch: int, dtype: str) -> dict[str, float]:
    """The same of `pagewire bench serve`."""
    command = [sys.executable, "-m", "pagewire_client", "bench", "serve", "--local", str(model), "-c", str(batch)]
    command += ["--input-len", str(INPUT_LEN), "--output-len", str(OUTPUT_LEN), "--dtype", dtype, "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"pagewire bench failed: {result.stderr.strip().splitlines()[-1]}")
    report = json.loads(result.stdout)
    return {"decode": report["decode_tokens_per_s"], "ttft_ms": report["time_to_first_token"]["p50_ms"]}


def main() -> None:
    """Measure in turn and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16"])
    arguments = parser.parse_args()
    peer = Transformers(arguments.model)
    peer.run(1, 4)
    print(f"{'batch':>5} {'engine':<22} {'decode tok/s':>12} {'ratio':>7} {'TTFT ms':>9}")
    for batch in arguments.batches:
        rows: dict[str, list[dict[str, float]]] = {}
        for _ in range(arguments.rounds):
            rows.setdefault("transformers float32", []).append(peer.measure(batch))
            for dtype in arguments.dtypes:
                rows.setdefault(f"pagewire {dtype}", []).append(measure_stack(arguments.model, batch, dtype))
        baseline = statistics.median(row["decode"] for row in rows["transformers float32"])
        for engine, measured in rows.items():
            decode = statistics.median(row["decode"] for row in measured)
            ttft_ms = statistics.median(row["ttft_ms"] for row in measured)
            print(f"{batch:>5} {engine:<22} {decode:>12.1f} {decode / baseline:>6.2f}x {ttft_ms:>9.1f}", flush=True)


if __name__ == "__main__":
    main()
