"""Every port that an embedded cluster with a model opens, tried without a credential. With -s the table is printed."""

import http.client
import os
import socket
import stat

import grpc
import httpx
import pytest
import serve_tiny as tiny

from cluster import connect, embedded, ports, processes
from cluster.spec import parse
from serve import run

pytestmark = pytest.mark.slow
pick = ports.pick
# Real methods of the services that Ray has behind its ports, one of which each of them knows.
GRPC_METHODS = (
    "/ray.serve.ASGIService/HandleRequest",  # Serve, between deployments
    "/ray.rpc.NodeInfoGcsService/GetAllNodeInfo",
    "/ray.rpc.NodeManagerService/GetNodeStats",
    "/ray.rpc.ObjectManagerService/FreeObjects",
    "/ray.rpc.CoreWorkerService/GetCoreWorkerStats",
    "/ray.rpc.LogService/ListLogs",
)


@pytest.fixture(scope="module")
def taken():
    """A port that another program took after the cluster's start had picked it for the dashboard."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", ports.pick(1)[0]))
        other.listen()
        yield other.getsockname()[1]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory, taken):
    home = tmp_path_factory.mktemp("ports")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    patch.setattr(ports, "pick", lambda count: [taken, *pick(count - 1)])
    with connect.session() as found:
        folder = tiny.table(home / "flowers")
        text = f"name: flowers\ntask: tabular-classification\nmodel: {folder}\nserve: {{num_cpus: 0.5}}"
        run.deploy(parse(text), model_uri="models:/flowers/1", folder=folder, cluster=found)
        yield found
    patch.undo()


def listening(cluster) -> dict[tuple[str, int], str]:
    """(Address, port) of every TCP socket that listens, and who has it."""
    found = {}
    for process in processes.members(embedded.scratch_folder(cluster.home)):
        for one in process.net_connections(kind="inet"):
            if one.status == "LISTEN":
                title = " ".join(process.cmdline()).split(" -B ")[0].split(" (")[0].strip()
                name = title if title.startswith("ray") else process.name()
                found[one.laddr.ip.removeprefix("::ffff:"), one.laddr.port] = name
    return found


def over_http(port: int) -> str:
    """What an HTTP client without a credential is answered; "" where it is no HTTP."""
    said = []
    for method, path in (("GET", "/api/version"), ("POST", "/api/jobs/"), ("GET", "/")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request(method, path, body=b"{}" if method == "POST" else None)
            said.append(f"{method} {path} {connection.getresponse().status}")
        except (http.client.HTTPException, OSError):
            return ""
        finally:
            connection.close()
    return ", ".join(said)


def over_grpc(port: int, token: str = "") -> set[str]:
    """The status codes that a gRPC client is answered with by the methods that are there."""
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    codes = set()
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method in GRPC_METHODS:
            call = channel.unary_unary(method, request_serializer=bytes, response_deserializer=bytes)
            try:
                call(b"", timeout=3, metadata=metadata)
                codes.add("OK")
            except grpc.RpcError as error:
                codes.add(error.code().name)  # type: ignore[attr-defined]  # of the client's errors
    return codes - {"UNIMPLEMENTED"}


def test_each_port_is_on_the_loopback_or_refuses_strangers(cluster):
    """Beyond the loopback there are only the ports that Serve's replicas open for each other, which want Ray's token;
    on it, whatever can run code or tell of a secret wants it too."""
    found = listening(cluster)
    rows, open_to_others = [], []
    for (host, port), who in sorted(found.items(), key=lambda row: (row[0][0], row[1])):
        http_said = over_http(port)
        codes = set() if http_said else over_grpc(port)
        rows.append(f"{host:<12} {port:<6} {who:<34} {http_said or ' '.join(sorted(codes))}")
        if host not in ("127.0.0.1", "::1"):
            open_to_others.append(who)
            assert not http_said, rows[-1]
            assert codes == {"UNAUTHENTICATED"}, rows[-1]
        elif codes:
            assert codes <= {"UNAUTHENTICATED", "UNAVAILABLE", "DEADLINE_EXCEEDED"}, rows[-1]
        if port == int(cluster.dashboard_url.rpartition(":")[2]):
            assert "POST /api/jobs/ 401" in http_said, rows[-1]
    print("\n" + "\n".join(rows))
    assert set(open_to_others) <= {"ray::ServeReplica:flowers:Model", "ray::ServeReplica:_gateway:Gateway"}
    assert (cluster.listen["host"], cluster.listen["port"]) in found


def test_the_dashboard_takes_another_port_where_its_own_was_taken_meanwhile(cluster, taken):
    port = int(cluster.dashboard_url.rpartition(":")[2])
    assert taken < port <= taken + 50
    headers = {"authorization": f"Bearer {cluster.token}"}
    assert httpx.get(f"{cluster.dashboard_url}/api/version", headers=headers).json()["ray_version"]


def test_the_replicas_port_lets_in_who_has_the_token_and_nobody_else(cluster):
    """The probe above could fail for another reason than the missing token: with it the same call is heard."""
    open_to_others = [port for (host, port), who in listening(cluster).items() if host == "::" and "flowers" in who]
    assert open_to_others
    for port in open_to_others:
        assert over_grpc(port) == {"UNAUTHENTICATED"}
        assert over_grpc(port, "x" * 64) == {"UNAUTHENTICATED"}
        assert "UNAUTHENTICATED" not in over_grpc(port, cluster.token)


def test_the_sockets_of_the_data_plane_are_this_users_alone(cluster):
    root = embedded.scratch_folder(cluster.home)
    sockets = [path for path in root.rglob("*") if stat.S_ISSOCK(path.lstat().st_mode)]
    assert {path.name for path in sockets} >= {"g0", "g1", "front.sock"}
    assert any(path.parent.name == "s" and path.name.startswith("r") for path in sockets)  # the replica's
    assert stat.S_IMODE(root.lstat().st_mode) == 0o700
    assert root.lstat().st_uid == os.getuid()
    # And within: who asks the replica itself, past the gateway, shows the secret of the data plane.
    replica = next(path for path in sockets if path.parent.name == "s" and path.name.startswith("r"))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(replica)), base_url="http://replica") as client:
        assert client.post("/", json={}).status_code == 401
        assert client.post("/", json={}, headers={"x-shoal-secret": "x" * 64}).status_code == 401
    with socket.socket(socket.AF_UNIX) as own:
        own.connect(str(root / "s" / "front.sock"))  # HAProxy's own control: in the folder, and mode 600
    assert stat.S_IMODE((root / "s" / "front.sock").lstat().st_mode) == 0o600
