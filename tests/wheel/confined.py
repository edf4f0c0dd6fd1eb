"""A folder, an account and an environment in which there are neither compilers nor another PostgreSQL."""

import glob
import os
import shutil
import subprocess
import sys

# The same places as in crates/private_postgres/src/binaries.rs, where litespend looks for PostgreSQL by an absolute path.
PLACES = ("/usr/lib/postgresql*", "/usr/pgsql-*", "/usr/libexec/postgresql*", "/opt/homebrew/opt/postgresql*",
          "/usr/local/opt/postgresql*", "/home/linuxbrew/.linuxbrew/opt/postgresql*", "/Applications/Postgres.app")
# What PATH has besides the environment's programs. initdb asks `locale` for the locales.
TOOLS = ("sh", "locale", "uname")
FORBIDDEN = ("cargo", "rustc", "cc", "gcc", "clang", "ld", "postgres", "initdb", "pg_config", "psql")
# Settings for reaching a package index stay.
KEPT = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_DEFAULT_TIMEOUT", "SSL_CERT_FILE", "SSL_CERT_DIR",
        "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy")
# The account that Linux calls "nobody".
ORDINARY = 65534

# Covers folders with empty ones, and becomes the command. The covers are those of this process only.
COVER = """mount=$1 places=$2; shift 2
for place in $places; do "$mount" -t tmpfs -o mode=755,size=4k none "$place" || exit 125; done
exec "$@"
"""


def installed_places():
    return [place for pattern in PLACES for place in glob.glob(pattern) if os.path.isdir(place)]


def can_hide():
    """Whether this process may cover a folder for a process of its own."""
    if os.geteuid() != 0 or not shutil.which("unshare"):
        return False
    command = ["unshare", "--mount", "--propagation", "private", "mount", "-t", "tmpfs", "none", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


class Confined:
    """An account with a folder of its own. `user` is None for the account of this process."""

    def __init__(self, folder, user=None):
        self.folder, self.user = folder, user
        self.hides = can_hide()
        for name in ("home", "tmp", "tools"):
            (folder / name).mkdir(parents=True)
        for tool in TOOLS:
            (folder / "tools" / tool).symlink_to(shutil.which(tool))
        for path in (folder, folder / "home", folder / "tmp"):
            self.give(path)

    def give(self, path):
        if self.user is not None:
            os.chown(path, self.user, self.user)

    @property
    def environment(self):
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        path = f"{self.folder / 'venv/bin'}:{self.folder / 'tools'}"
        return {**kept, "PATH": path, "HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "tmp"),
                "LANG": "C.UTF-8", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_CACHE_DIR": "1"}

    def command(self, arguments, hidden=True):
        """The whole command. With `hidden`, no other PostgreSQL is where litespend looks for one."""
        whole = [str(argument) for argument in arguments]
        if self.user is not None:
            whole = [shutil.which("setpriv"), f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups", *whole]
        if hidden and self.hides:
            whole = [shutil.which("unshare"), "--mount", "--propagation", "private", "/bin/sh", "-c", COVER, "sh",
                     shutil.which("mount"), " ".join(installed_places()), *whole]
        return whole

    def popen(self, arguments, hidden=True, environment=None, **others):
        return subprocess.Popen(
            self.command(arguments, hidden), env={**self.environment, **(environment or {})},
            cwd=self.folder / "home", stdin=subprocess.DEVNULL, **others)

    def run(self, *arguments, hidden=True, environment=None, limit=600):
        """Runs a command to its end."""
        with self.popen(arguments, hidden, environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                output, errors = process.communicate(timeout=limit)
            except BaseException:
                process.kill()
                raise
        return Ended(process.returncode, output, errors)

    def forbidden(self):
        """What PATH must not have, and has."""
        return [name for name in FORBIDDEN if shutil.which(name, path=self.environment["PATH"])]

    def visible(self):
        """The other PostgreSQLs that a program sees here."""
        if not installed_places():
            return []
        patterns = " ".join(f"{place}/*" for place in installed_places())
        found = self.run("/bin/sh", "-c", f"for file in {patterns}; do [ ! -e $file ] || echo $file; done")
        return found.output.split() if found.code == 0 else [found.errors]

    def make_venv(self):
        """An empty virtual environment of a Python that the account may run."""
        for python in (os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
            made = self.run(python, "-m", "venv", "--clear", self.folder / "venv") if os.path.exists(python) else None
            if made and made.code == 0:
                return made
        raise RuntimeError(f"no Python makes a virtual environment: {made.errors or made.output}")


class Ended:
    """A command that has ended."""

    def __init__(self, code, output, errors):
        self.code, self.output, self.errors = code, output, errors
