"""A real Kubernetes API server on this machine: etcd and kube-apiserver, without nodes or operators.

It stores, validates and authorises as any other does; nothing runs the pods. Debian has etcd as a
package and the API server as source alone, so that is compiled once (about ten minutes on two cores)
and kept in PELAGOS_TEST_PROGRAMS (default `~/.cache/pelagos-tests`).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

START_TIMEOUT_SECONDS = 120
SCHEMA = Path(__file__).parents[1] / "fixtures" / "rayjob-v1-schema.json.gz"
ADMIN, GUEST = "admin-token", "guest-token"
SOURCES = "deb-src http://deb.debian.org/debian bookworm main\n"
BUILD = """\
set -eu
cd "$1"
mkdir -p lists/partial
options="-o Dir::Etc::sourcelist=$1/sources.list -o Dir::Etc::sourceparts=-"
options="$options -o Dir::State::lists=$1/lists"
apt-get $options update
apt-get $options source --download-only kubernetes
apt-get download golang-1.19-go golang-1.19-src \\
    golang-github-modern-go-reflect2-dev golang-github-json-iterator-go-dev
for package in golang-*.deb; do dpkg -x "$package" go; done
tar xf kubernetes_*.orig.tar.gz
# the copies in the source package iterate over maps in a way that crashes under Go 1.18 and newer
sources=$(echo "$1"/kubernetes-*/)
for module in modern-go/reflect2 json-iterator/go; do
  rm -r "$sources/vendor/github.com/$module"
  cp -r go/usr/share/gocode/src/github.com/$module "$sources/vendor/github.com/$module"
done
export GOROOT=$1/go/usr/lib/go-1.19 GO111MODULE=off CGO_ENABLED=0 GOCACHE=$1/cache
export PATH=$GOROOT/bin:$PATH
cd "$sources"
export GOPATH=$PWD/.go
mkdir -p .go/src/k8s.io
ln -s ../../.. .go/src/k8s.io/kubernetes
cd .go/src/k8s.io/kubernetes
# the one generated file that the source package leaves out
go build -o "$1/openapi-gen" ./vendor/k8s.io/kube-openapi/cmd/openapi-gen
tagged() { grep -rl --include=*.go '+k8s:openapi-gen=' "$@" | xargs -n1 dirname | sort -u; }
staged() { for name in "$@"; do echo "staging/src/k8s.io/$name"; done; }
packages=$(
  tagged $(staged api apimachinery apiextensions-apiserver/pkg/apis kube-aggregator/pkg/apis \\
      component-base metrics apiserver client-go cloud-provider kube-controller-manager \\
      kube-scheduler kube-proxy kubelet) | sed 's#staging/src/#k8s.io/kubernetes/vendor/#'
  tagged pkg cmd | sed 's#^#k8s.io/kubernetes/#'
)
"$1/openapi-gen" -O zz_generated.openapi -r "$1/violations" --output-base "$GOPATH/src" \\
    --go-header-file hack/boilerplate/boilerplate.generatego.txt \\
    -i "$(echo "$packages" | paste -sd,)" -p k8s.io/kubernetes/pkg/generated/openapi
go build -o "$1/kube-apiserver" ./cmd/kube-apiserver
"""


def install(scratch: Path) -> str:
    """See that etcd and the API server are there; return why they cannot be, or nothing."""
    if shutil.which("kubectl") is None:
        return "needs kubectl"
    if api_server().exists() and shutil.which("etcd"):
        return ""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return "needs etcd and kube-apiserver: on Debian, as root, they are installed and compiled"
    if shutil.which("etcd") is None:
        done = subprocess.run(
            ["apt-get", "install", "--yes", "--no-install-recommends", "etcd-server"],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            return f"apt-get install etcd-server failed: {done.stderr.strip()[-300:]}"
    return "" if api_server().exists() else _build(scratch)


def api_server() -> Path:
    default = Path.home() / ".cache" / "pelagos-tests"
    return Path(os.environ.get("PELAGOS_TEST_PROGRAMS", default)) / "kube-apiserver"


def _build(scratch: Path) -> str:
    (scratch / "sources.list").write_text(SOURCES)
    done = subprocess.run(
        ["bash", "-c", BUILD, "build", str(scratch)], capture_output=True, text=True
    )
    if done.returncode:
        return f"kube-apiserver could not be compiled: {done.stderr.strip()[-300:]}"
    api_server().parent.mkdir(parents=True, exist_ok=True)
    part = api_server().with_suffix(".part")
    shutil.copy2(scratch / "kube-apiserver", part)
    part.rename(api_server())
    return ""


@dataclass(frozen=True)
class KubernetesServer:
    """A server whose kubeconfig has a context for the administrator and one for a guest."""

    kubeconfig: Path
    log: Path

    def kubectl(self, *command: str, stdin: str | None = None) -> str:
        done = subprocess.run(
            ["kubectl", "--context=admin", *command],
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
            input=stdin,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@contextlib.contextmanager
def kubernetes(folder: Path, ports: list[int]) -> Iterator[KubernetesServer]:
    """Run the server with KubeRay's RayJob as a custom resource and the namespace `science`."""
    etcd_port, peer_port, port = ports
    etcd = f"http://127.0.0.1:{etcd_port}"
    subprocess.run(
        ["openssl", "genrsa", "-out", str(folder / "accounts.key"), "2048"],
        check=True,
        capture_output=True,
    )
    (folder / "tokens.csv").write_text(
        f"{ADMIN},admin,1,system:masters\n{GUEST},guest,2,system:nobodies\n"
    )
    log = folder / "kube-apiserver.log"
    processes = []
    try:
        processes.append(
            _start(
                folder / "etcd.log",
                "etcd",
                f"--data-dir={folder / 'etcd'}",
                f"--listen-client-urls={etcd}",
                f"--advertise-client-urls={etcd}",
                f"--listen-peer-urls=http://127.0.0.1:{peer_port}",
                "--unsafe-no-fsync",
            )
        )
        processes.append(
            _start(
                log,
                str(api_server()),
                f"--etcd-servers={etcd}",
                "--bind-address=127.0.0.1",
                "--advertise-address=127.0.0.1",
                f"--secure-port={port}",
                f"--cert-dir={folder / 'certificates'}",
                "--authorization-mode=RBAC",
                "--anonymous-auth=false",
                f"--token-auth-file={folder / 'tokens.csv'}",
                "--service-account-issuer=https://kubernetes.default.svc",
                f"--service-account-key-file={folder / 'accounts.key'}",
                f"--service-account-signing-key-file={folder / 'accounts.key'}",
                "--disable-admission-plugins=ServiceAccount",
                "--endpoint-reconciler-type=none",
            )
        )
        address = f"https://127.0.0.1:{port}"
        certificate = folder / "certificates" / "apiserver.crt"
        _wait_until_ready(address, certificate, processes[-1], log)
        kubeconfig = _write_kubeconfig(folder / "kubeconfig", address, certificate)
        server = KubernetesServer(kubeconfig, log)
        server.kubectl("create", "namespace", "science")
        # newer words of the schema, which this server leaves out, are no errors
        server.kubectl(
            "apply", "--filename=-", "--validate=false", stdin=json.dumps(ray_job_definition())
        )
        _wait_for_ray_jobs(server)
        yield server
    finally:
        for process in reversed(processes):
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def _wait_for_ray_jobs(server: KubernetesServer) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(AssertionError):
            server.kubectl("get", "rayjobs.ray.io", "--all-namespaces")
            return
        time.sleep(0.5)
    raise RuntimeError(f"RayJobs are not served: {server.log.read_text()[-2000:]}")


def ray_job_definition() -> dict[str, Any]:
    """KubeRay's custom resource, with its published schema."""
    schema = _without_empty_defaults(json.loads(gzip.decompress(SCHEMA.read_bytes())))
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema["properties"]["status"] = free
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rayjobs.ray.io"},
        "spec": {
            "group": "ray.io",
            "scope": "Namespaced",
            "names": {
                "plural": "rayjobs",
                "singular": "rayjob",
                "kind": "RayJob",
                "listKind": "RayJobList",
            },
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                    "subresources": {"status": {}},
                }
            ],
        },
    }


def _without_empty_defaults(node: Any) -> Any:
    """Servers as old as Debian's read `default: ""` as null and refuse it, also for keys of lists."""
    if isinstance(node, list):
        return [_without_empty_defaults(item) for item in node]
    if not isinstance(node, dict):
        return node
    left_out = {"default"} if node.get("default") == "" else set()
    for key in node.get("x-kubernetes-list-map-keys", ()):
        if node["items"]["properties"][key].get("default") == "":
            left_out = {"x-kubernetes-list-map-keys", "x-kubernetes-list-type"}
    return {k: _without_empty_defaults(v) for k, v in node.items() if k not in left_out}


def _write_kubeconfig(path: Path, address: str, certificate: Path) -> Path:
    cluster = {"server": address, "certificate-authority": str(certificate)}
    users = {"admin": ADMIN, "guest": GUEST, "stranger": "no-such-token"}
    path.touch(mode=0o600)
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "test", "cluster": cluster}],
                "users": [{"name": n, "user": {"token": t}} for n, t in users.items()],
                "contexts": [{"name": n, "context": {"cluster": "test", "user": n}} for n in users],
                "current-context": "admin",
            }
        )
    )
    return path


def _start(log: Path, *command: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)


def _wait_until_ready(
    address: str, certificate: Path, process: subprocess.Popen[bytes], log: Path
) -> None:
    request = urllib.request.Request(
        f"{address}/readyz", headers={"Authorization": f"Bearer {ADMIN}"}
    )
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, OSError):
            context = ssl.create_default_context(cafile=str(certificate))
            with urllib.request.urlopen(request, context=context, timeout=5):
                return
        time.sleep(0.5)
    raise RuntimeError(f"kube-apiserver did not come up: {log.read_text()[-2000:]}")
