"""Makes a virtual environment with a LiteLLM from PyPI and what its proxy imports: environment.py VERSION DIRECTORY

The wheel's own metadata states the packages and their versions. Left out are the enterprise package, which has another
licence, and packages that are large and that importing the proxy does not need. If the proxy does import one of these,
it is installed, too.
"""

import os
import re
import subprocess
import sys

# LiteLLM's own further packages. The first has another licence; the proxy runs without the others.
NEVER = {"litellm-enterprise", "litellm-proxy", "litellm-proxy-extras"}
ONLY_IF_IMPORTED = {
    "azure-identity",
    "azure-storage-blob",
    "granian",
    "gunicorn",
    "hiredis",
    "inquirerpy",
    "polars",
    "pyroscope-io",
    "restrictedpython",
    "rq",
    "tomlkit",
    "uvloop",
}
# The names of modules that differ from their packages' names.
PACKAGE_OF_MODULE = {
    "dotenv": "python-dotenv",
    "jwt": "pyjwt",
    "multipart": "python-multipart",
    "nacl": "pynacl",
    "yaml": "pyyaml",
}
# What this harness imports itself. The proxy's database client is Prisma's; its engine is not installed.
OURS = ["psycopg[binary]>=3.2", "httpx"]
PRISMA = "prisma"

LIST_REQUIREMENTS = """
import importlib.metadata
from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
for text in importlib.metadata.requires("litellm"):
    requirement = Requirement(text)
    for extra in sorted(importlib.metadata.metadata("litellm").get_all("Provides-Extra") or []):
        names = {"extra": extra.replace("_", "-")}
        if requirement.marker and "extra" in str(requirement.marker) and requirement.marker.evaluate(names):
            extras = f"[{','.join(sorted(requirement.extras))}]" if requirement.extras else ""
            wanted = f"{requirement.name}{extras}{requirement.specifier}"
            print(names["extra"], canonicalize_name(requirement.name), wanted, sep="\\t")
"""
IMPORT_PROXY = """
import standin
standin.stand_in_for_the_generated_client()
import litellm.proxy.proxy_server
"""


def run(python, *arguments):
    subprocess.run([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *arguments], check=True)


def optional_requirements(python):
    """The requirements of the extras: a dictionary from an extra to a dictionary from a package to its requirement."""
    found = {}
    listed = subprocess.run([python, "-c", LIST_REQUIREMENTS], check=True, capture_output=True, text=True).stdout
    for line in listed.splitlines():
        extra, name, requirement = line.split("\t")
        found.setdefault(extra, {})[name] = requirement
    return found


def missing_module(python):
    """The module that importing the proxy does not find; None if it imports."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.abspath(__file__)), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run([python, "-c", IMPORT_PROXY], capture_output=True, text=True, env=environment)
    if done.returncode == 0:
        return None
    missing = re.findall(r"No module named '([\w.]+)'", done.stderr)
    if not missing:
        sys.exit(done.stderr)
    return missing[-1].split(".")[0]


def package_of(module, optional):
    """The requirement for a module, by its name, with the versions that LiteLLM states if it states any."""
    name = PACKAGE_OF_MODULE.get(module, module).replace("_", "-").lower()
    if name in NEVER:
        sys.exit(f"LiteLLM's proxy does not import without {name}, which is never installed")
    for requirements in optional.values():
        if name in requirements:
            return requirements[name]
    return name


def make(version, directory):
    python = os.path.join(directory, "bin", "python")
    subprocess.run([sys.executable, "-m", "venv", directory], check=True)
    run(python, f"litellm=={version}", *OURS)
    optional = optional_requirements(python)
    left_out = NEVER | ONLY_IF_IMPORTED
    wanted = {name: requirement for name, requirement in optional.get("proxy", {}).items() if name not in left_out}
    wanted[PRISMA] = optional.get("extra-proxy", {}).get(PRISMA, PRISMA)
    run(python, f"litellm=={version}", *OURS, *wanted.values())
    tried = set()
    while module := missing_module(python):
        if module in tried:
            sys.exit(f"LiteLLM's proxy does not find the module {module}, though its package is installed")
        tried.add(module)
        print(f"LiteLLM's proxy imports {module}", file=sys.stderr)
        run(python, f"litellm=={version}", package_of(module, optional))


def main():
    version, directory = sys.argv[1:]
    if not re.fullmatch(r"\d[\w.]*", version):
        sys.exit(f"{version} is not a version")
    ready = os.path.join(directory, "ready")
    if not os.path.exists(ready):
        print(f"installing LiteLLM {version} from the package index", file=sys.stderr)
        make(version, directory)
        with open(ready, "w") as file:
            file.write(version)


if __name__ == "__main__":
    main()
