"""What the policies of a bucket allow, evaluated as AWS documents it, for what Pelagos sends.

No store that these tests can start knows the condition key `s3:if-none-match`; Amazon S3 does.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelagos.infra.clusters.schema import RayConfig
from pelagos.infra.services.render import render
from pelagos.infra.storage.local import open_store
from pelagos.jobs.submission.records.record import RunRecord

STORAGE = "s3://science/teams/pelagos"
Policy = dict[str, Any]


def policies(storage: str = STORAGE) -> tuple[Policy, Policy]:
    """The role's policy and the bucket's."""
    config = RayConfig(kind="ray", address="https://head:8265", storage=storage)
    files = render("bucket-policy", "lab", config)
    return json.loads(files["role-policy.json"]), json.loads(files["bucket-policy.json"])


@dataclass(frozen=True)
class Request:
    """An action on a resource, with the condition keys that S3 derives from the request."""

    action: str
    resource: str
    keys: dict[str, str] = field(default_factory=dict)


def like(pattern: str, text: str) -> bool:
    """Whether a pattern with `*`, `?` and the variables `${*}`, `${?}`, `${$}` matches all of a text."""
    parts = re.findall(r"\$\{[*?$]\}|.", pattern, re.DOTALL)
    known = {"*": ".*", "?": "."}
    expression = "".join(
        re.escape(p[2]) if len(p) == 4 else known.get(p, re.escape(p)) for p in parts
    )
    return re.fullmatch(expression, text, re.DOTALL) is not None


def holds(condition: dict[str, dict[str, Any]], keys: dict[str, str]) -> bool:
    """All operators and keys of a condition hold; of a key's values one is enough."""
    for operator, tests in condition.items():
        for key, wanted in tests.items():
            values = wanted if isinstance(wanted, list) else [wanted]
            if operator == "Null":
                found = str(key not in keys).lower() in values
            elif operator == "StringLike":
                found = key in keys and any(like(value, keys[key]) for value in values)
            else:
                raise NotImplementedError(operator)
            if not found:
                return False
    return True


def applies(statement: dict[str, Any], request: Request) -> bool:
    resources = statement["Resource"]
    return (
        request.action in statement["Action"]
        and any(like(r, request.resource) for r in [resources])
        and holds(statement.get("Condition", {}), request.keys)
    )


def is_allowed(request: Request, storage: str = STORAGE, administrator: bool = False) -> bool:
    """An explicit denial of any policy wins; otherwise one must allow. An administrator's does."""
    statements = [s for policy in policies(storage) for s in policy["Statement"]]
    found = {s["Effect"] for s in statements if applies(s, request)}
    return "Deny" not in found and (administrator or "Allow" in found)


EVENT = "arn:aws:s3:::science/teams/pelagos/records/run/events/00000003.json"
CREATE = {"s3:if-none-match": "*"}


@pytest.mark.parametrize("administrator", [False, True])
def test_an_event_is_created_once_and_stays(administrator: bool) -> None:
    def allowed(action: str, **keys: str) -> bool:
        found = {k.replace("_", "-").replace("s3-", "s3:"): v for k, v in keys.items()}
        return is_allowed(Request(action, EVENT, found), administrator=administrator)

    assert allowed("s3:PutObject", s3_if_none_match="*")
    assert allowed("s3:GetObject")
    assert not allowed("s3:PutObject")
    # an overwrite on condition of what is there, and one that multipart uploads and copies make
    assert not allowed("s3:PutObject", s3_if_match="abc")
    assert not allowed("s3:DeleteObject")
    assert not allowed("s3:DeleteObjectVersion")


def test_the_role_reaches_its_prefix_alone() -> None:
    base = "arn:aws:s3:::science"
    for part in ("runs/r/files/a", "logs/r/output.log", "checkpoints/r/x", "code/d", "checks/x"):
        for action in ("s3:PutObject", "s3:GetObject", "s3:DeleteObject"):
            assert is_allowed(Request(action, f"{base}/teams/pelagos/{part}"))
            assert not is_allowed(Request(action, f"{base}/teams/other/{part}"))
            assert not is_allowed(Request(action, f"{base}/teams/pelagos-2/{part}"))
    for prefix, allowed in (("teams/pelagos/runs/", True), ("teams/other/", False), ("", False)):
        assert is_allowed(Request("s3:ListBucket", base, {"s3:prefix": prefix})) is allowed
    assert not is_allowed(Request("s3:PutBucketPolicy", base))
    for statement in policies()[1]["Statement"]:  # a bucket's policy says for whom, and only denies
        assert (statement["Effect"], statement["Principal"]) == ("Deny", "*")
    for statement in policies()[0]["Statement"]:
        assert "Principal" not in statement
        assert not any("*" in action for action in statement["Action"])


@given(st.text(st.sampled_from("ab*?${}\"\\'/ é"), min_size=1, max_size=8), st.data())
def test_a_prefix_is_no_pattern(prefix: str, data: st.DataObject) -> None:
    prefix = f"p{prefix}".rstrip("/")
    other = data.draw(st.text(st.sampled_from("ab*?${}/"), max_size=8).map(lambda t: f"p{t}"))
    key = data.draw(st.sampled_from(["/runs/x", "/checkpoints/x"]))
    storage = f"s3://science/{prefix}"
    mine = Request("s3:GetObject", f"arn:aws:s3:::science/{prefix}{key}")
    assert is_allowed(mine, storage)
    theirs = Request("s3:GetObject", f"arn:aws:s3:::science/{other}{key}")
    assert is_allowed(theirs, storage) == f"{other}{key}".startswith(f"{prefix}/")


def test_storage_that_is_no_bucket_has_no_policy() -> None:
    for storage in ("/scratch", "s3://science", "s3://sci*nce/x", "gs://b/p"):
        with pytest.raises(ValueError, match="is not s3://bucket/prefix"):
            policies(storage)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Request]]]:
    """An endpoint that takes every object, and the requests that it was sent, as S3 judges them."""
    requests: list[Request] = []
    actions = {"PUT": "s3:PutObject", "POST": "s3:PutObject", "DELETE": "s3:DeleteObject"}

    class Store(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _taken(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            resource = f"arn:aws:s3::::{path}".replace(":::/", "::")
            header = self.headers.get("If-None-Match")
            keys = {} if header is None else {"s3:if-none-match": header}
            if self.command in actions:
                requests.append(Request(actions[self.command], resource, keys))
            self.send_response(404 if self.command in ("GET", "HEAD") else 200)
            self.send_header("ETag", '"0123456789abcdef0123456789abcdef"')
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST = do_DELETE = do_GET = do_HEAD = _taken

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
        server.shutdown()


def test_what_pelagos_sends_is_what_the_policy_lets_through(
    sent: tuple[str, list[Request]],
) -> None:
    endpoint, requests = sent
    store = open_store(STORAGE, endpoint, "us-east-1")
    RunRecord(store, "run").claim("name: run\n", cluster="lab", priority=0, retries=3, after=[])
    assert [r.action for r in requests] == ["s3:PutObject"] * 2
    assert "/records/run/events/00000000.json" in requests[0].resource
    assert requests[1].resource.endswith("/records/run/summary.json")  # for lists; is replaced
    assert all(is_allowed(request) for request in requests)
    store.write("runs/run/files/a", b"content")
    assert is_allowed(requests[-1])
    store.write("records/run/events/00000000.json", b"forged")
    assert requests[-1].resource == requests[0].resource
    assert not is_allowed(requests[-1])
