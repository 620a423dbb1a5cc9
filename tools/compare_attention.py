#!/usr/bin/env python3
"""Time attention of Kiln and of PyTorch on the same GPU, in turn, at the sizes of `kiln bench ops`.

PyTorch's `scaled_dot_product_attention` runs with the cuDNN and the flash backend, on bf16 values between
-1 and 1 as Kiln's; each round of Kiln is followed by one of PyTorch. Printed are the medians over the
rounds in TFLOP/s, and Kiln's over the better backend's.

    python3 tools/compare_attention.py target/release/kiln [--rounds 3] [--case dim=128]

Needs PyTorch with CUDA. A backend that does not know a size prints a dash.
"""

import argparse
import json
import re
import statistics
import subprocess

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
LABEL = re.compile(r"bf16 (full|causal) tokens=(\d+) heads=(\d+)/(\d+) dim=(\d+)")
STEPS = 16


def kiln(program, case):
    """TFLOP/s by case."""
    command = [program, "bench", "ops", "--device", "cuda", "--op", "flash_attention", "--case", case, "--format", "json"]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return report["limits"], {row["case"]: row["gflop_per_s"] / 1e3 for row in report["ops"] if LABEL.match(row["case"])}


def peer(label, backend):
    """TFLOP/s of PyTorch, `None` where the backend does not know the size."""
    kind, *numbers = LABEL.match(label).groups()
    tokens, heads, kv_heads, dim = map(int, numbers)
    q, k, v = (torch.empty(1, count, tokens, dim, dtype=torch.bfloat16, device="cuda").uniform_(-1, 1) for count in (heads, kv_heads, kv_heads))
    causal = kind == "causal"

    def run():
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=heads != kv_heads)

    times = []
    with sdpa_kernel([backend]):
        try:
            run()
        except RuntimeError:
            return None
        # As long as Kiln runs, so that both find the same clocks.
        while len(times) < 6 or sum(times) * STEPS < 0.3 and len(times) < 101:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            for _ in range(STEPS):
                run()
            end.record()
            torch.cuda.synchronize()
            times.append(begin.elapsed_time(end) / 1e3 / STEPS)
    scores = tokens * (tokens + 1) // 2 if causal else tokens * tokens
    return 4 * heads * dim * scores / statistics.median(times[1:]) / 1e12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kiln", help="the kiln program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", default="bf16", help="only cases whose description contains this text")
    args = parser.parse_args()
    ours, theirs = {}, {}
    for _ in range(args.rounds):
        limits, rates = kiln(args.kiln, args.case)
        for label, rate in rates.items():
            ours.setdefault(label, []).append(rate)
            for name, backend in BACKENDS.items():
                theirs.setdefault((label, name), []).append(peer(label, backend))
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {limits}")
    print("| case | Kiln | " + " | ".join(BACKENDS) + " | ratio to the better |")
    print("|---|---|" + "---|" * len(BACKENDS) + "---|")
    for label, rates in ours.items():
        rate = statistics.median(rates)
        peers = {name: theirs[label, name] for name in BACKENDS}
        medians = {name: statistics.median(all_) if None not in all_ else None for name, all_ in peers.items()}
        best = max((median for median in medians.values() if median), default=None)
        cells = [f"{median:.0f}" if median else "-" for median in medians.values()]
        ratio = f"{rate / best:.2f}" if best else "-"
        spread = f" ({min(rates):.0f}, {max(rates):.0f})"
        print(f"| {label} | {rate:.0f}{spread} | " + " | ".join(cells) + f" | {ratio} |")


if __name__ == "__main__":
    main()
