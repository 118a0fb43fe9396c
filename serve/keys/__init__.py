"""Keys, limits, usage, request log and CORS of the gateway, behind one object: `Gatekeeper`. Imports no torch."""
