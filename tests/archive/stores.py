"""Other people's object stores, started as servers of their own: moto (S3), azurite (Azure), gcp-storage-emulator."""

import base64
import datetime
import hashlib
import hmac
import http.client
import json
import subprocess
import sys
from pathlib import Path

from postgresql import free_port, wait_for_port

# Azurite's account, which its documentation publishes.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
BUCKET = "books"


class Store:
    """An emulator in a process of its own. Used with `with`."""

    name = scheme = ""

    def __init__(self, home, azurite):
        self.files, self.azurite = home / self.scheme, azurite
        self.port = free_port()
        self.process = None

    @property
    def url(self):
        return self.url_of(BUCKET)

    def url_of(self, bucket):
        return f"{self.scheme}://{bucket}/some/place"

    def __enter__(self):
        self.files.mkdir()
        command = self.command()
        log = self.files / "log"
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command, cwd=self.files, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )
        try:
            wait_for_port(self.port, self.process, self.name, log)
            self.make_bucket()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def request(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def lacks(self):
        """What the emulator does not have of its service's interface that object_store uses, in words, or nothing."""
        return ""

    def for_clickhouse(self, statements):
        """The statements for ClickHouse with this server in place of the service's, or nothing."""
        return None

    def expect_made(self, status, body):
        if status not in (200, 201):
            raise RuntimeError(f"{self.name} makes no bucket: {status} {body[:300]}")


class Moto(Store):
    name, scheme = "moto", "s3"

    def command(self):
        return [Path(sys.executable).parent / "moto_server", "-H", "127.0.0.1", "-p", str(self.port)]

    def make_bucket(self):
        self.expect_made(*self.request("PUT", f"/{BUCKET}"))

    def settings(self):
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "made-up", "AWS_SECRET_ACCESS_KEY": "made-up-too",
        }

    def for_clickhouse(self, statements):
        # The statements name this server already: they follow its settings.
        return statements.replace("'Parquet'", "'made-up', 'made-up-too', 'Parquet'")


class Azurite(Store):
    name, scheme = "azurite", "az"

    def command(self):
        return ["node", self.azurite, "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", self.files,
                "--disableTelemetry"]

    def make_bucket(self):
        path = f"/{AZURITE_ACCOUNT}/{BUCKET}"
        headers = {
            "x-ms-date": datetime.datetime.now(datetime.timezone.utc).strftime("%a, %d %b %Y %H:%M:%S GMT"),
            "x-ms-version": "2023-11-03",
        }
        listed = "".join(f"{name}:{value}\n" for name, value in sorted(headers.items()))
        signed = "PUT" + "\n" * 12 + f"{listed}/{AZURITE_ACCOUNT}{path}\nrestype:container"
        digest = hmac.new(base64.b64decode(AZURITE_KEY), signed.encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {AZURITE_ACCOUNT}:{base64.b64encode(digest).decode()}"
        self.expect_made(*self.request("PUT", f"{path}?restype=container", headers=headers | {"Content-Length": "0"}))

    def settings(self):
        return {"AZURE_STORAGE_USE_EMULATOR": "true", "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self.port}"}

    def for_clickhouse(self, statements):
        connection = (
            f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
            f"BlobEndpoint=http://127.0.0.1:{self.port}/{AZURITE_ACCOUNT};"
        )
        # litespend names a collection, which its user makes.
        return f"CREATE NAMED COLLECTION azure_connection AS connection_string = '{connection}';\n{statements}"


class GoogleCloud(Store):
    name, scheme = "gcp-storage-emulator", "gs"

    def command(self):
        program = Path(sys.executable).parent / "gcp-storage-emulator"
        return [program, "start", "--host", "127.0.0.1", "--port", str(self.port), "--in-memory"]

    def make_bucket(self):
        body = json.dumps({"name": BUCKET})
        self.expect_made(*self.request(
            "POST", "/storage/v1/b?project=made-up", body, {"Content-Type": "application/json"}))

    def settings(self):
        account = self.files / "account.json"
        account.write_text(json.dumps({
            "gcs_base_url": f"http://127.0.0.1:{self.port}", "disable_oauth": True, "client_email": "",
            "private_key": "", "private_key_id": "",
        }))
        return {"GOOGLE_SERVICE_ACCOUNT": str(account), "GOOGLE_ALLOW_HTTP": "true"}

    def lacks(self):
        """object_store uses Google's XML interface. Asks for each part of it that an archive needs."""
        place = f"/{BUCKET}/asked"
        first, _ = self.request("PUT", place, b"one", {"x-goog-if-generation-match": "0"})
        again, _ = self.request("PUT", place, b"two", {"x-goog-if-generation-match": "0"})
        listed, _ = self.request("GET", f"/{BUCKET}?list-type=2")
        head, _ = self.request("HEAD", place)
        upload, _ = self.request("POST", f"{place}?uploads=", b"", {"Content-Length": "0"})
        deleted, _ = self.request("DELETE", place)
        parts = [
            (f"PUT {first}", first == 200), (f"PUT with x-goog-if-generation-match: 0 once more {again}", again == 412),
            (f"GET {listed} (listing)", listed == 200), (f"HEAD {head}", head == 200),
            (f"POST ?uploads {upload}", upload == 200), (f"DELETE {deleted}", deleted == 204),
        ]
        wrong = [what for what, good in parts if not good]
        return f"{self.name} has only a part of the XML interface: {'; '.join(wrong)}" if wrong else ""


STORES = [Moto, Azurite, GoogleCloud]
