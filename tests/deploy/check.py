"""Checks of the files in deploy/ that no schema makes. Prints what is wrong, and exits with 1 if anything is."""

import argparse
import re
import sys
from pathlib import Path

import yaml

COMPOSE, KUBERNETES, SYSTEMD = (Path("deploy") / name for name in ("compose", "kubernetes", "systemd"))
# The server reads these, but `serve --help` does not name them: they belong to object stores and to the log.
NOT_IN_HELP = {"AWS_ACCESS_KEY_ID", "AWS_REGION", "AWS_SECRET_ACCESS_KEY", "RUST_LOG"}
# Fields of a ServiceMonitor's endpoint (monitoring.coreos.com/v1) that a manifest may use, and those within.
ENDPOINT = {"port": None, "path": None, "interval": None, "scrapeTimeout": None,
            "authorization": {"type": None, "credentials": {"name": None, "key": None}}}
# Fields of a ScrapeConfig (monitoring.coreos.com/v1alpha1) that a manifest may use.
SCRAPE = {"jobName": None, "metricsPath": None, "scrapeInterval": None, "authorization": ENDPOINT["authorization"],
          "staticConfigs": None}


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def manifests():
    """Every document of every manifest, with its file."""
    return [(path, document) for path in sorted(KUBERNETES.glob("*.yaml")) for document in documents(path)]


def of_kind(kind):
    return [document for _, document in manifests() if document["kind"] == kind]


def containers():
    pods = [document["spec"]["template"]["spec"] for document in of_kind("Deployment")]
    return [container for pod in pods for container in pod["containers"]]


def unexpected(value, allowed, where):
    """Names the fields that are not allowed."""
    for field, inner in value.items():
        if field not in allowed:
            yield f"{where}: unknown field {field}"
        elif allowed[field] is not None:
            yield from unexpected(inner, allowed[field], f"{where}.{field}")


def check_kustomization(_):
    listed = set(documents(KUBERNETES / "kustomization.yaml")[0]["resources"])
    present = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml", "secret.example.yaml"}
    for name in sorted(listed ^ present):
        yield f"{name} is only in the {'list' if name in listed else 'folder'}"


def check_servicemonitor(_):
    ports = {port["name"] for service in of_kind("Service") for port in service["spec"]["ports"]}
    labels = [service["metadata"]["labels"] for service in of_kind("Service")]
    secrets = {(secret["metadata"]["name"], key) for secret in of_kind("Secret") for key in secret["stringData"]}
    for monitor in of_kind("ServiceMonitor"):
        if monitor["apiVersion"] != "monitoring.coreos.com/v1":
            yield f"apiVersion is {monitor['apiVersion']}"
        yield from unexpected(monitor["spec"], {"selector": {"matchLabels": None}, "endpoints": None}, "spec")
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        if not any(wanted <= found.items() for found in labels):
            yield "the selector matches no Service"
        for endpoint in monitor["spec"]["endpoints"]:
            yield from unexpected(endpoint, ENDPOINT, "endpoint")
            if endpoint["port"] not in ports:
                yield f"no Service has a port {endpoint['port']}"
            if not re.fullmatch(r"\d+(ms|s|m)", endpoint.get("interval", "")):
                yield "an endpoint has no interval such as 30s"
            credentials = endpoint["authorization"]["credentials"]
            if (credentials["name"], credentials["key"]) not in secrets:
                yield f"secret.example.yaml has no {credentials['name']} with {credentials['key']}"


def check_scrapeconfig(_):
    namespaces = {document["namespace"] for document in documents(KUBERNETES / "kustomization.yaml")}
    addresses = {f"{service['metadata']['name']}.{namespace}.svc:{port['port']}" for service in of_kind("Service")
                 for namespace in namespaces for port in service["spec"]["ports"]}
    secrets = {(secret["metadata"]["name"], key) for secret in of_kind("Secret") for key in secret["stringData"]}
    for scrape in of_kind("ScrapeConfig"):
        if scrape["apiVersion"] != "monitoring.coreos.com/v1alpha1":
            yield f"apiVersion is {scrape['apiVersion']}"
        yield from unexpected(scrape["spec"], SCRAPE, "spec")
        targets = [target for static in scrape["spec"]["staticConfigs"] for target in static["targets"]]
        if len(targets) != 1 or not set(targets) <= addresses:
            yield f"the targets are {targets}, but one of {sorted(addresses)} is expected"
        credentials = scrape["spec"]["authorization"]["credentials"]
        if (credentials["name"], credentials["key"]) not in secrets:
            yield f"secret.example.yaml has no {credentials['name']} with {credentials['key']}"


def settings():
    """Every setting that deploy/ gives to litespend, with its place. Settings in comments count, too."""
    for path in sorted(COMPOSE.glob("*.yaml")):
        for service in documents(path)[0]["services"].values():
            if "build" in service:
                yield from ((name, path) for name in service.get("environment", {}))
    read = set()
    for container in containers():
        yield from ((variable["name"], KUBERNETES / "deployment.yaml") for variable in container.get("env", []))
        read |= {source["secretRef"]["name"] for source in container.get("envFrom", [])}
    example = KUBERNETES / "secret.example.yaml"
    for part in example.read_text().split("\n---\n"):
        if yaml.safe_load(part)["metadata"]["name"] in read:
            yield from ((name, example) for name in re.findall(r"^  (?:# )?([A-Z][A-Z_]+): ", part, re.M))
    for path in sorted(SYSTEMD.iterdir()):
        pattern = r"^Environment=(\w+)=" if path.suffix == ".service" else r"^#?([A-Z][A-Z_]+)="
        yield from ((name, path) for name in re.findall(pattern, path.read_text(), re.M))


def check_settings(help_text):
    known = set(re.findall(r"\[env: (\w+)", help_text)) | NOT_IN_HELP
    found = list(settings())
    for name, path in found:
        if name not in known:
            yield f"{path}: {name}"
    if len(found) < 10:
        yield f"only {len(found)} settings were found"


def check_flags(help_text):
    known = set(re.findall(r"--[a-z][a-z-]+", help_text))
    for path in sorted(path for folder in (COMPOSE, KUBERNETES, SYSTEMD) for path in folder.iterdir()):
        text = path.read_text()
        if path.parent == COMPOSE and path.suffix == ".yaml":
            # The other services are other programs.
            services = documents(path)[0]["services"].values()
            text = yaml.dump([service for service in services if "build" in service])
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text):
            if flag not in known:
                yield f"{path}: {flag}"


def check_ports(_):
    [served] = re.findall(r"^ENV .*\bPORT=(\d+)", Path("Dockerfile").read_text(), re.M)
    for path in sorted(COMPOSE.glob("*.yaml")):
        for service in documents(path)[0]["services"].values():
            for port in service.get("ports", []):
                if not re.fullmatch(rf"127\.0\.0\.1:\d+:{served}", port):
                    yield f"{path}: {port}"
    named = {}
    for container in containers():
        named |= {port["name"]: port["containerPort"] for port in container["ports"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container[probe]["httpGet"]["port"] not in named:
                yield f"{probe}: no port {container[probe]['httpGet']['port']}"
    if list(named.values()) != [int(served)]:
        yield f"the container's ports are {named}, but the image listens on {served}"
    for service in of_kind("Service"):
        for port in service["spec"]["ports"]:
            if port["targetPort"] not in named:
                yield f"the Service's targetPort {port['targetPort']} is no port of the container"
    for policy in of_kind("NetworkPolicy"):
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                if port["port"] not in named:
                    yield f"the NetworkPolicy's port {port['port']} is no port of the container"


def probe_paths():
    probes = [container[probe] for container in containers() for probe in container if probe.endswith("Probe")]
    return sorted({probe["httpGet"]["path"] for probe in probes})


def monitor_paths():
    endpoints = [endpoint for monitor in of_kind("ServiceMonitor") for endpoint in monitor["spec"]["endpoints"]]
    paths = {endpoint["path"] for endpoint in endpoints}
    return sorted(paths | {scrape["spec"]["metricsPath"] for scrape in of_kind("ScrapeConfig")})


CHECKS = {"kustomization": check_kustomization, "servicemonitor": check_servicemonitor, "scrapeconfig": check_scrapeconfig,
          "settings": check_settings, "flags": check_flags, "ports": check_ports}
LISTS = {"probe-paths": probe_paths, "monitor-paths": monitor_paths}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=[*CHECKS, *LISTS])
    parser.add_argument("--help-text", type=Path)
    args = parser.parse_args()
    if args.name in LISTS:
        print("\n".join(LISTS[args.name]()))
        return
    wrong = list(CHECKS[args.name](args.help_text.read_text()))
    print("\n".join(wrong))
    sys.exit(bool(wrong))


main()
