"""The API server of the emulator: the few calls that pods make, over TLS, for who has a token and as far as the objects' own
Roles and RoleBindings let them."""

import asyncio
import contextlib
import json
import os
import ssl


class ApiServer:
    """`objects()` are those that there are now, `told` is called with each answer."""

    def __init__(self, objects, told):
        self.objects = objects
        self.told = told
        # Who each token stands for: namespace, service account, pod.
        self.tokens = {}
        self.server = None
        self.is_slow = False

    def issue(self, namespace, account, pod):
        token = os.urandom(16).hex()
        self.tokens[token] = (namespace, account, pod)
        return token

    def revoke(self, token):
        self.tokens.pop(token, None)

    async def start(self, address, port, certificate, key):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self.server = await asyncio.start_server(self.serve, address, port, ssl=context)

    async def stop(self):
        if self.server is not None:
            self.server.close()
            self.server = None

    async def serve(self, reader, writer):
        with contextlib.suppress(OSError, ValueError, asyncio.IncompleteReadError, ssl.SSLError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
            while self.is_slow:
                await asyncio.sleep(0.1)
            code, answer = self.answer(method, path, headers.get("authorization", ""))
            body = json.dumps(answer).encode()
            writer.write(f"HTTP/1.1 {code} .\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode())
            writer.write(body)
            await writer.drain()
        writer.close()

    def answer(self, method, path, authorization):
        scheme, _, token = authorization.partition(" ")
        who = self.tokens.get(token) if scheme == "Bearer" else None
        code, answer = self.decide(method, path, who)
        self.told(event="asked", pod=who[2] if who else None, method=method, path=path, code=code)
        return code, answer

    def decide(self, method, path, who):
        if who is None:
            return failure(401, "Unauthorized", "Unauthorized")
        parts = path.partition("?")[0].strip("/").split("/")
        if len(parts) not in (6, 7) or parts[0] != "apis" or parts[3] != "namespaces":
            return failure(403, "Forbidden", f"{path} is forbidden")
        _, group, version, _, namespace, resource, *name = parts
        name = name[0] if name else None
        verb = {"GET": "get" if name else "list", "DELETE": "delete", "POST": "create", "PUT": "update"}.get(method, "patch")
        user = f"system:serviceaccount:{who[0]}:{who[1]}"
        if not self.allows(who, verb, group, resource, namespace, name):
            message = f'{resource}.{group} "{name}" is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group ' \
                      f'"{group}" in the namespace "{namespace}"'
            return failure(403, "Forbidden", message)
        for thing in self.objects():
            if thing["apiVersion"] == f"{group}/{version}" and thing["kind"].lower() + "s" == resource \
                    and thing["metadata"]["name"] == name and thing["metadata"].get("namespace") == namespace:
                return 200, thing
        return failure(404, "NotFound", f'{resource}.{group} "{name}" not found')

    def allows(self, who, verb, group, resource, namespace, name):
        objects = [thing for thing in self.objects() if thing["metadata"].get("namespace") == namespace]
        roles = {thing["metadata"]["name"]: thing for thing in objects if thing["kind"] == "Role"}
        for binding in (thing for thing in objects if thing["kind"] == "RoleBinding"):
            is_meant = any(subject["kind"] == "ServiceAccount" and (subject.get("namespace"), subject["name"]) == who[:2]
                           for subject in binding.get("subjects", []))
            role = roles.get(binding["roleRef"]["name"]) if binding["roleRef"]["kind"] == "Role" else None
            for rule in role["rules"] if is_meant and role else []:
                has = lambda key, value: value in rule.get(key, []) or "*" in rule.get(key, [])
                is_named = "resourceNames" not in rule or name in rule["resourceNames"]
                if has("verbs", verb) and has("apiGroups", group) and has("resources", resource) and is_named:
                    return True
        return False


def failure(code, reason, message):
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure"}
    return code, {**status, "message": message, "reason": reason, "code": code}
