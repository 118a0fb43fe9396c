"""What HAProxy before the gateways is told: its configuration, the limits on what clients send, and its own answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

SLOTS = 20  # gateways a node, at most: twice http.gateways' most, in a roll-out, and some that finish long streams
MAX_CONNECTIONS = 8192
MAX_URL = 8192
METHODS = "GET HEAD POST OPTIONS PUT PATCH DELETE"  # the gateway says of the last four what it takes instead
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32_768
_ERRORS = {
    400: ("BadRequest", "the request is no sound HTTP/1.1"),
    403: ("Forbidden", "the request is not allowed"),
    405: ("MethodNotAllowed", "this method is not taken here; send a GET or a POST"),
    408: ("RequestTimeout", "the request did not come in time (http.send_timeout_s in cluster.yaml); send it faster"),
    414: ("TooLong", f"the address is longer than {MAX_URL} characters; send parameters in the body"),
    429: ("Overloaded", "no gateway is up; try again after the time in Retry-After"),
    431: ("TooLong", f"more than {MAX_HEADERS} headers, or more than {MAX_HEADER_BYTES} bytes of them"),
    500: ("InternalError", "the request could not be passed on"),
    502: ("Unavailable", "the gateway went away; send the request again"),
    504: ("Timeout", "no answer in time"),
}
# Those that HAProxy gives by itself, by the status that it would have; the others are rules below.
_OWN = (400, 403, 408, 500, 502, 504)


def configuration(
    folder: Path,
    *,
    descriptor: int,
    certificate: str | None,
    send_timeout_s: float = 15,
    max_connections: int = MAX_CONNECTIONS,
) -> str:
    """HAProxy's configuration; it inherits the listening socket as `descriptor`. `folder` has the gateways' sockets,
    and HAProxy's own answers (`answers`)."""
    tls = f" ssl crt {certificate} alpn h2,http/1.1 ssl-min-ver TLSv1.2" if certificate else ""
    errors = "\n".join(
        f"    http-error status {status} content-type application/json lf-file {folder}/{status}.json"
        for status in _OWN
    )
    # A place that nobody has taken would get requests until it has failed its first check: see Front._admit.
    taken = {slot for slot in range(SLOTS) if (folder / f"g{slot}").exists()}
    servers = "\n".join(
        f"    server g{slot} unix@{folder}/g{slot}{'' if slot in taken else ' disabled'}" for slot in range(SLOTS)
    )

    def answer(status: int, more: str = "") -> str:
        return f"return status {status} content-type application/json lf-file {folder}/{status}.json{more}"

    return f"""global
    maxconn {max_connections}
    nbthread {min(4, os.cpu_count() or 1)}
    tune.bufsize 65536
    # More than are taken, so that the answer to too many is ours; beyond this, and beyond a buffer, HAProxy has a 400
    # of its own.
    tune.http.maxhdr 1000
    stats socket {folder}/front.sock mode 600 level admin
    lua-load {folder}/lease.lua
defaults
    mode http
    timeout connect 2s
    # A request's headers have so long to come, and then what is waited for of its body; see serve.gateway.pace.
    timeout http-request {round(send_timeout_s * 1000)}ms
    timeout http-keep-alive 75s
    # Silence of a client in the midst of a longer body, or that does not read its answer.
    timeout client 60s
    # The gateway ends what takes too long, by the model's own limit.
    timeout server 86400s
    timeout queue 10s
    timeout check 2s
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
    # OpenAI's clients read another form of error than those of Hugging Face: see `answers`.
    acl openai path_beg /v1/
    acl openai path_sub /v1/
    http-request set-var-fmt(txn.before) '{{"message": ' if openai
    http-request set-var-fmt(txn.type) type if openai
    http-request set-var-fmt(txn.after) ', "param": null, "code": null}}' if openai
    http-request {answer(405, ' hdr Allow "GET, POST"')} if !{{ method {METHODS} }}
    # Else the gateway's parser says it, in plain text.
    http-request {answer(400)} if !{{ path_beg / }}
    http-request {answer(414)} if {{ url_len gt {MAX_URL} }}
    http-request {answer(431)} if {{ req.hdr_cnt gt {MAX_HEADERS} }}
    http-request {answer(431)} if {{ req.hdrs,length gt {MAX_HEADER_BYTES} }}
    acl up nbsrv(gateways) ge 1
    http-request return status 200 content-type text/plain string success if {{ path /-/healthz }} up
    http-request {answer(429, " hdr Retry-After 1")} if !up
    # All of a small body, or a buffer of a larger one: slow clients wait here and not at a gateway.
    http-request wait-for-body time {round(send_timeout_s * 1000)}ms
    http-request del-header x-forwarded-for
    option forwardfor
    http-request set-header x-forwarded-proto {"https" if certificate else "http"}
    http-request disable-l7-retry if {{ req.hdr(x-shoal-retry) -i never }}
    http-request disable-l7-retry unless {{ path,url_dec,concat(/) -m beg -f {folder}/retried.lst }}
    default_backend gateways
backend gateways
    balance leastconn
    http-reuse always
    option httpchk GET /-/ping
    default-server check inter 500ms fastinter 100ms downinter 100ms fall 3 rise 1
    # One that is busy may be late for a check; one that is dead is noticed by its first connection.
    default-server observe layer4 error-limit 1 on-error mark-down
{servers}
"""


def answers() -> dict[str, str]:
    """HAProxy's own answers by file: bodies, in which what the route's clients want is filled in, and the whole answer
    that stands for a 503: the clients of Hugging Face's routes retry one without end."""
    found = {}
    for status, (kind, message) in _ERRORS.items():
        before, after = "%[var(txn.before)]", "%[var(txn.after)]"
        text = f'{{"error": {before}{json.dumps(message)}, "%[var(txn.type,error_type)]": {json.dumps(kind)}{after}}}'
        found[f"{status}.json"] = text
    kind, message = _ERRORS[429]
    body = json.dumps({"error": message, "error_type": kind})
    found["429.http"] = (
        f"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-cache\r\nRetry-After: 1\r\nConnection: close\r\n\r\n{body}"
    )
    return found


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
