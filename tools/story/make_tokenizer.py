#!/usr/bin/env python3
"""Train the story tokenizer: byte-level BPE with GPT-2's word splitting, <bos> is token 0 and <eos> token 1.

    python3 tools/story/make_tokenizer.py OUTPUT.json [STORIES]
"""

import sys

import tokenizers

import generate
import model


def main():
    stories = int(sys.argv[2]) if len(sys.argv) > 2 else 20000
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=model.VOCABULARY, special_tokens=["<bos>", "<eos>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator((generate.make_story(seed) for seed in range(stories)), trainer)
    if tokenizer.get_vocab_size() != model.VOCABULARY:
        raise SystemExit(f"only {tokenizer.get_vocab_size()} tokens: give more stories")
    tokenizer.save(sys.argv[1])


if __name__ == "__main__":
    main()
