"""LiteLLM's own proxy in this process, on a database: its code answers, and standin.py stands where Prisma's client does."""

import asyncio
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil

import tables
from standin import Database, stand_in_for_the_generated_client

MASTER_KEY = "sk-master-1234"


def package():
    return os.path.dirname(importlib.util.find_spec("litellm").origin)


def add_prices(path):
    """Models that are priced here and not there, such as those that LiteLLM has dropped: the recordings had them, too."""
    place = os.path.join(package(), "model_prices_and_context_window_backup.json")
    original = place + ".original"
    if not os.path.exists(original):
        shutil.copyfile(place, original)
    with open(original) as file:
        theirs = json.load(file)
    with open(path) as file:
        ours = json.load(file)
    for name, entry in ours.items():
        theirs.setdefault(name, {field: value for field, value in entry.items() if field != "retired"})
    with open(place, "w") as file:
        json.dump(theirs, file)
    return [name for name in theirs if not name.startswith(("github_copilot", "chatgpt/", "sample_spec"))]


class StandInFailed(Exception):
    """The stand-in for Prisma failed, so what came out is not LiteLLM's answer."""


def client_on(database, proxy_server):
    """LiteLLM's own wrapper around Prisma's client, without what starts an engine."""
    from litellm.proxy.utils import PrismaClient

    class Client(PrismaClient):
        def __getattr__(self, name):
            if not name.startswith("__"):
                database.fail(f"PrismaClient.{name} is not provided")
            raise AttributeError(name)

    client = object.__new__(Client)
    client.__dict__.update(db=database, proxy_logging_obj=proxy_server.proxy_logging_obj, token_auth=None, _closing=False)
    return client


class Reference:
    """Answers requests as LiteLLM does."""

    def __init__(self, url):
        # Offline, LiteLLM counts the tokens of models of Hugging Face as it does where it can't load their tokenizers.
        os.environ.update(LITELLM_LOCAL_MODEL_COST_MAP="True", LITELLM_MASTER_KEY=MASTER_KEY, DATABASE_URL=url, TZ="UTC")
        os.environ.update(HF_HUB_OFFLINE="1")
        logging.disable(logging.CRITICAL)
        stand_in_for_the_generated_client()
        import httpx
        from litellm.proxy import proxy_server
        from litellm.proxy.db.create_views import create_missing_views

        self.proxy_server = proxy_server
        self.version = importlib.metadata.version("litellm")
        self.database = Database(url, tables.read_schema(os.path.join(package(), "proxy", "schema.prisma")))
        self.runner = asyncio.Runner()
        self.runner.run(create_missing_views(db=self.database))
        self.database.failures.clear()
        proxy_server.prisma_client = client_on(self.database, proxy_server)
        proxy_server.master_key = MASTER_KEY
        proxy_server.litellm_master_key_hash = proxy_server.hash_token(MASTER_KEY)
        # What it sells a licence for is served here without one.
        proxy_server.premium_user = True
        # Without it, it stores no settings, such as allowed addresses.
        proxy_server.store_model_in_db = True
        proxy_server.general_settings = {"master_key": MASTER_KEY}
        transport = httpx.ASGITransport(proxy_server.app, raise_app_exceptions=False, client=("127.0.0.1", 50000))
        self.client = httpx.AsyncClient(transport=transport, base_url="http://testserver", follow_redirects=False)

    def parameters(self, path):
        """The names of a path's parameters; nothing where it is not in the document."""
        operation = self.proxy_server.app.openapi()["paths"].get(path, {}).get("get")
        return operation and [each["name"] for each in operation.get("parameters", []) if each["in"] == "query"]

    def has(self, path):
        """Whether there is such a path at all, in the document or outside of it."""
        path = path.replace("{request_id}", "none")
        status, _, body = self.ask("GET", path, {}, {"Authorization": f"Bearer {MASTER_KEY}"})
        return not (status == 404 and body == {"detail": "Not Found"}) and status != 405

    def ask(self, method, path, query, headers, body=None, patience=0.0):
        """Status, headers and body; status 0 where it does not answer at all."""
        self.proxy_server.user_api_key_cache.in_memory_cache.flush_cache()
        self.database.failures.clear()
        answer = self.runner.run(self.answer(method, path, query, headers, body, patience))
        if self.database.failures:
            raise StandInFailed(self.database.failures[0])
        return answer

    def allow(self, addresses):
        """Puts a list of allowed addresses in the place of the one that it remembers; none for None."""
        self.proxy_server.general_settings.pop("allowed_ips", None)
        if addresses is not None:
            self.proxy_server.general_settings["allowed_ips"] = list(addresses)

    def prices(self, bodies):
        """What /spend/calculate answers, from its own function, without the way through the proxy to it."""
        return self.runner.run(self.prices_directly(bodies))

    async def prices_directly(self, bodies):
        return [await self.price_directly(body) for body in bodies]

    async def price_directly(self, body):
        from litellm.proxy._types import ProxyException, SpendCalculateRequest
        from litellm.proxy.spend_tracking.spend_management_endpoints import calculate_spend

        try:
            answer = await calculate_spend(SpendCalculateRequest(**body))
        except ProxyException as error:
            return int(error.code), {}, {"error": error.to_dict()}
        return 200, {}, json.loads(json.dumps(answer))

    async def answer(self, method, path, query, headers, body, patience):
        try:
            answer = await self.client.request(method, path, params=query, headers=headers, json=body)
        except Exception as error:
            return 0, {}, repr(error)
        finally:
            await end_tasks(patience)
        try:
            return answer.status_code, answer.headers, json.loads(answer.content)
        except ValueError:
            return answer.status_code, answer.headers, answer.text


async def end_tasks(patience):
    """Gives what a request has left running the time to end, and then ends it, so that it does not meet the next one."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    if not tasks:
        return
    _, pending = await asyncio.wait(tasks, timeout=patience)
    for task in pending:
        task.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
