#!/usr/bin/env python3
"""Write short children's stories from a seeded grammar: words.txt and the plots in plots/*.txt.

    python3 tools/story/generate.py [--seed N] [--count N] [--split train|combinations|plots] [--plot NAME]

The language of the text files:

    name: a | b | c     a list; an entry may have fields, written `a ; b`
    {name} {name/1}     an entry drawn once a story and remembered; field 1 of it
    {name.x}            a second entry of the list, other than those drawn before
    <name>              an entry drawn anew each time
    [a|b|]              one of these, drawn anew
    {He} {Name}         a capital first letter asks for one in the text

A plot is a block that starts with `# name`, its own lists (which hide those of words.txt), then one line a
paragraph. Every story has a hero H, a friend F and an elder E, each with a name, a kind and pronouns.

Held out: the plots of HELD_OUT_PLOTS, and a tenth of all pairs of a plot and a home.
"""

import argparse
import functools
import hashlib
import pathlib
import random
import re

HERE = pathlib.Path(__file__).resolve().parent
HELD_OUT_PLOTS = ("echo", "scarf", "duckling", "broken_cup", "lantern")
HELD_OUT_PERCENT = 10
PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "him", "his", "himself")}
HEADER = re.compile(r"([a-z_]+): (.*)")
SLOT = re.compile(r"([A-Za-z_]+)(?:\.([a-z]))?(?:/(\d))?")


def split_top(text, separator):
    """Split at a separator that stands outside brackets."""
    parts, depth, start = [], 0, 0
    for i, letter in enumerate(text):
        depth += (letter == "[") - (letter == "]")
        if letter == separator and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return parts + [text[start:]]


def parse_list(text):
    return [[field.strip() for field in split_top(entry, ";")] for entry in split_top(text, "|")]


def read_blocks(path):
    """The lists before the first plot, and the plots as (name, lists, paragraphs)."""
    shared, plots, lists = {}, [], None
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# "):
            lists = {}
            plots.append((line[2:].strip(), lists, []))
        elif match := HEADER.fullmatch(line):
            (shared if lists is None else lists)[match[1]] = parse_list(match[2])
        elif line.strip():
            plots[-1][2].append(line.strip())
    return shared, plots


@functools.cache
def grammar():
    words = read_blocks(HERE / "words.txt")[0]
    plots = {}
    for path in sorted((HERE / "plots").glob("*.txt")):
        for name, lists, paragraphs in read_blocks(path)[1]:
            plots[name] = (lists, paragraphs)
    return words, plots


@functools.cache
def parse(text):
    """Pieces of a template: strings, ("slot", ...), ("new", name) and ("choice", alternatives)."""
    pieces, i = [], 0
    while i < len(text):
        letter = text[i]
        if letter == "{":
            end = text.index("}", i)
            pieces.append(("slot", SLOT.fullmatch(text[i + 1:end]).groups()))
        elif letter == "<":
            end = text.index(">", i)
            pieces.append(("new", text[i + 1:end]))
        elif letter == "[":
            depth, end = 1, i
            while depth:
                end += 1
                depth += (text[end] == "[") - (text[end] == "]")
            pieces.append(("choice", split_top(text[i + 1:end], "|")))
        else:
            end = min((p for p in (text.find(c, i) for c in "{<[") if p >= 0), default=len(text)) - 1
            pieces.append(text[i:end + 1])
        i = end + 1
    return pieces


def held_out(plot, home):
    """Whether this pair of a plot and a home is kept from training."""
    digest = hashlib.sha256(f"{plot}/{home}".encode()).digest()
    return int.from_bytes(digest[:4], "little") % 100 < HELD_OUT_PERCENT


class Story:
    """One story: a plot, its random choices and what is remembered of them."""

    def __init__(self, rng, plot):
        words, plots = grammar()
        lists, self.paragraphs = plots[plot]
        self.rng, self.lists, self.memory, self.plot = rng, {**words, **lists}, {}, plot
        animal = rng.random() < 0.4
        kinds = "animal" if animal else "child"
        hero, friend = rng.sample(self.lists[f"{kinds}_hero"], 2)
        elder = rng.choice(self.lists["elder"])
        self.home = rng.choice(self.lists[f"{kinds}_home"])[0]
        self.memory["home"] = [self.home]
        for prefix, who in (("", hero), ("f", friend), ("e", elder)):
            name, kind, pronoun = who if len(who) == 3 else (who[0], "", who[1])
            for key, value in zip(("he", "him", "his", "himself"), PRONOUNS[pronoun]):
                self.memory[prefix + key] = [value]
            self.memory[prefix + "kind"] = [kind]
            self.memory[{"": "H", "f": "F", "e": "E"}[prefix]] = [name]
        self.memory["friend"] = [f"{friend[0]} the {friend[1]}" if animal else friend[0]]

    def expand(self, text):
        out = []
        for piece in parse(text):
            if isinstance(piece, str):
                out.append(piece)
            elif piece[0] == "choice":
                out.append(self.expand(self.rng.choice(piece[1])))
            elif piece[0] == "new":
                out.append(self.expand(self.rng.choice(self.lists[piece[1]])[0]))
            else:
                out.append(self.slot(*piece[1]))
        return "".join(out)

    def slot(self, name, label, field):
        capital = name not in self.memory and name[0].isupper()
        if capital:
            name = name.lower()
        key = f"{name}.{label}" if label else name
        if key not in self.memory:
            used = [entry for k, entry in self.memory.items() if k.split(".")[0] == name]
            fresh = [entry for entry in self.lists[name] if entry not in used]
            entry = self.rng.choice(fresh)
            self.memory[key] = entry
            if any(c in part for part in entry for c in "{<["):
                self.memory[key] = [self.expand(part) for part in entry]
        value = self.memory[key][int(field or 0)]
        return value[0].upper() + value[1:] if capital else value

    def text(self):
        return "\n\n".join(tidy(self.expand(paragraph)) for paragraph in self.paragraphs)


def tidy(text):
    """One space between words, capitals at sentence starts, and "an" before a vowel."""
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    text = re.sub(r"(^|[.!?] )([a-z])", lambda m: m[1] + m[2].upper(), text)
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def make_story(seed, split="train", plot=None):
    """The story of a seed: from the training set, or held-out combinations, or held-out plots."""
    rng = random.Random(f"{split}/{seed}")
    names = [name for name in grammar()[1] if (name in HELD_OUT_PLOTS) == (split == "plots")]
    while True:
        story = Story(rng, plot or rng.choice(names))
        if split == "plots" or plot or held_out(story.plot, story.home) == (split == "combinations"):
            return story.text()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--split", choices=("train", "combinations", "plots"), default="train")
    parser.add_argument("--plot", choices=sorted(grammar()[1]))
    options = parser.parse_args()
    stories = (make_story(options.seed + i, options.split, options.plot) for i in range(options.count))
    print("\n\n----\n\n".join(stories))


if __name__ == "__main__":
    main()
