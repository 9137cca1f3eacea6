"""Serves a policy over HTTP and WebSocket, without Ray: the contract, the wire format, the sessions and the ASGI
app."""
