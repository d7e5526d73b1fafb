#!/usr/bin/env python3
"""Ends what hangs and what has given up; an event listener of supervisord.

    outrigger-watchdog PROGRAM=URL …

PROGRAM is the name of an executable that supervisord runs, URL what it answers while it lives; any answer counts,
also an error, since a program that refuses is no program that hangs. Every TICK each is asked; after MISSES
times in a row without an answer it gets SIGKILL, and supervisord starts it again. SIGTERM would not do: a process
that hangs does not drain, and waiting for it would only lengthen the outage.

When supervisord gives a program up (FATAL), supervisord itself is ended, so that the Machine ends and Fly's restart
policy gives it a new start. Without this it would stay up, useless, for ever. supervisord leaves with 0 after any
SIGTERM, as after one that was asked for; so once everything else has drained and it ends this listener, the last one,
it gets SIGKILL, and who looks at its exit sees a failure.

The protocol: https://supervisord.org/events.html. Standard output belongs to it, so messages go to standard error.
"""

import os
import signal
import sys
import urllib.error
import urllib.request

MISSES = 3  # with TICK_5 and TIMEOUT: between 12 and 20 seconds until a hung program is killed
TIMEOUT = 2  # seconds for one answer


def say(message):
    print(f"watchdog: {message}", file=sys.stderr, flush=True)


def is_alive(url):
    # A program that listens on every address is asked on the loopback one.
    url = url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
    # No proxy: the environment may name one for the way out, and this must not take it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(url, timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def siblings(executable):
    """The processes that supervisord started from this executable."""
    supervisord = str(os.getppid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as stat:
                parent = stat.read().rpartition(")")[2].split()[1]
            name = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        except (OSError, IndexError):
            continue  # ended meanwhile, or somebody else's
        # A program replaced on disk while it runs reads "NAME (deleted)".
        if parent == supervisord and name.partition(" ")[0] == executable:
            yield int(pid)


class Watchdog:
    def __init__(self, probes):
        self.probes = probes
        self.misses = dict.fromkeys(probes, 0)
        self.is_stopping = False
        self.has_given_up = False
        self.supervisord = os.getppid()

    def handle(self, event, payload):
        if event == "SUPERVISOR_STATE_CHANGE_STOPPING":
            # What drains now may well stop answering first.
            self.is_stopping = True
        elif event == "PROCESS_STATE_FATAL" and not self.is_stopping:
            say(f"{payload.get('processname')} has given up, so all ends for a new start")
            self.has_given_up = True
            os.kill(self.supervisord, signal.SIGTERM)
        elif event.startswith("TICK_") and not self.is_stopping:
            for executable, url in self.probes.items():
                self.probe(executable, url)

    def leave(self, *_):
        # Not its parent any more: it is gone, and its number may be another's.
        if self.has_given_up and os.getppid() == self.supervisord:
            os.kill(self.supervisord, signal.SIGKILL)
        sys.exit()

    def probe(self, executable, url):
        running = list(siblings(executable))
        # One that is not there is supervisord's own business.
        if not running or is_alive(url):
            self.misses[executable] = 0
            return
        self.misses[executable] += 1
        say(f"{executable} does not answer {url} ({self.misses[executable]} of {MISSES})")
        if self.misses[executable] >= MISSES:
            self.misses[executable] = 0
            for pid in running:
                say(f"killing {executable} (process {pid}), which hangs")
                os.kill(pid, signal.SIGKILL)


def fields(text):
    return dict(pair.partition(":")[::2] for pair in text.split())


def main():
    probes = dict(argument.split("=", 1) for argument in sys.argv[1:])
    watchdog = Watchdog(probes)
    signal.signal(signal.SIGTERM, watchdog.leave)
    while True:
        print("READY", flush=True)
        header = sys.stdin.readline()
        if not header:
            return  # supervisord is gone
        head = fields(header)
        payload = fields(sys.stdin.read(int(head["len"])))
        try:
            watchdog.handle(head["eventname"], payload)
        except Exception as error:  # pylint: disable=broad-except
            # Better blind for one event than gone: nobody watches the watchdog.
            say(f"{head['eventname']}: {error!r}")
        sys.stdout.write("RESULT 2\nOK")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
