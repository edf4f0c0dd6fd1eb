"""Takes the debug lines and the symbols out of a wheel's program: python scripts/strip_wheel.py WHEEL FOLDER

The wheel is written to FOLDER, and its debug lines beside it. The stripped program names that file (.gnu_debuglink), so a
debugger finds it, and so does a backtrace if the file lies beside the program. Other programs than Linux' stay as they are.
Needs objcopy, which comes with a C compiler.

If LITESPEND_REPOSITORY_URL is set, the wheel names it as its repository, to which a package index then links."""

import base64
import csv
import hashlib
import io
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path


def split(program, debug_file):
    """The program without its debug lines, which go to a file."""
    with tempfile.TemporaryDirectory() as folder:
        whole, stripped = Path(folder, "whole"), Path(folder, "stripped")
        whole.write_bytes(program)
        objcopy("--only-keep-debug", "--compress-debug-sections=zlib", whole, debug_file)
        objcopy("--strip-all", f"--add-gnu-debuglink={debug_file}", whole, stripped)
        debug_file.chmod(0o644)
        return stripped.read_bytes()


def objcopy(*arguments):
    subprocess.run(["objcopy", *arguments], check=True)


def with_repository(metadata, url):
    """METADATA with the repository's address. The description begins after the first empty line."""
    if not re.fullmatch(r"https://[^\s/]\S*", url):
        raise SystemExit(f"LITESPEND_REPOSITORY_URL is no address: {url}")
    headers, description = metadata.split(b"\n\n", 1)
    return b"%s\nProject-URL: Repository, %s\n\n%s" % (headers, url.encode(), description)


def record_entry(name, content):
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return [name, f"sha256={digest}", str(len(content))]


def without_debug_lines(wheel, folder):
    """Writes the wheel to the folder. Returns the size of its program."""
    name, version, *_, platform = wheel.stem.split("-")
    debug_file = folder / f"{name}-{version}-{platform}.debug"
    with zipfile.ZipFile(wheel) as archive:
        files = [(entry, archive.read(entry)) for entry in archive.infolist() if not entry.is_dir()]
    [place] = [index for index, (entry, _) in enumerate(files) if entry.filename.endswith(f".data/scripts/{name}")]
    entry, program = files[place]
    if program.startswith(b"\x7fELF"):
        program = split(program, debug_file)
        files[place] = entry, program
    if url := os.environ.get("LITESPEND_REPOSITORY_URL"):
        [at] = [index for index, (entry, _) in enumerate(files) if entry.filename.endswith(".dist-info/METADATA")]
        entry, metadata = files[at]
        files[at] = entry, with_repository(metadata, url)
    [at] = [index for index, (entry, _) in enumerate(files) if entry.filename.endswith(".dist-info/RECORD")]
    record, said = files.pop(at)
    wrong = [row[0] for row in csv.reader(io.StringIO(said.decode())) if row[0] != record.filename]
    if sorted(wrong) != sorted(entry.filename for entry, _ in files):
        raise SystemExit(f"{wheel.name}: RECORD does not list the wheel's files")
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerows(record_entry(entry.filename, content) for entry, content in files)
    rows.writerow([record.filename, "", ""])
    files.append((record, text.getvalue().encode()))
    # Nobody installs half a wheel: the name appears when the file is complete.
    new = folder / f"{wheel.name}.new"
    with zipfile.ZipFile(new, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for entry, content in files:
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content, compresslevel=9)
    new.replace(folder / wheel.name)
    return len(program)


def main():
    wheel, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    size = without_debug_lines(wheel, folder)
    print(f"{folder / wheel.name}")
    print(f"  wheel    {(folder / wheel.name).stat().st_size / 1e6:.1f} MB")
    print(f"  program  {size / 1e6:.1f} MB")
    for file in folder.glob("-".join(wheel.stem.split("-")[:2]) + f"-{wheel.stem.split('-')[-1]}.debug"):
        print(f"  {file.name}  {file.stat().st_size / 1e6:.1f} MB")


main()
