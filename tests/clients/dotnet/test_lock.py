""".NET's FileShare.None against `baton mutex`, both ways. BATON names the built binary; run.sh makes
what is needed and runs this in target/dotnet."""

import json
import os
import pathlib
import select
import subprocess
import tempfile
import unittest

BATON = os.environ["BATON"]
DEADLINE_S = 60
HOLD = ["log", "--", "sh", "-c", "echo held; cat > /dev/null"]


class Peer:
    """A process that says "held" when it has the mutex and keeps it until its standard input ends."""

    def __init__(self, command, environment):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0
        )

    def line(self, stream):
        if not select.select([stream], [], [], DEADLINE_S)[0]:
            raise TimeoutError("it says nothing")
        return stream.readline().decode()

    def waits(self):
        return self.line(self.process.stderr)

    def holds(self):
        said = self.line(self.process.stdout)
        if said != "held\n":
            raise AssertionError(said + self.process.stderr.read().decode())
        return self

    def end(self):
        self.process.communicate(timeout=DEADLINE_S)
        if self.process.returncode != 0:
            raise AssertionError(f"exit status {self.process.returncode}")

    def kill(self):
        self.process.kill()
        self.process.communicate(timeout=DEADLINE_S)


class Contract:
    """What every .NET is to see."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.environment = dict(os.environ) | {"BATON_MUTEX_DIR": folder.name + "/mutex"}
        self.lock = self.finish([BATON, "mutex", "path", "log"]).stdout.strip()
        self.peers = []
        # Those whom a failed test left behind.
        self.addCleanup(lambda: [peer.kill() for peer in self.peers if peer.process.poll() is None])

    def finish(self, command):
        return subprocess.run(
            command,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def start(self, command):
        self.peers.append(Peer(command, self.environment))
        return self.peers[-1]

    def dotnet(self, manner):
        program = pathlib.Path(self.runtime, "dotnet").absolute()
        return [str(program), "Lock.dll", manner, self.lock]

    def inside(self, *options):
        return self.start([BATON, "mutex", "run", *options, *HOLD])

    def outside(self):
        return self.start(self.dotnet("hold"))

    def attempt(self):
        """Whether .NET gets it now."""
        done = self.finish(self.dotnet("try"))
        self.assertIn(done.returncode, (0, 1), done.stderr)
        return done.returncode == 0

    def test_while_baton_holds_it_dotnet_does_not_get_it(self):
        for options in [], ["--shared"]:
            holder = self.inside(*options).holds()
            self.assertFalse(self.attempt())
            holder.end()
            self.assertTrue(self.attempt())

    def test_dotnet_gets_it_when_baton_ends(self):
        holder = self.inside().holds()
        waiter = self.outside()
        self.assertEqual(waiter.waits(), "busy\n")
        holder.end()
        waiter.holds().end()

    def test_while_dotnet_holds_it_baton_does_not_get_it_and_says_why(self):
        holder = self.outside().holds()
        for options in [], ["--shared"]:
            done = self.finish([BATON, "mutex", "run", "--no-wait", *options, *HOLD])
            self.assertEqual(done.returncode, 75, done.stderr)
            self.assertIn("held by a program outside baton", done.stderr)
        holder.end()
        self.assertEqual(self.finish([BATON, "mutex", "run", "--no-wait", *HOLD]).returncode, 0)

    def test_baton_gets_it_when_dotnet_ends_or_is_killed(self):
        for end in Peer.end, Peer.kill:
            holder = self.outside().holds()
            waiter = self.inside()
            self.assertIn("a program outside baton", waiter.waits())
            end(holder)
            waiter.holds().end()

    def test_the_status_names_dotnet(self):
        holder = self.outside().holds()
        done = self.finish([BATON, "mutex", "status", "log", "--json"])
        foreign = json.loads(done.stdout)["foreign"][0]
        self.assertEqual(foreign["pid"], holder.process.pid)
        self.assertIn("Lock.dll", foreign["command"])
        holder.end()


class DotNet31(Contract, unittest.TestCase):
    runtime = "3.1"


class DotNet80(Contract, unittest.TestCase):
    runtime = "8.0"


if __name__ == "__main__":
    unittest.main()
