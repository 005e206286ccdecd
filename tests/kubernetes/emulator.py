#!/usr/bin/env python3
"""A Kubernetes cluster in miniature, for tests: emulator.py --objects FILE --image DIR --secrets DIR --api DIR --dir DIR

It takes the objects of a rendering (JSON, as deploy/k8s/check.sh --json writes them) and does what a StatefulSet
controller, a kubelet, a DNS server and a load balancer would do with them:

- pods are processes, each in a network namespace with an address that it never had before, and with the image (DIR has its
  content) as a root that cannot be written: the command, environment, user, volumes and host name of the manifest,
  and nothing of this machine's;
- volumes, ConfigMaps and Secrets (DIR/<name>/<key>) are directories; changed files are swapped as a kubelet does;
- startup, readiness and liveness are asked over HTTP, with the manifest's periods and thresholds; a pod that is to go is
  taken out of the services, waits as preStop says, gets SIGTERM, and SIGKILL after its grace; one that ends is started
  again;
- updates replace pods one by one, from the last to the first, each when the one after it has been ready for long enough;
- names of pods and of the headless service are answered by DNS, pods that are not ready included where the service says
  so; every other service has one address, where each connection goes to a pod that is ready;
- an API server (api_server.py) answers pods over TLS, by the tokens of their service accounts and the Roles among the objects;
- volumes stay or go with pods that are removed, as the StatefulSet says.

Commands come as lines of JSON on standard input, and each is answered by one on standard output: {"do": NAME, ...}, see
the methods do_*. When standard input ends, so does everything.

It wants a network namespace of its own, in which it makes a bridge, and may do as it likes there: `unshare --net --mount`.
What it leaves out: scheduling, NetworkPolicies, and the delays of real
clusters, but for a moment before services notice a change. --hurry N divides the times in which nothing happens by design
(preStop, minReadySeconds), and no other.
"""

import argparse
import asyncio
import contextlib
import copy
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

from api_server import ApiServer

NETWORK = "10.244.0"
GATEWAY, FIRST_POD = f"{NETWORK}.1", 16
CLUSTER_DOMAIN = "svc.cluster.local"
API_PORT = 443
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# Between a change of a pod and the moment at which services and DNS know of it.
ENDPOINTS_DELAY = 0.3
# Between two looks of the controller.
RECONCILE_EVERY = 0.1
# A container that ends is started again after this time, twice as long each time.
RESTART_AFTER, RESTART_AFTER_MAX = 0.5, 10.0


def say(**what):
    print(json.dumps(what), flush=True)


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip()}")


def digest(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:10]


def swap_in(directory, files):
    """Writes files as the kubelet does: into a new directory, to which a link is then moved."""
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f"..{digest(files)}"
    if not fresh.exists():
        fresh.mkdir()
        for name, data in files.items():
            (fresh / name).write_bytes(bytes.fromhex(data))
            (fresh / name).chmod(0o440)
    link = directory / "..new"
    link.symlink_to(fresh.name)
    link.rename(directory / "..data")
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")


class Pod:
    """One pod, from its creation until it is gone."""

    def __init__(self, cluster, ordinal):
        self.cluster = cluster
        self.ordinal = ordinal
        stateful_set = cluster.stateful_set
        self.name = f"{stateful_set['metadata']['name']}-{ordinal}"
        self.template = copy.deepcopy(stateful_set["spec"]["template"])
        self.revision = digest(self.template)
        self.spec = self.template["spec"]
        self.container = self.spec["containers"][0]
        self.zone = cluster.zone_of(ordinal)
        self.ip = cluster.next_address()
        self.started = self.ready = self.terminating = self.gone = self.loses_volume = False
        self.ready_since = None
        self.restarts = 0
        self.pid = None
        self.process = None
        account = self.spec.get("serviceAccountName", "default")
        self.token = cluster.api.issue(cluster.namespace, account, self.name) if self.has_token(account) else None
        self.home = cluster.dir / "pods" / f"{self.name}.{self.ip}"
        self.task = asyncio.create_task(self.live())

    def log(self):
        return self.cluster.dir / f"{self.name}.log"

    def has_token(self, account):
        of_account = self.cluster.accounts.get(account, {}).get("automountServiceAccountToken", True)
        return self.spec.get("automountServiceAccountToken", of_account)

    # === what a container is made of

    def environment(self):
        labels = {**self.template["metadata"]["labels"], "topology.kubernetes.io/zone": self.zone}
        told = {"KUBERNETES_SERVICE_HOST": GATEWAY, "KUBERNETES_SERVICE_PORT": str(API_PORT)}
        for variable in self.container.get("env", []):
            path = variable.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            if path == "metadata.name":
                value = self.name
            elif path == "metadata.namespace":
                value = self.cluster.namespace
            elif label := re.fullmatch(r"metadata\.labels\['(.*)'\]", path):
                value = labels.get(label.group(1), "")
            elif path:
                raise RuntimeError(f"{variable['name']}: {path} is not known here")
            else:
                value = re.sub(r"\$\((\w+)\)", lambda found: told.get(found.group(1), found.group(0)), variable["value"])
            told[variable["name"]] = value
        return told

    def mounts(self):
        volumes = {volume["name"]: volume for volume in self.spec.get("volumes", [])}
        options = []
        for mount in self.container["volumeMounts"]:
            volume = volumes.get(mount["name"])
            if volume is None:
                source = self.cluster.volume(mount["name"], self.ordinal)
            elif "configMap" in volume:
                source = self.cluster.mounted("ConfigMap", volume["configMap"]["name"])
            else:
                source = self.cluster.mounted("Secret", volume["secret"]["secretName"])
            options += ["--ro-bind" if mount.get("readOnly") else "--bind", source, mount["mountPath"]]
        if self.token:
            files = {"token": self.token, "namespace": self.cluster.namespace, "ca.crt": (self.cluster.api_dir / "ca.crt").read_text()}
            swap_in(self.home / "account", {name: text.encode().hex() for name, text in files.items()})
            options += ["--ro-bind", self.home / "account", ACCOUNT]
        return options

    def command(self, info):
        security = {**self.spec["securityContext"], **self.container["securityContext"]}
        image = self.cluster.image_config
        environment = {**dict(entry.split("=", 1) for entry in image["Env"]), **self.environment()}
        root = self.home / "root"
        # What the last one left there is gone with it.
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(self.cluster.image, root, copy_function=os.link)
        for name in ("hosts", "resolv.conf", "hostname"):
            (root / "etc" / name).touch()
        for mount in self.container["volumeMounts"]:
            (root / mount["mountPath"].lstrip("/")).mkdir(parents=True, exist_ok=True)
        (root / ACCOUNT.lstrip("/")).mkdir(parents=True, exist_ok=True)
        for name in ("proc", "dev"):
            (root / name).mkdir(exist_ok=True)
        (self.home / "hosts").write_text(f"127.0.0.1 localhost\n::1 localhost\n{self.ip} {self.name}\n")
        domains = [f"{self.cluster.namespace}.{CLUSTER_DOMAIN}", CLUSTER_DOMAIN, "cluster.local"]
        resolver = f"nameserver {GATEWAY}\nsearch {' '.join(domains)}\noptions ndots:5\n"
        (self.home / "resolv.conf").write_text(resolver)
        return [
            "nsenter", f"--net=/run/netns/{self.name}.{self.ip}",
            "bwrap", "--die-with-parent", "--new-session", "--info-fd", str(info), "--clearenv",
            "--unshare-user", "--unshare-uts", "--unshare-ipc", "--hostname", self.name, "--cap-drop", "ALL",
            "--uid", str(security["runAsUser"]), "--gid", str(security["runAsGroup"]),
            "--bind" if not security["readOnlyRootFilesystem"] else "--ro-bind", root, "/",
            "--proc", "/proc", "--dev", "/dev", *self.mounts(),
            "--ro-bind", self.home / "hosts", "/etc/hosts", "--ro-bind", self.home / "resolv.conf", "/etc/resolv.conf",
            "--chdir", image["WorkingDir"],
            *[word for name, value in environment.items() for word in ("--setenv", name, value)],
            *self.container.get("command", image["Entrypoint"]), *self.container.get("args", image["Cmd"]),
        ]

    # === its life

    async def live(self):
        try:
            self.make_network()
            pause = RESTART_AFTER
            while not self.terminating:
                await self.run_container()
                if self.terminating:
                    break
                self.restarts += 1
                say(event="restart", pod=self.name, restarts=self.restarts)
                await asyncio.sleep(pause)
                pause = min(2 * pause, RESTART_AFTER_MAX)
        except Exception as error:  # a defect of the emulator: whoever reads the events has to hear of it
            say(event="error", pod=self.name, error=f"{type(error).__name__}: {error}")
            await asyncio.sleep(1)
        finally:
            self.started = self.ready = False
            self.cluster.api.revoke(self.token)
            self.remove_network()
            self.gone = True
            say(event="gone", pod=self.name, ip=self.ip)

    def make_network(self):
        space, link = f"{self.name}.{self.ip}", f"v{self.ip.rsplit('.', 1)[1]}"
        run("ip", "netns", "add", space)
        run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        run("ip", "link", "set", link, "master", "pods", "up")
        run("ip", "-n", space, "addr", "add", f"{self.ip}/24", "dev", "eth0")
        run("ip", "-n", space, "link", "set", "eth0", "up")
        run("ip", "-n", space, "link", "set", "lo", "up")
        run("ip", "-n", space, "route", "add", "default", "via", GATEWAY)

    def remove_network(self):
        with contextlib.suppress(RuntimeError):
            run("ip", "netns", "del", f"{self.name}.{self.ip}")
        shutil.rmtree(self.home, ignore_errors=True)

    async def run_container(self):
        read, write = os.pipe()
        self.home.mkdir(parents=True, exist_ok=True)
        with self.log().open("ab") as log:
            log.write(f"=== {self.name} at {self.ip}, {self.zone or 'no zone'}\n".encode())
            log.flush()
            self.process = await asyncio.create_subprocess_exec(
                *self.command(write), pass_fds=[write], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        os.close(write)
        told = await asyncio.to_thread(self.read_all, read)
        self.pid = json.loads(told)["child-pid"] if told else None
        say(event="started", pod=self.name, ip=self.ip, zone=self.zone)
        probes = asyncio.create_task(self.probe())
        await self.process.wait()
        probes.cancel()
        self.pid = None
        self.started = self.ready = False
        self.ready_since = None

    @staticmethod
    def read_all(descriptor):
        with os.fdopen(descriptor, "rb") as pipe:
            return pipe.read()

    def signal(self, number):
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def end(self, force=False):
        """As when it is deleted."""
        self.terminating = True
        if force:
            self.signal(signal.SIGKILL)
            return
        grace = self.cluster.grace or self.spec["terminationGracePeriodSeconds"]
        deadline = time.monotonic() + grace
        sleep = self.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if self.pid is not None:
            await asyncio.sleep(min(sleep / self.cluster.hurry, grace))
        begun = time.monotonic()
        self.signal(signal.SIGTERM)
        while not self.gone and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        if self.gone:
            say(event="ended", pod=self.name, seconds=round(time.monotonic() - begun, 1))
        else:
            say(event="killed", pod=self.name, after=grace)
            self.signal(signal.SIGKILL)

    # === probes

    async def asks(self, probe):
        port = probe["httpGet"]["port"]
        ports = {port["name"]: port["containerPort"] for port in self.container["ports"]}
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                reader, writer = await asyncio.open_connection(self.ip, ports.get(port, port))
                writer.write(f"GET {probe['httpGet']['path']} HTTP/1.1\r\nHost: {self.ip}\r\nConnection: close\r\n\r\n".encode())
                status = (await reader.readline()).split()
                writer.close()
                return len(status) > 1 and 200 <= int(status[1]) < 400
        except (OSError, TimeoutError, ValueError):
            return False

    async def probe(self):
        startup, readiness, liveness = (self.container[f"{name}Probe"] for name in ("startup", "readiness", "liveness"))
        failures = 0
        while not await self.asks(startup):
            failures += 1
            if failures >= startup.get("failureThreshold", 3):
                say(event="failed", pod=self.name, probe="startup")
                self.signal(signal.SIGKILL)
            await asyncio.sleep(startup.get("periodSeconds", 10))
        self.started = True
        await asyncio.gather(self.ask_readiness(readiness), self.ask_liveness(liveness))

    async def ask_readiness(self, probe):
        failures = 0
        while True:
            if await self.asks(probe):
                failures = 0
                if not self.ready:
                    self.ready, self.ready_since = True, time.monotonic()
                    say(event="ready", pod=self.name)
            else:
                failures += 1
                if self.ready and failures >= probe.get("failureThreshold", 3):
                    self.ready, self.ready_since = False, None
                    say(event="unready", pod=self.name)
            await asyncio.sleep(probe.get("periodSeconds", 10))

    async def ask_liveness(self, probe):
        failures = 0
        while True:
            failures = 0 if await self.asks(probe) else failures + 1
            if failures >= probe.get("failureThreshold", 3):
                say(event="failed", pod=self.name, probe="liveness")
                self.signal(signal.SIGTERM)
                return
            await asyncio.sleep(probe.get("periodSeconds", 10))


class Cluster:
    """The objects, the pods, and who acts on them."""

    def __init__(self, arguments):
        self.image = arguments.image
        self.image_config = json.loads((arguments.image_config).read_text())
        self.secrets = arguments.secrets
        self.dir = arguments.dir.resolve()
        self.hurry = arguments.hurry
        self.zones = arguments.zones.split(",") if arguments.zones else []
        self.pods = {}
        self.volume_zones = {}
        self.addresses = 0
        self.published = []
        self.servers = {}
        self.lost_zones = set()
        self.grace = None
        self.api_dir = arguments.api
        self.api = ApiServer(lambda: self.objects, say)
        self.take(json.loads(arguments.objects.read_text()))

    # === objects

    def take(self, objects):
        self.objects = objects
        self.accounts = {t["metadata"]["name"]: t for t in objects if t["kind"] == "ServiceAccount"}
        sets = [thing for thing in objects if thing["kind"] == "StatefulSet"]
        self.stateful_set = sets[0]
        self.namespace = self.stateful_set["metadata"].get("namespace", "default")
        self.config_maps = {t["metadata"]["name"]: t for t in objects if t["kind"] == "ConfigMap"}
        self.services = {t["metadata"]["name"]: t for t in objects if t["kind"] == "Service"}
        self.budgets = [thing for thing in objects if thing["kind"] == "PodDisruptionBudget"]

    def mounted(self, kind, name):
        directory = self.dir / "mounted" / kind / name
        if kind == "ConfigMap":
            files = {key: text.encode().hex() for key, text in self.config_maps[name]["data"].items()}
        else:
            files = {path.name: path.read_bytes().hex() for path in (self.secrets / name).iterdir()}
        swap_in(directory, files)
        return directory

    def volume(self, claim, ordinal):
        name = f"{claim}-{self.stateful_set['metadata']['name']}-{ordinal}"
        directory = self.dir / "volumes" / name
        directory.mkdir(parents=True, exist_ok=True)
        self.volume_zones.setdefault(ordinal, self.zone_of(ordinal))
        return directory

    def zone_of(self, ordinal):
        """Where a pod's volume is, or else the zone with the fewest pods, as the spread over zones wants it."""
        if not self.zones:
            return ""
        counts = {zone: 0 for zone in self.zones}
        for zone in self.volume_zones.values():
            counts[zone] += 1
        return self.volume_zones.setdefault(ordinal, min(self.zones, key=lambda zone: (counts[zone], zone)))

    def next_address(self):
        self.addresses += 1
        return f"{NETWORK}.{FIRST_POD + self.addresses}"

    # === the controller of StatefulSets

    async def reconcile(self):
        while True:
            spec = self.stateful_set["spec"]
            wanted = range(spec["replicas"])
            for name, pod in [(name, pod) for name, pod in self.pods.items() if pod.gone]:
                del self.pods[name]
                # Before another one begins on it.
                if pod.loses_volume:
                    self.drop_volumes(pod)
                if pod.ordinal not in wanted:
                    self.claims_after(spec, pod)
            present = {pod.ordinal: pod for pod in self.pods.values()}
            for ordinal in wanted:
                if ordinal not in present and self.zone_of(ordinal) not in self.lost_zones:
                    pod = Pod(self, ordinal)
                    self.pods[pod.name] = pod
                    present[ordinal] = pod
            for ordinal, pod in present.items():
                if ordinal not in wanted and not pod.terminating:
                    asyncio.create_task(pod.end())
            if all(ordinal in present for ordinal in wanted):
                self.update(spec, [present[ordinal] for ordinal in wanted])
            await asyncio.sleep(RECONCILE_EVERY)

    def claims_after(self, spec, pod):
        """What becomes of the volumes of a pod that is removed."""
        if spec.get("persistentVolumeClaimRetentionPolicy", {}).get("whenScaled", "Retain") == "Delete":
            self.drop_volumes(pod)

    def drop_volumes(self, pod):
        for directory in (self.dir / "volumes").glob(f"*-{pod.name}"):
            shutil.rmtree(directory)
        self.volume_zones.pop(pod.ordinal, None)

    def update(self, spec, pods):
        """Replaces the last pod that is of an old revision, when all after it are new, and available."""
        newest = digest(spec["template"])
        first = spec.get("updateStrategy", {}).get("rollingUpdate", {}).get("partition", 0)
        for pod in reversed(pods[first:]):
            if pod.terminating:
                return
            if pod.revision != newest:
                asyncio.create_task(pod.end())
                return
            if not self.is_available(pod):
                return

    def is_available(self, pod):
        least = self.stateful_set["spec"].get("minReadySeconds", 0) / self.hurry
        return pod.ready and not pod.terminating and time.monotonic() - pod.ready_since >= least

    # === services and names

    async def publish(self):
        """What services and DNS know of the pods: what was so a moment ago."""
        while True:
            seen = [(pod.name, pod.ip, pod.ready and not pod.terminating) for pod in self.pods.values() if not pod.gone]
            await asyncio.sleep(ENDPOINTS_DELAY)
            self.published = seen

    def addresses_of(self, name):
        """The addresses of a name within the cluster's domain; `None` where there is no such name."""
        parts = name.split(".")
        if parts[-4:] != [self.namespace, *CLUSTER_DOMAIN.split(".")][-4:]:
            return None
        parts = parts[:-4]
        service = self.services.get(parts[-1]) if parts else None
        if service is None or len(parts) > 2:
            return None
        if service["spec"].get("clusterIP") != "None":
            return [self.service_address(parts[-1])] if len(parts) == 1 else None
        hidden = not service["spec"].get("publishNotReadyAddresses")
        pods = {pod: ip for pod, ip, is_ready in self.published if is_ready or not hidden}
        if len(parts) == 1:
            return list(pods.values()) or None
        return [pods[parts[0]]] if parts[0] in pods else None

    def service_address(self, name):
        services = sorted(name for name, service in self.services.items() if service["spec"].get("clusterIP") != "None")
        return f"{NETWORK}.{2 + services.index(name)}"

    async def serve_names(self):
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(lambda: Names(self), local_addr=(GATEWAY, 53))

    async def serve_services(self):
        for name, service in self.services.items():
            if service["spec"].get("clusterIP") == "None":
                continue
            address = self.service_address(name)
            run("ip", "addr", "add", f"{address}/24", "dev", "pods")
            ports = {port["name"]: port["containerPort"] for port in
                     self.stateful_set["spec"]["template"]["spec"]["containers"][0]["ports"]}
            for port in service["spec"]["ports"]:
                target = ports.get(port["targetPort"], port["targetPort"])
                self.servers[address, port["port"]] = await asyncio.start_server(
                    lambda reader, writer, target=target: self.balance(reader, writer, target), address, port["port"])

    async def balance(self, reader, writer, target):
        """One connection, for its whole life, to a pod that is ready when it is made."""
        ready = [ip for _, ip, is_ready in self.published if is_ready]
        theirs = None
        with contextlib.suppress(OSError, TimeoutError):
            if ready:
                async with asyncio.timeout(5):
                    theirs = await asyncio.open_connection(random.choice(ready), target)
        if theirs is None:
            writer.transport.abort()
            return
        for one in (writer, theirs[1]):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.gather(self.pump(reader, theirs[1]), self.pump(theirs[0], writer))
        writer.close()
        theirs[1].close()

    @staticmethod
    async def pump(reader, writer):
        try:
            while data := await reader.read(256 << 10):
                writer.write(data)
                await writer.drain()
            writer.write_eof()
        except (OSError, RuntimeError):
            writer.transport.abort()

    # === commands

    def do_status(self):
        """{"do": "status"}: the pods, and the addresses of services."""
        pods = [{"pod": pod.name, "ip": pod.ip, "ready": pod.ready, "terminating": pod.terminating, "zone": pod.zone,
                 "restarts": pod.restarts, "revision": pod.revision} for pod in self.pods.values() if not pod.gone]
        services = {name: self.service_address(name) for name, service in self.services.items()
                    if service["spec"].get("clusterIP") != "None"}
        replicas = self.stateful_set["spec"]["replicas"]
        newest = digest(self.stateful_set["spec"]["template"])
        live = [pod for pod in self.pods.values() if not pod.gone and not pod.terminating]
        is_settled = len(live) == len(self.pods) == replicas and all(
            pod.revision == newest and self.is_available(pod) for pod in live)
        return {"pods": pods, "services": services, "settled": is_settled, "gateway": GATEWAY}

    def do_roll(self):
        """{"do": "roll"}: as kubectl rollout restart."""
        annotations = self.stateful_set["spec"]["template"]["metadata"].setdefault("annotations", {})
        annotations["restarted"] = str(int(annotations.get("restarted", "0")) + 1)
        return {}

    def do_apply(self, objects):
        """{"do": "apply", "objects": [...]}: as kubectl apply."""
        self.take(objects)
        return {}

    def do_scale(self, replicas):
        """{"do": "scale", "replicas": N}: as kubectl scale."""
        self.stateful_set["spec"]["replicas"] = replicas
        return {}

    def do_kill(self, pod):
        """{"do": "kill", "pod": NAME}: its process ends at once, and is started again where it was."""
        self.pods[pod].signal(signal.SIGKILL)
        return {}

    def do_delete(self, pod, force=False):
        """{"do": "delete", "pod": NAME}: as kubectl delete pod; another one comes, with another address."""
        asyncio.create_task(self.pods[pod].end(force))
        return {}

    def do_outage(self):
        """{"do": "outage"}: the power fails everywhere. All pods come back, with other addresses."""
        for pod in self.pods.values():
            asyncio.create_task(pod.end(force=True))
        return {}

    def do_evict(self, pod):
        """{"do": "evict", "pod": NAME}: as kubectl drain does, as far as the budget allows."""
        for budget in self.budgets:
            healthy = [one for one in self.pods.values() if one.ready and not one.terminating]
            wanted = self.stateful_set["spec"]["replicas"] - budget["spec"]["maxUnavailable"]
            always = budget["spec"].get("unhealthyPodEvictionPolicy") == "AlwaysAllow" and not self.pods[pod].ready
            if len(healthy) <= wanted and not always:
                return {"allowed": False}
        asyncio.create_task(self.pods[pod].end())
        return {"allowed": True}

    async def do_lose_volume(self, pod):
        """{"do": "lose_volume", "pod": NAME}: its machine is gone, and its volume with it."""
        lost = self.pods[pod]
        lost.loses_volume = True
        await lost.end(force=True)
        while lost in self.pods.values():
            await asyncio.sleep(0.05)
        return {}

    def do_volumes(self):
        """{"do": "volumes"}: the claims that there are, by name."""
        return sorted(path.name for path in (self.dir / "volumes").iterdir())

    def do_lose_zone(self, zone):
        """{"do": "lose_zone", "zone": NAME}: its machines are gone, and their volumes can be nowhere else."""
        self.lost_zones.add(zone)
        for pod in self.pods.values():
            if pod.zone == zone:
                asyncio.create_task(pod.end(force=True))
        return {}

    def do_regain_zone(self, zone):
        """{"do": "regain_zone", "zone": NAME}: it is back."""
        self.lost_zones.discard(zone)
        return {}

    def do_grace(self, seconds):
        """{"do": "grace", "seconds": N}: from now on pods have so long to end, whatever they were made with; null: as they were."""
        self.grace = seconds
        return {}

    async def do_api(self, state):
        """{"do": "api", "state": "there" | "slow" | "away"}: the API server."""
        await self.api.stop()
        self.api.is_slow = state == "slow"
        if state != "away":
            await self.api.start(GATEWAY, API_PORT, self.api_dir / "tls.crt", self.api_dir / "tls.key")
        return {}

    def do_forbid(self):
        """{"do": "forbid"}: whoever operates this cluster has taken all RoleBindings out."""
        self.objects = [thing for thing in self.objects if thing["kind"] != "RoleBinding"]
        return {}

    async def do_exec(self, pod, command):
        """{"do": "exec", "pod": NAME, "command": [...]}: as kubectl exec, but for the pod's file system: on its network alone."""
        space = f"{pod}.{self.pods[pod].ip}"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec("nsenter", f"--net=/run/netns/{space}", *command, stdout=pipe, stderr=pipe)
        said, complained = await process.communicate()
        return {"code": process.returncode, "stdout": said.decode(), "stderr": complained.decode()}

    def do_refresh(self):
        """{"do": "refresh"}: the kubelet notices changed Secrets."""
        for directory in (self.dir / "mounted" / "Secret").iterdir():
            self.mounted("Secret", directory.name)
        return {}

    async def commands(self):
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            command = json.loads(line)
            try:
                done = getattr(self, f"do_{command.pop('do')}")(**command)
                say(done=await done if asyncio.iscoroutine(done) else done)
            except Exception as error:  # whoever gave the command has to hear of it
                say(failed=f"{type(error).__name__}: {error}")

    async def act(self):
        # Names of network namespaces are files there; those of others are not ours to see.
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        run("ip", "link", "set", "lo", "up")
        run("ip", "link", "add", "pods", "type", "bridge")
        run("ip", "addr", "add", f"{GATEWAY}/24", "dev", "pods")
        run("ip", "link", "set", "pods", "up")
        await self.serve_names()
        await self.serve_services()
        await self.do_api("there")
        acting = [asyncio.create_task(self.reconcile()), asyncio.create_task(self.publish())]
        say(event="up")
        await self.commands()
        for task in acting:
            task.cancel()
        for pod in self.pods.values():
            pod.signal(signal.SIGKILL)
        while not all(pod.gone for pod in self.pods.values()):
            for pod in self.pods.values():
                pod.terminating = True
            await asyncio.sleep(0.02)


class Names(asyncio.DatagramProtocol):
    """The cluster's DNS: addresses of IPv4 for names of pods and services, and that there is nothing else."""

    def __init__(self, cluster):
        self.cluster = cluster

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        labels, at = [], 12
        while data[at]:
            labels.append(data[at + 1:at + 1 + data[at]].decode())
            at += data[at] + 1
        question, kind = data[12:at + 5], struct.unpack(">H", data[at + 1:at + 3])[0]
        found = self.cluster.addresses_of(".".join(labels).lower())
        answers = [socket.inet_aton(address) for address in found or []] if kind == 1 else []
        # Authoritative, recursion available; 3 is "there is no such name".
        flags = 0x8580 | (3 if found is None else 0)
        head = data[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0)
        records = b"".join(b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + address for address in answers)
        self.transport.sendto(head + question + records, peer)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=Path, required=True, help="what was rendered, as JSON")
    parser.add_argument("--image", type=Path, required=True, help="what is in the image (deploy/oci-image --root)")
    parser.add_argument("--image-config", type=Path, required=True, help="its configuration: Env, Entrypoint, WorkingDir, Cmd")
    parser.add_argument("--secrets", type=Path, required=True, help="DIR/<name>/<key> for each Secret")
    parser.add_argument("--api", type=Path, required=True, help="what the API server shows: tls.crt, tls.key, ca.crt")
    parser.add_argument("--dir", type=Path, required=True, help="for volumes and logs")
    parser.add_argument("--zones", default="", help="the zones that there are, with commas between")
    parser.add_argument("--hurry", type=float, default=1, help="divides the times in which nothing happens by design")
    asyncio.run(Cluster(parser.parse_args()).act())


if __name__ == "__main__":
    main()
