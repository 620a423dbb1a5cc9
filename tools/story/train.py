#!/usr/bin/env python3
"""Train the story model on stories that are generated while it trains; no story comes twice.

    python3 tools/story/train.py TOKENIZER.json OUTPUT_DIRECTORY [--seconds 300 | --steps N] [--batch 128]

Written: model-N-of-3.safetensors (f32, transformers' names) and log.json with the losses in nats a token: of
fresh training stories, of held-out combinations of plot and home, and of held-out plots. The weights kept are those
of the lowest loss on held-out combinations; five evaluations without a better one end the training.
"""

import argparse
import json
import math
import multiprocessing
import os
import pathlib
import time

import numpy as np
import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F

import generate
import model as story_model

BOS, EOS = 0, 1
ROW = story_model.CONTEXT + 1
WARMUP, PEAK_RATE, LAST_RATE = 200, 2e-3, 0.02
SPLITS = ("train", "combinations", "plots")
EVALUATION_SEED = 1 << 40
PATIENCE = 5


def rows(tokenizer, split, seed, count):
    """`count` rows of tokens: a whole story at the start of each, then as much as fits of others."""
    table = np.empty((count, ROW), dtype=np.int16)
    for row in table:
        tokens = []
        while len(tokens) < ROW:
            tokens += [BOS, *tokenizer.encode(generate.make_story(seed, split)).ids, EOS]
            seed += 1
        row[:] = tokens[:ROW]
    return table


def produce(tokenizer_path, worker, batch, queue):
    tokenizer = tokenizers.Tokenizer.from_file(tokenizer_path)
    seed = (worker + 1) << 32
    while True:
        queue.put(rows(tokenizer, "train", seed, batch))
        seed += 8 * batch


def loss_of(model, table, noise=0.0):
    """Cross-entropy of the next tokens. In training a part of the context is replaced by any tokens."""
    tokens = table.long()
    context = tokens[:, :-1]
    if noise:
        wrong = torch.rand(context.shape, device=context.device) < noise * torch.rand_like(context[:, :1], dtype=torch.float32)
        context = torch.where(wrong, torch.randint_like(context, story_model.VOCABULARY), context)
    logits = model(context)
    return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())


def save(model, directory):
    state = {name: value.float().cpu().contiguous() for name, value in model.state_dict().items()}
    shards, size = [{}, {}, {}], sum(value.numel() for value in state.values())
    done = 0
    for name, value in state.items():
        shards[min(2, 3 * done // size)][name] = value
        done += value.numel()
    for i, shard in enumerate(shards):
        safetensors.torch.save_file(shard, directory / f"model-{i + 1}-of-3.safetensors")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("output", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--noise", type=float, default=0.3, help="largest part of the context that is replaced")
    parser.add_argument("--evaluate", type=int, default=100)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")

    context = multiprocessing.get_context("spawn")
    workers = max(1, (os.cpu_count() or 2) - 2)
    queues = [context.Queue(maxsize=6) for _ in range(workers)]
    for worker, queue in enumerate(queues):
        arguments = (options.tokenizer, worker, options.batch, queue)
        context.Process(target=produce, args=arguments, daemon=True).start()
    tokenizer = tokenizers.Tokenizer.from_file(options.tokenizer)
    held = {split: torch.from_numpy(rows(tokenizer, split, EVALUATION_SEED, options.batch)).to(device)
            for split in SPLITS}

    model = story_model.StoryModel(options.dropout).to(device)
    print(sum(parameter.numel() for parameter in model.parameters()), "parameters on", device, flush=True)
    run = torch.compile(loss_of) if device == "cuda" else loss_of
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=PEAK_RATE, betas=(0.9, 0.95), fused=device == "cuda")

    def evaluate(step):
        """Log the losses; keep the weights if held-out combinations are the best so far."""
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            model.eval()
            losses = {split: round(run(model, table).item(), 4) for split, table in held.items()}
            model.train()
        log.append({"step": step, "tokens": step * options.batch * story_model.CONTEXT,
                    "seconds": round(time.time() - start, 1), **losses})
        print(log[-1], flush=True)
        (options.output / "log.json").write_text("[\n" + ",\n".join(map(json.dumps, log)) + "\n]\n")
        best = min(entry["combinations"] for entry in log)
        if log[-1]["combinations"] == best:
            save(model, options.output)

    log, step, total, start = [], 0, options.steps, time.time()
    evaluate(0)
    while total is None or step < total:
        if total is None and step == 150:
            torch.cuda.synchronize()
            speed = 100 / (time.time() - fifty)
            total = 150 + int(speed * (options.seconds - (time.time() - start)))
            print(f"{speed:.1f} steps/s, {total} steps", flush=True)
        if step == 50:
            if device == "cuda":
                torch.cuda.synchronize()
            fifty = time.time()
        warm = min(1, (step + 1) / WARMUP)
        progress = step / total if total else 0
        rate = PEAK_RATE * warm * (LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        table = torch.from_numpy(queues[step % workers].get()).to(device, non_blocking=True)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = run(model, table, options.noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % options.evaluate == 0 or step == total:
            evaluate(step)
            recent = [entry["combinations"] for entry in log]
            if min(recent) < min(recent[-PATIENCE:]):
                break


if __name__ == "__main__":
    main()
