#!/usr/bin/env python3
"""Whether rendered manifests are right: objects.py [--json DIR] NAME=FILE...

Each FILE is what `kubectl kustomize` printed, NAME what to call it. Every object is held against the schemas of all
versions of Kubernetes from 1.30 on (kubernetes-validate, strict) or those in schemas/, and then the objects of a file
against each other: what no schema knows, such as whether a name that is referred to is there. What is wrong is
printed, a line for each finding, and the exit code is 1. With --json, the objects are written to DIR/NAME.json.
"""

import functools
import json
import re
import sys
import tomllib
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils

OLDEST = (1, 30)
SCHEMAS = Path(__file__).with_name("schemas")
PROBES = {"startupProbe": "/startupz", "readinessProbe": "/readyz", "livenessProbe": "/livez"}
CLUSTER_WIDE = {"Namespace"}
# Secrets that the user provides where no component does.
GIVEN_SECRETS = {"casbah-server-tls", "casbah-peers-tls"}
UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40,
         "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
# What a node may take to end, beside leaving: DRAIN_DEADLINE, twice PEER_DRAIN_DEADLINE, and closing (node/src/config/limits.rs).
END_SECONDS = 39
TIMES = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
# What blobs may take of a volume; the rest is for the indexes, the log of the Raft group and the file system.
CAPACITY_PERCENT_MAX = 90

# The files of a version are the same for every object.
utils.schema_contents = functools.cache(utils.schema_contents)


def versions():
    found = {tuple(map(int, text.split(".")[:2])) for text in utils.all_versions()}
    return sorted(version for version in found if version >= OLDEST)


def name_of(thing):
    return f"{thing.get('kind')}/{thing.get('metadata', {}).get('name')}"


def bytes_of(text):
    number, unit = re.fullmatch(r"([0-9.]+)\s*([A-Za-z]*)", str(text)).groups()
    return float(number) * UNITS[unit]


def seconds_of(text):
    return sum(int(number) * TIMES[unit] for number, unit in re.findall(r"(\d+)\s*(ms|[smhd])", text))


# === schemas


@functools.cache
def own_schema(kind):
    path = SCHEMAS / f"{kind.lower()}.json"
    return json.loads(path.read_text()) if path.exists() else None


@functools.cache
def schema_findings(text):
    """What the schemas say of one object, which is the same in whatever file it is."""
    thing = json.loads(text)
    own = own_schema(thing.get("kind", ""))
    if own is not None:
        errors = jsonschema.Draft202012Validator(own).iter_errors(thing)
        return [f"{'.'.join(map(str, error.path))}: {error.message}" for error in errors]
    findings = {}
    for version in versions():
        label = ".".join(map(str, version))
        try:
            kubernetes_validate.validate(thing, label, strict=True)
        except kubernetes_validate.ValidationError as error:
            findings.setdefault(f"{'.'.join(map(str, error.path))}: {error.message}", []).append(label)
        except kubernetes_validate.SchemaNotFoundError:
            findings.setdefault(f"there is no {thing.get('apiVersion')} {thing.get('kind')}", []).append(label)
    return [f"{finding} (Kubernetes {', '.join(labels)})" for finding, labels in findings.items()]


# === objects against each other


class Objects:
    """The objects of one file."""

    def __init__(self, things):
        self.things = things
        self.found = []

    def say(self, thing, message):
        self.found.append(f"{name_of(thing)}: {message}")

    def of(self, kind):
        return [thing for thing in self.things if thing["kind"] == kind]

    def names(self, kind):
        return {thing["metadata"]["name"] for thing in self.of(kind)}

    def check(self):
        sets = self.of("StatefulSet")
        if len(sets) != 1:
            self.found.append(f"there are {len(sets)} StatefulSets, and not one")
            return self.found
        self.set = sets[0]
        self.pod = self.set["spec"]["template"]["spec"]
        self.labels = self.set["spec"]["template"]["metadata"]["labels"]
        self.container = self.pod["containers"][0]
        self.ports = {port["name"]: port["containerPort"] for port in self.container.get("ports", [])}
        self.environment = {variable["name"]: variable for variable in self.container.get("env", [])}
        for check in [self.names_are_unique, self.one_namespace, self.stateful_set, self.security, self.probes,
                      self.leaving, self.references, self.mounts, self.selectors, self.services, self.budget, self.policy,
                      self.variables, self.configuration, self.certificates, self.monitoring]:
            check()
        return self.found

    def names_are_unique(self):
        seen = set()
        for thing in self.things:
            if name_of(thing) in seen:
                self.say(thing, "is there twice")
            seen.add(name_of(thing))

    def one_namespace(self):
        namespaces = {t["metadata"].get("namespace") for t in self.things if t["kind"] not in CLUSTER_WIDE}
        if len(namespaces) != 1:
            self.found.append(f"objects are in several namespaces: {sorted(map(str, namespaces))}")
        self.namespace = namespaces.pop()
        for space in self.of("Namespace"):
            if space["metadata"]["name"] != self.namespace:
                self.say(space, f"is not the namespace of the objects, {self.namespace}")
            if space["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
                self.say(space, "does not enforce the restricted Pod Security Standard")

    def stateful_set(self):
        spec = self.set["spec"]
        if spec.get("podManagementPolicy") != "Parallel":
            self.say(self.set, "podManagementPolicy is not Parallel: a cluster forms only when its nodes are there at once")
        if spec.get("updateStrategy", {}).get("type", "RollingUpdate") != "RollingUpdate":
            self.say(self.set, "updates are not rolled out")
        if spec.get("persistentVolumeClaimRetentionPolicy") != {"whenDeleted": "Retain", "whenScaled": "Retain"}:
            self.say(self.set, "volumes do not outlive their pods")
        if spec.get("ordinals", {}).get("start", 0) != 0:
            self.say(self.set, "ordinals do not begin at 0")
        if len(self.pod["containers"]) != 1 or self.pod.get("initContainers"):
            self.say(self.set, "a pod has other containers than the node's")
        if self.pod.get("enableServiceLinks", True):
            self.say(self.set, "enableServiceLinks is on: variables such as CASBAH_PORT would be taken for settings")
        grace = self.pod.get("terminationGracePeriodSeconds", 30)
        stop = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds")
        if stop is None:
            self.say(self.set, "preStop does not sleep: balancers would send clients to a node that is gone")
        elif grace <= stop:
            self.say(self.set, f"preStop takes {stop} s of a grace of {grace} s")
        if "memory" not in self.container.get("resources", {}).get("limits", {}):
            self.say(self.set, "there is no limit to memory")
        image = self.container["image"]
        if image.endswith(":latest") or (image != "casbah" and not re.search(r"(:[^/]+|@sha256:[0-9a-f]{64})$", image)):
            self.say(self.set, f"the image {image} names no version")

    def security(self):
        pod, own = self.pod.get("securityContext", {}), self.container.get("securityContext", {})
        wanted = [
            (pod.get("runAsNonRoot") is True, "runAsNonRoot"),
            (pod.get("seccompProfile", {}).get("type") == "RuntimeDefault", "seccompProfile RuntimeDefault"),
            (pod.get("runAsUser", 0) > 0 and own.get("runAsUser", 1) > 0, "runAsUser other than 0"),
            (pod.get("fsGroup", 0) > 0, "fsGroup"),
            (own.get("allowPrivilegeEscalation") is False, "allowPrivilegeEscalation: false"),
            (own.get("privileged", False) is False, "privileged: false"),
            (own.get("readOnlyRootFilesystem") is True, "readOnlyRootFilesystem"),
            (own.get("capabilities", {}).get("drop") == ["ALL"], "capabilities.drop: [ALL]"),
            (not own.get("capabilities", {}).get("add"), "no added capability"),
            (own.get("runAsNonRoot", True) is True, "runAsNonRoot"),
            (own.get("seccompProfile", {}).get("type", "RuntimeDefault") == "RuntimeDefault", "seccompProfile"),
            (not any(self.pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")), "nothing of the host's"),
            (not any("hostPort" in port for port in self.container.get("ports", [])), "no hostPort"),
            (self.pod.get("serviceAccountName", "default") != "default", "a service account of its own"),
        ]
        for is_so, what in wanted:
            if not is_so:
                self.say(self.set, f"security: wants {what}")
        allowed = {"configMap", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
        for volume in self.pod.get("volumes", []):
            if not allowed & volume.keys():
                self.say(self.set, f"security: the volume {volume['name']} is of a kind that restricted pods may not have")

    def leaving(self):
        """A pod that is removed for good is given the time to leave, and may ask whether it is; and nothing else."""
        grace = self.pod.get("terminationGracePeriodSeconds", 30)
        stop = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        leave = seconds_of(self.environment.get("CASBAH_KUBERNETES__DRAIN_DEADLINE", {}).get("value", ""))
        if leave == 0:
            self.say(self.set, "CASBAH_KUBERNETES__DRAIN_DEADLINE is not set: a pod that is removed would leave nothing to the others")
        if stop + leave + END_SECONDS > grace:
            self.say(self.set, f"a grace of {grace} s is less than {stop} s of preStop, {leave:g} s to leave and {END_SECONDS} s to end")
        if self.pod.get("automountServiceAccountToken") is not True:
            self.say(self.set, "no token is mounted: a pod that is told to stop cannot ask whether it is removed")
        for account in self.of("ServiceAccount"):
            if account.get("automountServiceAccountToken") is not False:
                self.say(account, "gives its token to every pod that names it")
        own = {"apiGroups": ["apps"], "resources": ["statefulsets"], "resourceNames": [self.set["metadata"]["name"]], "verbs": ["get"]}
        roles = self.of("Role")
        for role in roles:
            if role.get("rules") != [own]:
                self.say(role, "allows something other than to look at the StatefulSet of the pods")
        subject = {"kind": "ServiceAccount", "name": self.pod.get("serviceAccountName"), "namespace": self.namespace}
        for binding in self.of("RoleBinding"):
            reference = binding["roleRef"]
            if reference["kind"] != "Role" or reference["name"] not in {role["metadata"]["name"] for role in roles}:
                self.say(binding, f"there is no {reference['kind']} {reference['name']}")
            # Without a namespace of its own, an object is in that of the binding once it is somewhere.
            if [{"namespace": self.namespace, **one} for one in binding.get("subjects", [])] != [subject]:
                self.say(binding, "is not for the service account of the pods alone")
        if not roles or not self.of("RoleBinding"):
            self.found.append("nothing lets a pod ask whether it is removed")
        if self.of("ClusterRole") or self.of("ClusterRoleBinding"):
            self.found.append("a role goes beyond the namespace")
        ways = {port.get("port") for policy in self.of("NetworkPolicy") for rule in policy["spec"].get("egress", [])
                if not rule.get("to") for port in rule.get("ports", [])}
        if not {443, 6443} <= ways:
            self.found.append("no NetworkPolicy lets pods go to the API server")

    def probes(self):
        for probe, path in PROBES.items():
            asks = self.container.get(probe, {}).get("httpGet", {})
            if asks.get("path") != path or asks.get("port") != "admin" or asks.get("scheme", "HTTP") != "HTTP":
                self.say(self.set, f"{probe} does not ask {path} of the admin port")

    def references(self):
        if self.pod.get("serviceAccountName") not in self.names("ServiceAccount"):
            self.say(self.set, f"there is no ServiceAccount {self.pod.get('serviceAccountName')}")
        issued = {certificate["spec"]["secretName"] for certificate in self.of("Certificate")}
        for volume in self.pod.get("volumes", []):
            if "configMap" in volume and volume["configMap"].get("name") not in self.names("ConfigMap"):
                self.say(self.set, f"there is no ConfigMap {volume['configMap'].get('name')}")
            if "secret" in volume and volume["secret"].get("secretName") not in (issued or GIVEN_SECRETS):
                self.say(self.set, f"nobody makes the Secret {volume['secret'].get('secretName')}")

    def mounts(self):
        claims = {claim["metadata"]["name"]: claim for claim in self.set["spec"].get("volumeClaimTemplates", [])}
        volumes = {volume["name"]: volume for volume in self.pod.get("volumes", [])}
        self.mounted = {}
        for mount in self.container.get("volumeMounts", []):
            if mount["name"] not in claims and mount["name"] not in volumes:
                self.say(self.set, f"there is no volume {mount['name']}")
            if "subPath" in mount or "subPathExpr" in mount:
                self.say(self.set, f"{mount['mountPath']} is mounted by subPath, and would never change again")
            self.mounted[mount["mountPath"]] = volumes.get(mount["name"]) or claims.get(mount["name"]) or {}
        for name in (claims.keys() | volumes.keys()) - {m["name"] for m in self.container.get("volumeMounts", [])}:
            self.say(self.set, f"nothing mounts the volume {name}")

    def matches(self, labels):
        return bool(labels) and labels.items() <= self.labels.items()

    def selectors(self):
        if not self.matches(self.set["spec"]["selector"].get("matchLabels")):
            self.say(self.set, "its selector does not match its own pods")
        for constraint in self.pod.get("topologySpreadConstraints", []):
            if not self.matches(constraint.get("labelSelector", {}).get("matchLabels")):
                self.say(self.set, f"the spread over {constraint['topologyKey']} is not that of its pods")
        spread = {constraint["topologyKey"] for constraint in self.pod.get("topologySpreadConstraints", [])}
        if not {"topology.kubernetes.io/zone", "kubernetes.io/hostname"} <= spread:
            self.say(self.set, "pods are not spread over zones and machines")
        for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor"):
            for thing in self.of(kind):
                spec = thing["spec"]
                selector = spec.get("podSelector", spec.get("selector", {}))
                if not self.matches(selector if kind == "Service" else selector.get("matchLabels")):
                    self.say(thing, "its selector matches no pod")

    def services(self):
        services = {service["metadata"]["name"]: service for service in self.of("Service")}
        for service in services.values():
            for port in service["spec"].get("ports", []):
                if port.get("targetPort") not in self.ports:
                    self.say(service, f"no pod has a port {port.get('targetPort')}")
        headless = services.get(self.set["spec"].get("serviceName"))
        if headless is None:
            self.say(self.set, f"there is no Service {self.set['spec'].get('serviceName')}")
            return
        if headless["spec"].get("clusterIP") != "None":
            self.say(headless, "is not headless: pods would have no names")
        if headless["spec"].get("publishNotReadyAddresses") is not True:
            self.say(headless, "hides pods that are not ready: no cluster would form")
        self.peers = {f"{headless['metadata']['name']}:{port['port']}" for port in headless["spec"].get("ports", [])
                      if self.ports.get(port.get("targetPort")) == port["port"]}
        for service in services.values():
            if service is not headless and service["spec"].get("publishNotReadyAddresses"):
                self.say(service, "sends clients to pods that are not ready")
            if service is not headless and {"peers", "admin"} & {p.get("targetPort") for p in service["spec"]["ports"]}:
                self.say(service, "shows clients a port that is not theirs")
            if service["spec"].get("type") == "LoadBalancer" and {p.get("targetPort") for p in service["spec"]["ports"]} != {"push"}:
                self.say(service, "lets anybody in the world in without a certificate")

    def budget(self):
        budgets = self.of("PodDisruptionBudget")
        if not budgets:
            self.found.append("there is no PodDisruptionBudget")
        for budget in budgets:
            spec = budget["spec"]
            if spec.get("maxUnavailable") != 1 or "minAvailable" in spec:
                self.say(budget, "lets more than one pod be evicted at once, or fewer")
            if spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                self.say(budget, "holds up the eviction of a pod that is not healthy")

    def policy(self):
        policies = self.of("NetworkPolicy")
        if not policies:
            self.found.append("there is no NetworkPolicy")
        for policy in policies:
            spec = policy["spec"]
            if set(spec.get("policyTypes", [])) != {"Ingress", "Egress"}:
                self.say(policy, "does not rule both ways")
            for rule in spec.get("ingress", []):
                ports = {port.get("port") for port in rule.get("ports", [])}
                for port in ports - self.ports.keys():
                    self.say(policy, f"no pod has a port {port}")
                if not rule.get("from") and (not ports or {"peers", "admin"} & ports):
                    self.say(policy, "lets anybody come to the ports of peers or to the admin port")
            open_ports = {port.get("port") for rule in spec.get("ingress", []) for port in rule.get("ports", [])}
            for port in self.ports.keys() - open_ports:
                self.say(policy, f"nobody may come to the port {port}")

    def variables(self):
        known = set()
        for variable in self.container.get("env", []):
            for name in re.findall(r"\$\(([A-Za-z0-9_]+)\)", variable.get("value", "")):
                if name not in known:
                    self.say(self.set, f"{variable['name']}: $({name}) is not set before it")
            if variable["name"] in known:
                self.say(self.set, f"{variable['name']} is set twice")
            known.add(variable["name"])
        own = self.environment.get("CASBAH_NODE__NAME", {}).get("valueFrom", {}).get("fieldRef", {})
        if own.get("fieldPath") != "metadata.name":
            self.say(self.set, "the name of a node is not that of its pod")
        advertised = self.environment.get("CASBAH_PEERS__ADVERTISE", {}).get("value", "")
        head, _, rest = advertised.partition(".")
        if head != "$(CASBAH_NODE__NAME)" or rest not in getattr(self, "peers", set()):
            self.say(self.set, f"{advertised or 'nothing'} is not a name that the headless service gives a pod")

    def configuration(self):
        """What the node is told, where it is about objects; casbah itself checks the rest."""
        by_name = {thing["metadata"]["name"]: thing for thing in self.of("ConfigMap")}
        arguments = self.container.get("args", [])
        path = Path(arguments[arguments.index("--config") + 1]) if "--config" in arguments else Path("/")
        volume = self.mounted.get(str(path.parent), {})
        text = by_name.get(volume.get("configMap", {}).get("name"), {}).get("data", {}).get(path.name)
        if text is None:
            self.say(self.set, f"{path} is in no ConfigMap that is mounted there")
            return
        try:
            told = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            self.say(self.set, f"{path} is not TOML: {error}")
            return
        directory = told.get("node", {}).get("dir", "")
        claim = self.mounted.get(directory, {})
        if "spec" not in claim:
            self.say(self.set, f"node.dir is {directory or 'nowhere'}, where no volume outlives the pod")
        elif (capacity := self.environment.get("CASBAH_STORE__CAPACITY", {}).get("value")) is None:
            self.say(self.set, "nothing says how much of the volume blobs may take")
        else:
            volume_bytes = bytes_of(claim["spec"]["resources"]["requests"]["storage"])
            if bytes_of(capacity) > volume_bytes * CAPACITY_PERCENT_MAX / 100:
                self.say(self.set, f"a capacity of {capacity} is more than {CAPACITY_PERCENT_MAX} % of the volume")
        cluster = told.get("cluster", {})
        if set(cluster.get("join", [])) != getattr(self, "peers", set()):
            self.say(self.set, f"cluster.join is {cluster.get('join')}, and not the headless service alone")
        if not 1 <= cluster.get("bootstrap_expect", 0) <= self.set["spec"].get("replicas", 1):
            self.say(self.set, "no cluster forms: fewer pods than cluster.bootstrap_expect")
        addresses = {"peers": [told.get("peers", {}).get("address", "")],
                     "admin": [told.get("admin", {}).get("address", "")],
                     "pull or push": [listener.get("address", "") for listener in told.get("listener", [])]}
        for what, listed in addresses.items():
            wanted = {self.ports.get(name) for name in what.split(" or ")}
            if {f"[::]:{port}" for port in wanted} != set(listed):
                self.say(self.set, f"the ports {what} are not those that the node listens on, on every address")
        for file in re.findall(r'"(/etc/casbah/[^"]+)"', text):
            if "secret" not in self.mounted.get(str(Path(file).parent), {}):
                self.say(self.set, f"{file} is in no Secret that is mounted there")

    def certificates(self):
        certificates = {certificate["spec"]["secretName"]: certificate for certificate in self.of("Certificate")}
        if not certificates:
            return
        authorities = {}
        for certificate in certificates.values():
            reference = certificate["spec"]["issuerRef"]
            issuers = [i for i in self.of("Issuer") if i["metadata"]["name"] == reference["name"]]
            if reference["kind"] == "Issuer" and not issuers:
                self.say(certificate, f"there is no Issuer {reference['name']}")
                continue
            authorities[certificate["spec"]["secretName"]] = reference["name"]
        for issuer in self.of("Issuer"):
            secret = issuer["spec"].get("ca", {}).get("secretName")
            if secret and not certificates.get(secret, {}).get("spec", {}).get("isCA"):
                self.say(issuer, f"{secret} is not a certificate of an authority")
        if authorities.get("casbah-peers-tls") == authorities.get("casbah-server-tls"):
            self.found.append("clients and peers have one authority: every client would be a node")
        for secret, issuer in authorities.items():
            if secret != "casbah-peers-tls" and issuer == authorities.get("casbah-peers-tls"):
                self.say(certificates[secret], "has a certificate of the peers' authority: its holder would be a node")
        usages = {"casbah-server-tls": {"server auth"}, "casbah-peers-tls": {"server auth", "client auth"},
                  "casbah-builders-tls": {"client auth"}}
        for secret, wanted in usages.items():
            has = set(certificates.get(secret, {}).get("spec", {}).get("usages", [])) & {"server auth", "client auth"}
            if secret in certificates and has != wanted:
                self.say(certificates[secret], f"is for {sorted(has)}, and not for {sorted(wanted)}")
        server = certificates.get("casbah-server-tls")
        if server and self.of("Namespace"):
            for service in self.of("Service"):
                name = f"{service['metadata']['name']}.{self.namespace}.svc"
                is_inside = service["spec"].get("clusterIP") != "None" and service["spec"].get("type") != "LoadBalancer"
                if is_inside and name not in server["spec"].get("dnsNames", []):
                    self.say(server, f"does not have the name {name}, by which clients call")

    def monitoring(self):
        for monitor in self.of("PodMonitor"):
            for endpoint in monitor["spec"]["podMetricsEndpoints"]:
                if endpoint["port"] != "admin" or endpoint.get("path") != "/metrics":
                    self.say(monitor, "does not ask /metrics of the admin port")
        for dashboard in self.of("ConfigMap"):
            if "grafana_dashboard" in dashboard["metadata"].get("labels", {}):
                for name, text in dashboard.get("data", {}).items():
                    try:
                        json.loads(text)
                    except ValueError as error:
                        self.say(dashboard, f"{name} is not JSON: {error}")


def pods_by_replicas(files):
    """The pods of `base` and of `base, scaled` are the same: a change of their number replaces none of them."""
    pods = []
    for name in ("base", "base-scaled"):
        sets = [thing for thing in files.get(name, []) if thing["kind"] == "StatefulSet"]
        pods += [{**set_["spec"], "replicas": None} for set_ in sets]
    return [] if len(pods) < 2 or pods[0] == pods[1] else ["base: the number of replicas changes the pods"]


def main(arguments):
    json_dir = None
    if arguments[:1] == ["--json"]:
        json_dir, arguments = Path(arguments[1]), arguments[2:]
    files, findings, schemas = {}, [], 0
    for argument in arguments:
        name, _, path = argument.partition("=")
        files[name] = [thing for thing in yaml.safe_load_all(Path(path).read_text()) if thing]
        if json_dir:
            (json_dir / f"{name}.json").write_text(json.dumps(files[name], indent=1) + "\n")
    for name, things in files.items():
        wrong = []
        for thing in things:
            wrong += [f"{name_of(thing)}: {finding}" for finding in schema_findings(json.dumps(thing, sort_keys=True))]
        schemas += len(things)
        # Whoever looks at the objects together counts on their form.
        findings += [f"{name}: {finding}" for finding in wrong or Objects(things).check()]
    findings += pods_by_replicas(files)
    for finding in dict.fromkeys(findings):
        print(f"error: {finding}", file=sys.stderr)
    if not findings:
        spoken = [".".join(map(str, version)) for version in versions()]
        print(f"{len(files)} renderings, {schemas} objects, Kubernetes {spoken[0]} to {spoken[-1]}")
    return 1 if findings or not files else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
