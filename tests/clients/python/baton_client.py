"""Runs a script on a baton agent and prints its output: a client in plain grpcio.

The messages are generated from proto/ (see README.md beside this file). Both sides are pinned: the
agent trusts the SHA-256 fingerprint of this client's certificate, this client that of the agent's.
"""

import argparse
import hashlib
import ssl
import sys
import uuid

import grpc
from google.rpc import error_details_pb2, status_pb2

from baton.v1 import script_pb2, script_pb2_grpc


def connect(address: str, fingerprint: str, certificate: bytes, key: bytes) -> grpc.Channel:
    """A channel to the agent at HOST:PORT, if its certificate has this fingerprint (hex)."""
    host, port = address.rsplit(":", 1)
    agent = ssl.get_server_certificate((host, int(port)))
    seen = hashlib.sha256(ssl.PEM_cert_to_DER_cert(agent)).hexdigest()
    if seen != fingerprint:
        raise ConnectionError(f"agent has fingerprint {seen}, expected {fingerprint}")
    # From here on only that very certificate is accepted.
    credentials = grpc.ssl_channel_credentials(agent.encode(), key, certificate)
    options = [("grpc.ssl_target_name_override", "baton-agent")]
    return grpc.secure_channel(address, credentials, options)


def reason(error: grpc.RpcError) -> str:
    """The stable reason of an error: google.rpc.ErrorInfo."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info.reason
    return ""


def run(channel: grpc.Channel, spec: script_pb2.ScriptSpec, on_wait=lambda wait: None):
    """Runs a script; returns stdout, stderr and the script as it stands at its end."""
    output = {script_pb2.STREAM_STDOUT: b"", script_pb2.STREAM_STDERR: b""}
    script = None
    request = script_pb2.RunRequest(spec=spec)
    for response in script_pb2_grpc.ScriptsStub(channel).Run(request):
        event = response.event
        if event.HasField("output"):
            output[event.output.stream] += event.output.data
        else:
            script = event.script
            for wait in script.waits:
                on_wait(wait)
    return output[script_pb2.STREAM_STDOUT], output[script_pb2.STREAM_STDERR], script


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address", help="HOST:PORT of the agent")
    parser.add_argument("fingerprint", help="what `baton agent init` printed there")
    parser.add_argument("certificate", help="this client's certificate, PEM")
    parser.add_argument("key", help="its key, PEM")
    parser.add_argument("script", help="the text of the script")
    arguments = parser.parse_args()
    with open(arguments.certificate, "rb") as file:
        certificate = file.read()
    with open(arguments.key, "rb") as file:
        key = file.read()
    spec = script_pb2.ScriptSpec(script_id=str(uuid.uuid4()), body=arguments.script.encode())
    with connect(arguments.address, arguments.fingerprint, certificate, key) as channel:
        told = lambda wait: print(f"waiting, position {wait.position}: {wait.reason}", file=sys.stderr)
        stdout, stderr, script = run(channel, spec, told)
    sys.stdout.buffer.write(stdout)
    sys.stderr.buffer.write(stderr)
    if script.outcome.HasField("exited"):
        return script.outcome.exited.code
    print(script.outcome, file=sys.stderr)
    return 70


if __name__ == "__main__":
    sys.exit(main())
