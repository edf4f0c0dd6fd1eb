"""Merges the price table of a LiteLLM release into the built-in one.

NEW.json is `model_prices_and_context_window_backup.json` of the release. Of its fields, those are kept that affect a cost or a
token count. Models that the release no longer has stay, marked `retired` and with the last version that had them. The version of
the table is in a file beside it, so the next merge knows what to write there.
"""

import argparse
import json
import pathlib

TABLE = pathlib.Path(__file__).parent.parent / "crates/pricing/data/model_prices.json"

# Beside these, every field is kept whose name says that it is a price.
KEPT = {
    "alias_of",
    "aliases",
    "deprecation_date",
    "litellm_provider",
    "max_input_tokens",
    "max_output_tokens",
    "max_tokens",
    "mode",
    "output_vector_size",
    "provider_specific_entry",
    "search_free_requests",
    "uses_embed_content",
    "web_search_billing_unit",
}
KEPT_PARTS = ("cost", "pricing", "multiplier", "token_count_")

# The marks of a model that the release no longer has.
MARKS = {"last_version", "retired"}

# An example for readers, not a model. The other annotation, `fallback_generalizations`, has no prices and becomes empty.
EXAMPLE = "sample_spec"


def is_kept(field):
    return field in KEPT or any(part in field for part in KEPT_PARTS)


def release(path):
    """The models of a release, with the fields that are kept."""
    models = json.loads(path.read_text())
    return {
        name: {field: value for field, value in entry.items() if is_kept(field)}
        for name, entry in models.items()
        if name != EXAMPLE
    }


def retired(entry, version):
    """A model that the release has dropped. One that was dropped earlier stays as it is."""
    return entry if entry.get("retired") else {**entry, "retired": True, "last_version": version}


def merge(old, new, version):
    kept = {name: retired(entry, version) for name, entry in old.items() if name not in new}
    return {**kept, **new}


def place(field):
    name, _ = field
    return name in MARKS, name


def text(models):
    """One line a model, sorted by name; so are its fields, with the marks of a retired model at the end."""
    entries = ((name, dict(sorted(models[name].items(), key=place))) for name in sorted(models))
    lines = [f"{json.dumps(name)}: {json.dumps(entry, separators=(',', ':'))}" for name, entry in entries]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def was_listed(old, name):
    return name in old and not old[name].get("retired")


def summary(old, new):
    """The names of the models that were added, changed, dropped, or came back."""
    return {
        "added": sorted(name for name in new if name not in old),
        "changed": sorted(name for name in new if was_listed(old, name) and new[name] != old[name]),
        "dropped": sorted(name for name in old if was_listed(old, name) and name not in new),
        "came back": sorted(name for name in new if name in old and not was_listed(old, name)),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("new", type=pathlib.Path, metavar="NEW.json", help="the price table of the release")
    parser.add_argument("--version", required=True, help="of the release")
    parser.add_argument("--into", type=pathlib.Path, default=TABLE, help="the table to change")
    parser.add_argument("--names", action="store_true", help="print the names of the models, not only their number")
    arguments = parser.parse_args()
    version_file = arguments.into.with_suffix(".version")
    old, new = json.loads(arguments.into.read_text()), release(arguments.new)
    merged = merge(old, new, version_file.read_text().strip())
    arguments.into.write_text(text(merged))
    version_file.write_text(arguments.version + "\n")
    for what, names in summary(old, new).items():
        print(f"{len(names):6} {what}")
        if arguments.names:
            print(*(f"         {name}" for name in names), sep="\n")
    print(f"{len(merged):6} models, {sum('retired' in entry for entry in merged.values())} of them retired")


if __name__ == "__main__":
    main()
