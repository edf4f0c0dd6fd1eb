"""A temporary PostgreSQL cluster and a pgbouncer in front of it. Each is stopped by its process id."""

import os
import shutil
import signal
import socket
import subprocess
import time

import psycopg

OWNER = "litellm"
READER = "reader"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ordinary_account():
    """Arguments for a process that must not run as root: PostgreSQL and pgbouncer refuse to."""
    if os.geteuid() != 0:
        return {}
    return {"user": "nobody", "group": "nogroup" if group_exists("nogroup") else "nobody", "extra_groups": []}


def group_exists(name):
    import grp

    return name in {group.gr_name for group in grp.getgrall()}


def give(folder):
    """Gives the folder to the account of the processes."""
    account = ordinary_account()
    if account:
        shutil.chown(folder, account["user"], account["group"])


def wait_for_port(port, process, what, log):
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"{what} ended: {log.read_text(errors='replace')[-2000:]}")
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{what} does not listen")


class Cluster:
    """A cluster of its own in a folder, which listens on a port of the loopback address."""

    def __init__(self, binaries, home):
        self.binaries, self.home = binaries, home
        self.port = free_port()
        self.process = None
        self.version = ""

    def start(self):
        self.home.mkdir(mode=0o755)
        give(self.home)
        data, log = self.home / "data", self.home / "postgres.log"
        common = {"cwd": self.home, "stdin": subprocess.DEVNULL, **ordinary_account()}
        initdb = [self.binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
        subprocess.run([*initdb, "--locale=C.UTF-8"], check=True, stdout=subprocess.DEVNULL, **common)
        settings = {
            "listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "off",
            "max_connections": 100, "shared_buffers": "128MB", "max_wal_size": "2GB", "autovacuum_naptime": "10min",
        }
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with log.open("wb") as output:
            command = [self.binaries / "postgres", "-D", data, *options]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, **common)
        wait_for_port(self.port, self.process, "PostgreSQL", log)
        self.version = self.wait_until_ready()
        self.execute(f"CREATE ROLE {OWNER} LOGIN", f"CREATE ROLE {READER} LOGIN")

    def wait_until_ready(self):
        for _ in range(100):
            try:
                with self.connect("postgres") as connection:
                    return connection.execute("SHOW server_version").fetchone()[0].split()[0]
            except psycopg.OperationalError:
                time.sleep(0.1)
        raise RuntimeError("PostgreSQL does not accept connections")

    def stop(self):
        if self.process is None:
            return
        # SIGINT: a fast shutdown.
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait()
        self.process = None

    def connect(self, database, user="postgres", **arguments):
        return psycopg.connect(
            host="127.0.0.1", port=self.port, dbname=database, user=user, autocommit=True, **arguments
        )

    def execute(self, *statements, database="postgres"):
        with self.connect(database) as connection:
            for statement in statements:
                connection.execute(statement)

    def create(self, name, template="template1"):
        """Creates a database as a copy of another one. Poolers may still hold connections to that one."""
        self.execute(
            f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{template}' "
            "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        self.execute(f'CREATE DATABASE "{name}" OWNER {OWNER} TEMPLATE "{template}"')

    def drop(self, name):
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


class Pgbouncer:
    """A pgbouncer in front of a cluster."""

    def __init__(self, cluster, mode, settings):
        self.cluster, self.mode, self.settings = cluster, mode, settings
        self.port = free_port()
        self.process = None

    @staticmethod
    def program():
        return shutil.which("pgbouncer") or next(filter(os.path.exists, ["/usr/sbin/pgbouncer"]), None)

    def start(self):
        folder = self.cluster.home / f"pgbouncer-{self.port}"
        folder.mkdir()
        lines = [
            "[databases]", f"* = host=127.0.0.1 port={self.cluster.port} user={OWNER}",
            "[pgbouncer]", "listen_addr = 127.0.0.1", f"listen_port = {self.port}", "unix_socket_dir =",
            "auth_type = any", f"pool_mode = {self.mode}", "max_client_conn = 200", "default_pool_size = 40",
            *(f"{name} = {value}" for name, value in self.settings.items()),
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        give(folder)
        log = folder / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [self.program(), folder / "pgbouncer.ini"], cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, **ordinary_account(),
            )
        wait_for_port(self.port, self.process, "pgbouncer", log)

    def stop(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
