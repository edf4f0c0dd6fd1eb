"""Builds the compact vocabularies in crates/pricing/data/vocabularies from their published forms.

Usage: build_vocabularies.py SOURCE_DIRECTORY

SOURCE_DIRECTORY holds `cl100k_base.tiktoken` and `o200k_base.tiktoken` (published by OpenAI with
tiktoken) and `anthropic_tokenizer.json` and `deepseek_tokenizer.json` (as shipped in LiteLLM).

Two forms are written, both deflated (zlib):
- ranks:  for each token in rank order: one byte length, then its bytes;
- merges: for each merge in order: left id and right id, 24 bits little-endian each; ids count the
  256 single bytes (in byte order) first, then the results of the merges in order.
  A JSON file beside it would only repeat the special tokens, so they stand in front: a 16-bit
  count, then for each a 16-bit length and its UTF-8 bytes.
"""

import base64
import json
import pathlib
import sys
import zlib


def ranks(source: pathlib.Path) -> bytes:
    out = bytearray()
    for expected, line in enumerate(source.read_bytes().splitlines()):
        token, rank = line.split()
        assert int(rank) == expected
        raw = base64.b64decode(token)
        assert 0 < len(raw) < 256
        out.append(len(raw))
        out += raw
    return bytes(out)


def byte_characters() -> dict[str, int]:
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table, shifted = {}, 0
    for byte in range(256):
        if byte in printable:
            table[chr(byte)] = byte
        else:
            table[chr(256 + shifted)] = byte
            shifted += 1
    return table


def merges(source: pathlib.Path) -> bytes:
    tokenizer = json.loads(source.read_text(encoding="utf-8"))
    out = bytearray()
    special = [token["content"] for token in tokenizer["added_tokens"]]
    out += len(special).to_bytes(2, "little")
    for token in special:
        raw = token.encode()
        out += len(raw).to_bytes(2, "little") + raw
    ids = dict(byte_characters())
    assert all(c in tokenizer["model"]["vocab"] for c in ids)
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        out += ids[left].to_bytes(3, "little") + ids[right].to_bytes(3, "little")
        assert left + right not in ids
        ids[left + right] = len(ids)
    return bytes(out)


def main() -> None:
    source = pathlib.Path(sys.argv[1])
    target = pathlib.Path(__file__).parent.parent / "crates" / "pricing" / "data" / "vocabularies"
    for name in ("cl100k_base", "o200k_base"):
        (target / f"{name}.ranks.zlib").write_bytes(zlib.compress(ranks(source / f"{name}.tiktoken"), 9))
    for name in ("anthropic", "deepseek"):
        (target / f"{name}.merges.zlib").write_bytes(
            zlib.compress(merges(source / f"{name}_tokenizer.json"), 9)
        )


main()
