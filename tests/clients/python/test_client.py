"""The Python client against a real agent, over mutual TLS. BATON names the built binary."""

import hashlib
import json
import os
import pathlib
import shutil
import ssl
import subprocess
import tempfile
import threading
import unittest

import grpc

import baton_client
from baton.v1 import agent_pb2, agent_pb2_grpc, script_pb2, script_pb2_grpc

BATON = os.environ["BATON"]
DEADLINE_S = 60


class ClientTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="bp", dir="/tmp"))
        folders = {"CONFIG": "c", "STATE": "s", "RUNTIME": "r", "MUTEX": "m"}
        self.environment = dict(os.environ) | {
            f"BATON_{name}_DIR": str(self.root / folder) for name, folder in folders.items()
        }
        self.fingerprint = json.loads(self.baton("agent", "init", "--json"))["fingerprint"]
        self.certificate, self.key = self.make_identity()
        own = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certificate.decode())).hexdigest()
        self.baton("agent", "trust", own, "--name", "python")
        command = [BATON, "agent", "run", "--listen", "127.0.0.1:0"]
        self.agent = subprocess.Popen(
            command, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        while "the agent serves" not in (line := self.agent.stderr.readline()):
            self.assertNotEqual(line, "", "the agent ended")
        # The log is read and kept out of the way.
        threading.Thread(target=self.agent.stderr.read, daemon=True).start()
        self.address = (self.root / "r/agent.address").read_text().strip()
        self.channel = self.connect()

    def tearDown(self):
        self.channel.close()
        self.agent.terminate()
        self.agent.wait(DEADLINE_S)
        self.agent.stderr.close()
        shutil.rmtree(self.root)

    def baton(self, *words):
        return subprocess.check_output([BATON, *words], env=self.environment, text=True)

    def make_identity(self):
        """A certificate of another make than baton's own: RSA, by openssl."""
        paths = [self.root / "client.crt", self.root / "client.key"]
        request = "req -x509 -newkey rsa:2048 -nodes -subj /CN=python -days 2".split()
        files = ["-out", str(paths[0]), "-keyout", str(paths[1])]
        subprocess.run(["openssl", *request, *files], check=True, capture_output=True)
        return [path.read_bytes() for path in paths]

    def connect(self):
        return baton_client.connect(self.address, self.fingerprint, self.certificate, self.key)

    def run_script(self, text, **fields):
        spec = script_pb2.ScriptSpec(body=text.encode(), **fields)
        return baton_client.run(self.channel, spec)

    def test_a_script_runs_and_its_output_and_outcome_come_back(self):
        stdout, stderr, script = self.run_script(
            "echo out $1 $A; echo err >&2; exit 3",
            script_id="from-python",
            arguments=["one two"],
            environment={"A": "b"},
            labels={"project": "web"},
        )
        self.assertEqual((stdout, stderr), (b"out one two b\n", b"err\n"))
        self.assertEqual(script.phase, script_pb2.PHASE_DONE)
        self.assertEqual(script.outcome.exited.code, 3)
        self.assertEqual(dict(script.labels), {"project": "web"})
        self.assertEqual(script.output_bytes, len(stdout) + len(stderr))

    def test_a_script_that_waits_says_for_whom(self):
        gate = self.root / "gate"
        os.mkfifo(gate)
        stub = script_pb2_grpc.ScriptsStub(self.channel)
        holder = script_pb2.ScriptSpec(script_id="holder", body=f"read _ < {gate}".encode())
        stub.Start(script_pb2.StartRequest(spec=holder), timeout=DEADLINE_S)
        waits = []

        def on_wait(wait):
            named = [holder.script_id for holder in wait.holders]
            if named and not waits:
                # Only now, when it was told, the holder may end.
                gate.write_text("\n")
            waits.extend(named)

        spec = script_pb2.ScriptSpec(body=b"echo after")
        stdout, _, script = baton_client.run(self.channel, spec, on_wait)
        self.assertEqual((stdout, script.outcome.exited.code), (b"after\n", 0))
        self.assertEqual(set(waits), {"holder"})

    def test_a_bypassing_script_and_a_program_without_a_shell(self):
        spec = script_pb2.ScriptSpec(program="printf", arguments=["%s|", "a b", "$(c)"])
        spec.isolation.shared.at_most = 2
        stdout, _, script = baton_client.run(self.channel, spec)
        self.assertEqual(stdout, b"a b|$(c)|")
        self.assertEqual(script.isolation.shared.at_most, 2)

    def test_an_error_has_a_stable_reason(self):
        with self.assertRaises(grpc.RpcError) as caught:
            self.run_script(" ")
        self.assertEqual(caught.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
        self.assertEqual(baton_client.reason(caught.exception), "SCRIPT_EMPTY")
        _, _, script = self.run_script("true", interpreter="no-such")
        self.assertEqual(script.outcome.not_started.cause, script_pb2.NOT_STARTED_CAUSE_NOT_FOUND)

    def test_the_agent_says_what_it_is(self):
        stub = agent_pb2_grpc.AgentStub(self.channel)
        info = stub.Info(agent_pb2.InfoRequest(), timeout=DEADLINE_S)
        self.assertEqual(info.limits.body_bytes, 1024 * 1024)

    def test_the_unix_socket_needs_no_certificate(self):
        # The C core would send the socket's path as the authority, which HTTP/2 does not allow.
        options = [("grpc.default_authority", "localhost")]
        with grpc.insecure_channel(f"unix:{self.root}/r/agent.sock", options) as channel:
            spec = script_pb2.ScriptSpec(body=b"echo here")
            self.assertEqual(baton_client.run(channel, spec)[0], b"here\n")

    def test_who_is_not_trusted_gets_nothing(self):
        certificate, key = self.make_identity()
        stranger = baton_client.connect(self.address, self.fingerprint, certificate, key)
        stub = agent_pb2_grpc.AgentStub(stranger)
        with self.assertRaises(grpc.RpcError) as caught:
            stub.Info(agent_pb2.InfoRequest(), timeout=DEADLINE_S)
        self.assertEqual(caught.exception.code(), grpc.StatusCode.UNAVAILABLE)
        stranger.close()
        with self.assertRaises(ConnectionError):
            baton_client.connect(self.address, "0" * 64, certificate, key)


if __name__ == "__main__":
    unittest.main(verbosity=2)
