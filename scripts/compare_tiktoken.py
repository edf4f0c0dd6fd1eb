"""Counts and times Python's tiktoken on the same stretches as `examples/count.rs`.

Usage: compare_tiktoken.py FILE ENCODING [RUNS]   (ENCODING: cl100k_base or o200k_base)
"""

import sys
import time

import tiktoken

path, name = sys.argv[1:3]
runs = int(sys.argv[3]) if len(sys.argv) > 3 else 5
text = open(path, encoding="utf-8", newline="").read()
encoding = tiktoken.get_encoding(name)
stretches = [text[start : start + 1024] for start in range(0, len(text), 1024)]
best = float("inf")
for _ in range(runs):
    started = time.perf_counter()
    count = sum(len(encoding.encode(stretch, disallowed_special=())) for stretch in stretches)
    best = min(best, time.perf_counter() - started)
print(f"{count} tokens, {len(text.encode())} bytes, best {best:.4f} s")
