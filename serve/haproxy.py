"""HAProxy's configuration, and all that it reads beside it."""

from __future__ import annotations

import json
import os
from pathlib import Path

SLOTS = 20  # gateways a node, at most: twice http.gateways' most, in a roll-out, and some that finish long streams
ERRORS = {
    400: ("BadRequest", "the request is no sound HTTP/1.1, or its headers are too many or too long"),
    403: ("Forbidden", "the request is not allowed"),
    408: ("RequestTimeout", "the request did not come in time; send it faster"),
    429: ("Overloaded", "no gateway is up; try again after the time in Retry-After"),
    500: ("InternalError", "the request could not be passed on"),
    502: ("Unavailable", "the gateway went away; send the request again"),
    504: ("Timeout", "no answer in time"),
}


def configuration(folder: Path, *, descriptor: int, certificate: str | None, max_connections: int = 8192) -> str:
    """HAProxy's configuration; it inherits the listening socket as `descriptor`. `folder` has the gateways' sockets,
    and HAProxy's own answers."""
    tls = f" ssl crt {certificate} alpn h2,http/1.1 ssl-min-ver TLSv1.2" if certificate else ""
    errors = "\n".join(f"    errorfile {status} {folder}/{status}.http" for status in ERRORS if status != 429)
    # A place that nobody has taken would get requests until it has failed its first check: see Front._admit.
    taken = {slot for slot in range(SLOTS) if (folder / f"g{slot}").exists()}
    servers = "\n".join(
        f"    server g{slot} unix@{folder}/g{slot}{'' if slot in taken else ' disabled'}" for slot in range(SLOTS)
    )
    return f"""global
    maxconn {max_connections}
    nbthread {min(4, os.cpu_count() or 1)}
    tune.bufsize 65536
    stats socket {folder}/front.sock mode 600 level admin
    lua-load {folder}/lease.lua
defaults
    mode http
    timeout connect 2s
    # A request's headers, and as much of its body as is waited for (http-buffer-request), have so long to come.
    timeout http-request 15s
    timeout http-keep-alive 75s
    # Silence of a client in the midst of a longer body, or that does not read its answer.
    timeout client 60s
    # The gateway ends what takes too long, by the model's own limit.
    timeout server 86400s
    timeout queue 10s
    timeout check 2s
    option http-buffer-request
    # A client that is gone is told of to the gateway, which stops the replica's work.
    option abortonclose
    option http-no-delay
    option redispatch 1
    retries 3
    # A gateway that died before it answered: another one gets the request, if all of it is still here.
    retry-on conn-failure empty-response
    errorfile 503 {folder}/429.http
{errors}
frontend clients
    bind fd@{descriptor}{tls}
    http-request del-header x-forwarded-for
    option forwardfor
    http-request set-header x-forwarded-proto {"https" if certificate else "http"}
    http-request disable-l7-retry if {{ req.hdr(x-shoal-retry) -i never }}
    http-request disable-l7-retry unless {{ path,url_dec,concat(/) -m beg -f {folder}/retried.lst }}
    acl up nbsrv(gateways) ge 1
    http-request return status 200 content-type text/plain string success if {{ path /-/healthz }} up
    default_backend gateways
backend gateways
    balance leastconn
    http-reuse always
    option httpchk GET /-/ping
    default-server check inter 500ms fastinter 100ms downinter 100ms fall 1 rise 1
    default-server observe layer4 error-limit 1 on-error mark-down
{servers}
"""


def error_file(status: int, kind: str, message: str) -> str:
    """An answer of HAProxy's own, whole, as an `errorfile` is."""
    body = json.dumps({"error": message, "error_type": kind})
    names = {400: "Bad Request", 403: "Forbidden", 408: "Request Timeout", 429: "Too Many Requests"}
    retry = "Retry-After: 1\r\n" if status == 429 else ""
    return (
        f"HTTP/1.1 {status} {names.get(status, 'Error')}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nCache-Control: no-cache\r\n{retry}Connection: close\r\n\r\n{body}"
    )


# Run by HAProxy, every few seconds.
LEASE = """core.register_task(function()
  while true do
    core.sleep(5)
    local file = io.open("{file}")
    local at = file and tonumber(file:read("*l") or "") or 0
    if file then file:close() end
    if os.time() - at > {seconds} then os.exit(0) end
  end
end)
"""
