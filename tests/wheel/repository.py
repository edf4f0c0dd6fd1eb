"""The link to the repository, with which a release's wheels are made (LITESPEND_REPOSITORY_URL)."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import contents
from outcome import unequal, without

SCRIPT = Path("scripts/strip_wheel.py")
VARIABLE = "LITESPEND_REPOSITORY_URL"
METADATA = ".dist-info/METADATA"
# The name that a package index knows for the link.
LABEL = "Repository"
URL = "https://example.org/an-owner/a-repository"
# What is no address that a package index could link to.
REFUSED = ("http://example.org/an-owner/a-repository", "git@example.org:an-owner/a-repository.git",
           "example.org/an-owner/a-repository", "https://", "https://example.org/a repository",
           f"{URL}\nRequires-Dist: another-package", f"{URL}\n", " ")


def links(wheel):
    """What the wheel's metadata say of links."""
    return wheel.lines(METADATA, "Project-URL")


def wanted(url):
    """What the metadata of a wheel must say that was made with this address, or with none."""
    return [f"{LABEL}, {url}"] if url else []


def before_the_link(wheel, folder):
    """A copy of the wheel as the build leaves it: without a link. A few bytes stand for the program, so that nothing is built
    and nothing is stripped."""
    folder.mkdir()
    copy = folder / wheel.path.name
    with zipfile.ZipFile(copy, "w") as archive:
        for name, content in wheel.files.items():
            if name.endswith(".data/scripts/litespend"):
                content = b"#!/bin/sh\n"
            elif name.endswith(METADATA):
                headers, description = content.split(b"\n\n", 1)
                kept = [line for line in headers.splitlines() if not line.startswith(b"Project-URL: ")]
                content = b"\n".join(kept) + b"\n\n" + description
            archive.writestr(wheel.entries[name], content)
    return contents.Wheel(copy)


def finish(built, folder, url):
    """Runs the last step of `./dev wheel` with an address in the environment, or without the variable. Returns the exit code,
    what was said, and the finished wheel, if there is one."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    if url is not None:
        environment[VARIABLE] = url
    said = subprocess.run([sys.executable, SCRIPT, built.path, folder], env=environment, capture_output=True, text=True)
    finished = folder / built.path.name
    return said, contents.Wheel(finished) if finished.exists() else None


def others(wheel):
    """All of the wheel but RECORD and the links."""
    files = {name: content for name, content in wheel.files.items() if not name.endswith(".dist-info/RECORD")}
    name, metadata = wheel.file(METADATA)
    files[name] = b"\n".join(line for line in metadata.split(b"\n") if not line.startswith(b"Project-URL: "))
    return files


def check_all(wheel, folder, check):
    built = before_the_link(wheel, folder / "built")
    check("a wheel comes from the build without a link", unequal([], links(built)))
    for number, (what, url) in enumerate((("without the variable", None), ("with an empty one", ""), ("with an address", URL))):
        said, finished = finish(built, folder / f"finished-{number}", url)
        if not check(f"the wheel is finished {what}", said.stderr if finished is None else unequal(0, said.returncode)):
            continue
        check(f"{what}, the metadata have " + ("the link" if url else "no link"), unequal(wanted(url), links(finished)))
        check(f"{what}, RECORD lists every file with its hash", finished.wrong_record())
        check(f"{what}, all else is as it was", "" if others(finished) == others(built) else "other files have changed")
    for number, url in enumerate(REFUSED):
        said, finished = finish(built, folder / f"refused-{number}", url)
        wrong = "" if said.returncode else "exit code 0"
        wrong = wrong or without(said.stderr, f"{VARIABLE} is no address")
        check(f"{url!r} is refused", wrong or ("" if finished is None else "a wheel was written"))
