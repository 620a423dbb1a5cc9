#!/usr/bin/env python3
"""Logits of a story GGUF file of any block type: transformers' Gemma3ForCausalLM in f64 on its dequantised weights.

    python3 tools/story/reference.py logits MODEL.gguf TOKENIZER.json TEXT.txt TOKENS OUTPUT
    python3 tools/story/reference.py fixture MODEL.gguf TOKENIZER.json OUTPUT_DIRECTORY
    python3 tools/story/reference.py text TEXT.txt

`logits` writes OUTPUT.u32, the first TOKENS tokens of the text after <bos>, and OUTPUT.f32, their logits.
`fixture` writes story.json and story.f32: the ids of a few held-out prompts and the logits of their last four
positions. `text` writes stories of held-out combinations to measure perplexity on.
"""

import json
import pathlib
import sys

import export
import generate
import model

PROMPT_LENGTHS = (40, 150, 300)
LAST = 4
BOS = 0


def load(path):
    import gguf
    import numpy as np
    import torch
    import transformers

    decoder = transformers.Gemma3ForCausalLM(model.transformers_config()).double().eval()
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type).astype(np.float64) for t in gguf.GGUFReader(path).tensors}
    state = {}
    for name in decoder.state_dict():
        if name != "lm_head.weight":
            values = stored[export.gguf_name(name)]
            state[name] = torch.from_numpy(values - 1 if name.endswith("norm.weight") else values)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    decoder.load_state_dict(state)

    def logits(tokens):
        with torch.no_grad():
            return decoder(torch.tensor([tokens]), use_cache=False).logits[0].numpy().astype("<f4")

    return logits


def tokenizer_of(path):
    import tokenizers

    return tokenizers.Tokenizer.from_file(path)


def write_logits(path, tokenizer, text, count, output):
    import numpy as np

    ids = tokenizer_of(tokenizer).encode(pathlib.Path(text).read_text(encoding="utf-8")).ids
    tokens = [BOS, *ids][:int(count)]
    np.array(tokens, "<u4").tofile(output + ".u32")
    load(path)(tokens).tofile(output + ".f32")


def write_fixture(path, tokenizer, directory):
    import numpy as np

    logits, encoder = load(path), tokenizer_of(tokenizer)
    splits = ("combinations", "plots", "plots")
    prompts = [[BOS, *encoder.encode(generate.make_story(i, split)).ids][:length]
               for i, (split, length) in enumerate(zip(splits, PROMPT_LENGTHS))]
    rows = np.concatenate([logits(prompt)[-LAST:] for prompt in prompts])
    rows.tofile(pathlib.Path(directory) / "story.f32")
    summary = {"prompts": prompts, "last": LAST, "vocab": rows.shape[1], "logits_file": "story.f32"}
    (pathlib.Path(directory) / "story.json").write_text(json.dumps(summary) + "\n")


def write_text(path):
    stories = [generate.make_story(100 + i, "combinations") for i in range(12)]
    pathlib.Path(path).write_text("\n\n".join(stories) + "\n", encoding="utf-8")


if __name__ == "__main__":
    {"logits": write_logits, "fixture": write_fixture, "text": write_text}[sys.argv[1]](*sys.argv[2:])
