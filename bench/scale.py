#!/usr/bin/env python3
"""Measures how the cost of Outrigger grows: `python3 bench/scale.py [--binary FILE] [PART …]`.

Parts: routes hosts reload clients connections machines redis reports audit. Each prints a Markdown table; docs/scale.md says what they mean.
Only Python's standard library; `redis` and `reports` need a redis-server (`--redis FILE`). All
traffic stays on 127.0.0.1.

CPU time is that of the proxy's process, from /proc: it hardly depends on what else the machine does. The load generator is
slow, so the proxy is not saturated and a request costs more than in docs/performance.md: compare within a table.
"""

import argparse
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

BODY = b"x" * 100
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + BODY
TICK = os.sysconf("SC_CLK_TCK")
PARTS = ["routes", "hosts", "reload", "clients", "connections", "machines", "redis", "reports", "audit"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def get(port, path, timeout=30):
    """A response of the admin listener: its status line and body."""
    with socket.create_connection(("127.0.0.1", port), timeout) as s:
        s.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        data = b"".join(iter(lambda: s.recv(1 << 20), b""))
    head, _, body = data.partition(b"\r\n\r\n")
    return head.split(b"\r\n")[0].decode(), body


class Backend:
    """An app in a process of its own: 100 bytes for each request."""

    def __init__(self):
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self.port = listener.getsockname()[1]
        self.pid = os.fork()
        if self.pid == 0:
            self.serve(listener)

    @staticmethod
    def serve(listener):
        poll, clients = select.epoll(), {}
        listener.setblocking(False)
        poll.register(listener, select.EPOLLIN)
        while True:
            for fd, _ in poll.poll():
                if fd == listener.fileno():
                    try:
                        client, _ = listener.accept()
                    except BlockingIOError:
                        continue
                    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    clients[client.fileno()] = client
                    poll.register(client, select.EPOLLIN)
                    continue
                try:
                    data = clients[fd].recv(65536)
                except OSError:
                    data = b""
                if data:
                    clients[fd].sendall(ANSWER * data.count(b"\r\n\r\n"))
                else:
                    poll.unregister(fd)
                    clients.pop(fd).close()

    def close(self):
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


class Proxy:
    """A proxy with this configuration, in a directory of its own."""

    def __init__(self, args, config, env=None):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="scale-"))
        self.port, self.admin = free_port(), free_port()
        self.file = self.dir / "proxy.toml"
        self.write(config)
        environment = {**os.environ, "RUST_LOG": "error", **(env or {})}
        began = time.monotonic()
        self.log = open(self.dir / "log", "w")
        command = [args.binary, "--config", self.file]
        self.process = subprocess.Popen(command, cwd=self.dir, env=environment, stdout=self.log, stderr=self.log)
        while True:
            try:
                get(self.admin, "/healthz", 1)
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > began + 120:
                    sys.exit((self.dir / "log").read_text()[-3000:])
                time.sleep(0.005)
        self.start = time.monotonic() - began

    def write(self, config):
        config = config.replace("@PORT@", str(self.port)).replace("@ADMIN@", str(self.admin))
        partial = self.file.with_suffix(".partial")
        partial.write_text(config.replace("@DIR@", str(self.dir)))
        partial.rename(self.file)

    def cpu(self):
        """CPU time in seconds so far: user, and all."""
        fields = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        user, system = int(fields[11]) / TICK, int(fields[12]) / TICK
        return user, user + system

    def memory(self):
        """Resident memory in MiB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def descriptors(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def metric(self, name):
        """The sum of all series of a metric."""
        text = get(self.admin, "/metrics")[1].decode()
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def close(self):
        self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def base(app, more="", flags="prioritized_rate_limit = true\ncircuit_breaker = true\naudit_trail = false"):
    return f"""
[server]
listen = "127.0.0.1:@PORT@"
threads = 1
max_connections = 30000
max_address_share = "100%"
lame_duck = "0s"

[admin]
listen = "127.0.0.1:@ADMIN@"

[app]
address = "127.0.0.1:{app}"

[client]
idle_timeout = "10m"

[flags]
session_affinity = false
{flags}

{more}
"""


LIMITS = """
[identity]
unknown_keys = "count"

[rate_limits]
mode = "enforce"
max_keys = 100000
critical = "1000000/1s"
high = "1000000/1s"
medium = "1000000/1s"
low = "1000000/1s"
strict = "1000000/1s"
"""

# A key that was used once is not idle for a minute and a half.
SLOW = LIMITS.replace("1000000/1s", "1000/1d")


def request(path="/", key=None, host="localhost"):
    key = f"X-Api-Key: {key}\r\n" if key is not None else ""
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{key}\r\n".encode()


def connect(port):
    s = socket.create_connection(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    s.setblocking(False)
    return s


def send(port, seconds, requests, connections=16, count=None):
    """A closed loop; `requests(n)` makes the n-th. Returns the number of responses and their statuses."""
    poll, clients, statuses, n = select.epoll(), {}, {}, 0
    for _ in range(connections):
        s = connect(port)
        clients[s.fileno()] = [s, b""]
        poll.register(s, select.EPOLLIN)
        s.send(requests(n))
        n += 1
    answered, end = 0, time.monotonic() + seconds
    while time.monotonic() < end and (count is None or answered < count):
        for fd, _ in poll.poll(1):
            client = clients[fd]
            data = client[1] + client[0].recv(65536)
            head = data.find(b"\r\n\r\n")
            length = re.search(rb"(?i)content-length: (\d+)", data[:head]) if head > 0 else None
            if head < 0 or not length or len(data) < head + 4 + int(length[1]):
                if not data:
                    sys.exit("the proxy closed a connection")
                client[1] = data
                continue
            client[1] = b""
            statuses[data[9:12]] = statuses.get(data[9:12], 0) + 1
            answered += 1
            client[0].send(requests(n))
            n += 1
    for s, _ in clients.values():
        s.close()
    return answered, {k.decode(): v for k, v in statuses.items()}


def cost(proxy, seconds, requests, count=None):
    """CPU time for each request in µs, user and all: the median of three rounds. And the statuses of all."""
    send(proxy.port, 0.5, requests)
    rounds, statuses = [], {}
    for _ in range(1 if count else 3):
        before = proxy.cpu()
        answered, some = send(proxy.port, seconds, requests, count=count)
        rounds.append([(a - b) / answered * 1e6 for a, b in zip(proxy.cpu(), before)])
        statuses = {k: statuses.get(k, 0) + some.get(k, 0) for k in statuses.keys() | some.keys()}
    return [statistics.median(values) for values in zip(*rounds)], statuses


def rows(head, lines):
    print("\n| " + " | ".join(head) + " |\n|" + "---|" * len(head))
    for line in lines:
        print("| " + " | ".join(line) + " |", flush=True)


def route_table(n):
    """Routes that differ by path."""
    text = [f'[[routes]]\nname = "r{i}"\npath = "/api/v{i % 20}/things{i}/{{id}}"\npriority = "high"\n' for i in range(n)]
    return "\n".join(text)


def tenants(n):
    """Routes that differ by host only."""
    text = [f'[[routes]]\nname = "r{i}"\nhosts = ["t{i}.example.com"]\npath = "/**"\npriority = "high"\n' for i in range(n)]
    return "\n".join(text)


def routes(args, app):
    """Routes: load time, memory, CPU time of a request, series and time of a scrape."""

    def lines():
        for n in args.sizes or [1, 100, 1000, 10000]:
            config = base(app.port, LIMITS + route_table(n))
            with Proxy(args, config) as p:
                used = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run([args.binary, "check", p.file], stdout=subprocess.DEVNULL, check=False)
                now = resource.getrusage(resource.RUSAGE_CHILDREN)
                check = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
                size, idle = p.file.stat().st_size / 1024, p.memory()
                one = request(f"/api/v{(n - 1) % 20}/things{n - 1}/7")
                last, statuses = cost(p, args.seconds, lambda _: one)
                assert set(statuses) == {"200"}, statuses
                # Each route once, so that all have their series.
                for_all = [request(f"/api/v{i % 20}/things{i}/7") for i in range(n)]
                cost(p, 60, lambda i: for_all[i % n], count=n + 16)
                spread, _ = cost(p, args.seconds, lambda i: for_all[i % n])
                before, began = p.cpu()[1], time.monotonic()
                scrapes = 5
                for _ in range(scrapes):
                    _, page = get(p.admin, "/metrics")
                took = (time.monotonic() - began) / scrapes * 1000
                scrape_cpu = (p.cpu()[1] - before) / scrapes * 1000
                series = sum(1 for line in page.splitlines() if line and not line.startswith(b"#"))
                yield [
                    f"{n:,}", f"{size:,.0f} KiB", f"{check * 1000:,.0f} ms", f"{p.start * 1000:,.0f} ms", f"{idle:.1f} MiB",
                    f"{last[0]:.1f} · {last[1]:.1f}", f"{spread[0]:.1f} · {spread[1]:.1f}", f"{p.memory():.1f} MiB",
                    f"{series:,}", f"{len(page) / 1e6:.2f} MB", f"{took:,.0f} · {scrape_cpu:,.0f} ms",
                ]

    rows(["routes", "file", "check, CPU", "start", "memory", "request to the last, µs user · all", "to each in turn",
          "memory then", "series", "scrape", "its time · CPU"], lines())


def hosts(args, app):
    """Routes with the same path that differ by host."""

    def lines():
        for n in args.sizes or [1, 100, 1000, 10000]:
            with Proxy(args, base(app.port, LIMITS + tenants(n))) as p:
                costs = []
                for host in ("t0.example.com", f"t{n - 1}.example.com", "other.example.com"):
                    one = request("/", host=host)
                    costs.append(cost(p, args.seconds, lambda _: one)[0])
                yield [f"{n:,}", f"{p.start * 1000:,.0f} ms", *(f"{user:.1f} · {total:.1f}" for user, total in costs)]

    rows(["routes", "start", "request to the first, µs user · all", "to the last", "to none of them"], lines())


def latencies(port, seconds, one, during):
    """Latencies in ms of one connection that sends 400 requests a second from a process of its own, while `during` runs."""
    read, write = os.pipe()
    stop_read, stop_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        s, out = connect(port), []
        s.setblocking(True)
        end = time.monotonic() + seconds
        while time.monotonic() < end or not select.select([stop_read], [], [], 0)[0]:
            began = time.monotonic()
            s.sendall(one)
            s.recv(65536)
            out.append((time.monotonic() - began) * 1000)
            time.sleep(0.0025)
        with os.fdopen(write, "w") as f:
            f.write(" ".join(f"{ms:.3f}" for ms in out))
        os._exit(0)
    os.close(write)
    during()
    os.write(stop_write, b"x")
    with os.fdopen(read) as f:
        out = sorted(map(float, f.read().split()))
    os.waitpid(pid, 0)
    for fd in (stop_read, stop_write):
        os.close(fd)
    return out


def reload(args, app):
    """Requests while the configuration is reloaded, and while metrics are scraped."""

    def lines():
        for n in args.sizes or [1, 1000, 10000]:
            config = base(app.port, LIMITS + route_table(n))
            with Proxy(args, config) as p:
                for_all = [request(f"/api/v{i % 20}/things{i}/7") for i in range(n)]
                send(p.port, 60, lambda i: for_all[i % n], count=n + 16)
                took = []

                def scrape():
                    for _ in range(10):
                        began = time.monotonic()
                        get(p.admin, "/metrics")
                        took.append(time.monotonic() - began)

                def change():
                    for turn in range(3):
                        log, began = (p.dir / "log").stat().st_size, time.monotonic()
                        p.write(config.replace("[app]", f'[app]\nconnect_timeout = "{900 + turn}ms"'))
                        p.process.send_signal(signal.SIGHUP)
                        while "configuration is in force" not in (p.dir / "log").read_text()[log:]:
                            time.sleep(0.02)
                        took.append(time.monotonic() - began)

                for name, during in [("nothing", lambda: None), ("10 scrapes", scrape), ("3 reloads", change)]:
                    took.clear()
                    cpu = p.cpu()[1]
                    ms = latencies(p.port, args.seconds, for_all[n - 1], during)
                    at = lambda q: ms[min(len(ms) - 1, int(len(ms) * q))]
                    each = f"{statistics.median(took) * 1000:,.0f} ms" if took else "–"
                    yield [f"{n:,}", name, each, f"{at(.5):.2f}", f"{at(.99):.2f}", f"{at(.999):.2f}", f"{ms[-1]:.1f}",
                           f"{p.cpu()[1] - cpu:.2f} s"]

    rows(["routes", "meanwhile", "each takes", "p50 ms", "p99", "p99.9", "longest", "CPU"], lines())


def clients(args, app):
    """Distinct keys that are not idle, up to `max_keys` and beyond."""

    def lines():
        for n in args.sizes or [1000, 30000, 100000, 300000]:
            with Proxy(args, base(app.port, SLOW)) as p:
                start = p.memory()
                # Every key once; the first ones may be idle again at the end.
                send(p.port, 120, lambda i: request("/", f"key-{i}"), count=n)
                over = p.metric("outrigger_limit_overflow_total")
                spread, statuses = cost(p, args.seconds, lambda i: request("/", f"key-{i * 7919 % n}"))
                yield [f"{n:,}", f"{spread[0]:.1f} · {spread[1]:.1f}", f"{p.memory() - start:.1f} MiB",
                       f"{over:,.0f}", ", ".join(f"{k}: {v:,}" for k, v in statuses.items())]

    rows(["keys, of at most 100,000", "µs a request, user · all", "memory more", "overflows at the first", "statuses"], lines())


def connections(args, app):
    """Idle connections, each after one request, and active ones."""

    def lines():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for n in args.sizes or [1000, 3000, 9000, 18000]:
            with Proxy(args, base(app.port)) as p:
                send(p.port, 0.5, lambda _: request())
                memory, descriptors = p.memory(), p.descriptors()
                idle = []
                for _ in range(n):
                    s = connect(p.port)
                    s.setblocking(True)
                    idle.append(s)
                    s.sendall(request())
                    s.recv(65536)
                each = (p.memory() - memory) * 1024 / n
                more = (p.descriptors() - descriptors) / n
                before = p.cpu()[1]
                time.sleep(args.seconds)
                rest = (p.cpu()[1] - before) / args.seconds * 100
                few, _ = cost(p, args.seconds, lambda _: request())
                # One request after the other on each of the open connections.
                before, answered, end = p.cpu(), 0, time.monotonic() + args.seconds
                while time.monotonic() < end:
                    for s in idle[answered % n:][:16]:
                        s.sendall(request())
                        s.recv(65536)
                        answered += 1
                active = [(a - b) / answered * 1e6 for a, b in zip(p.cpu(), before)]
                yield [f"{n:,}", f"{each:.1f} KiB", f"{more:.2f}", f"{rest:.1f} %", f"{few[1]:.1f}", f"{active[1]:.1f}",
                       f"{(p.memory() - memory) * 1024 / n:.1f} KiB"]
                for s in idle:
                    s.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    rows(["connections", "memory each", "descriptors each", "CPU while idle", "µs a request on 16 others", "in turn on all",
          "memory each then"], lines())


KEYS = "0123456789abcdef0123456789abcdef"


def fleet(args, app, n, more=""):
    ports = [free_port() for _ in range(n)]
    peers = ", ".join(f'"127.0.0.1:{port}"' for port in ports)
    out = []
    for i, port in enumerate(ports):
        extra = f'[peers]\nlisten = "127.0.0.1:{port}"\nlist = [{peers}]\n{more}'
        env = {"OUTRIGGER_MACHINE": f"m{i}", "OUTRIGGER_AFFINITY_KEYS": KEYS, "OUTRIGGER_KEY_SECRET": KEYS}
        out.append(Proxy(args, base(app.port, extra), env))
    return out


def until_known(proxies):
    end = time.monotonic() + 60
    while any(p.metric("outrigger_machines") != len(proxies) for p in proxies):
        if time.monotonic() > end:
            sys.exit("the Machines do not find each other")
        time.sleep(0.5)


def machines(args, app):
    """Machines that probe each other: messages and CPU time of an idle one."""

    def lines():
        for n in args.sizes or [1, 2, 5, 10, 15]:
            proxies = fleet(args, app, n)
            try:
                until_known(proxies)
                time.sleep(2)
                before, seconds = [p.cpu()[1] for p in proxies], 2 * args.seconds
                trace = None
                if shutil.which("strace"):
                    command = ["strace", "-f", "-c", "-e", "trace=connect,accept4", "-p", str(proxies[0].process.pid)]
                    trace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
                time.sleep(seconds)
                # Of those that are not traced.
                rest = list(zip(proxies, before))[1:] or list(zip(proxies, before))
                cpu = statistics.mean(p.cpu()[1] - b for p, b in rest) / seconds
                calls = {}
                if trace:
                    trace.send_signal(signal.SIGINT)
                    for line in trace.communicate()[1].splitlines():
                        fields = line.split()
                        if fields and fields[-1] in ("connect", "accept4"):
                            calls[fields[-1]] = int(fields[3]) / seconds
                memory = statistics.mean(p.memory() for p in proxies)
                yield [str(n), f"{calls.get('connect', 0):.1f}", f"{calls.get('accept4', 0):.1f}", f"{1000 * cpu:.1f} ms",
                       f"{memory:.1f} MiB"]
            finally:
                for p in proxies:
                    p.close()

    rows(["Machines", "connections to others a second", "accepted (and calls without one)", "CPU a second", "memory"], lines())


class Redis:
    """A Redis server without persistence."""

    def __init__(self, args):
        if not args.redis:
            sys.exit("name a redis-server with --redis FILE")
        self.port, self.dir = free_port(), tempfile.mkdtemp(prefix="scale-redis-")
        command = [args.redis, "--port", str(self.port), "--dir", self.dir, "--save", "", "--loglevel", "warning"]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        time.sleep(1)

    def section(self, machines):
        return f'[rate_limits.redis]\nurl = "redis://127.0.0.1:{self.port}"\nmachines = {machines}\n'

    def info(self, section):
        with socket.create_connection(("127.0.0.1", self.port)) as s:
            s.sendall(f"INFO {section}\r\nQUIT\r\n".encode())
            return b"".join(iter(lambda: s.recv(65536), b"")).decode()

    def reports(self):
        found = re.search(r"cmdstat_evalsha:calls=(\d+)", self.info("commandstats"))
        return int(found[1]) if found else 0

    def cpu(self):
        text = self.info("cpu")
        return sum(float(re.search(rf"used_cpu_{kind}:(\S+)", text)[1]) for kind in ("user", "sys"))

    def close(self):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def redis(args, app):
    """Machines that share a limit of 100 a second through Redis, asked for twice as often, one after the other."""

    def lines():
        for n in args.sizes or [1, 3, 10]:
            with Redis(args) as server:
                limit = '[rate_limits]\nmode = "enforce"\nshared = "redis"\nmedium = "6000/1m"\n' + server.section(n)
                proxies = fleet(args, app, n, limit)
                try:
                    until_known(proxies)
                    time.sleep(2)
                    clients = [connect(p.port) for p in proxies]
                    for s in clients:
                        s.setblocking(True)
                    # The burst first, and then the measurement.
                    seconds, began, turn, sent = 4 * args.seconds, time.monotonic(), 0, {}
                    measured, before = began + 35, None
                    while time.monotonic() < measured + seconds:
                        if before is None and time.monotonic() >= measured:
                            before, sent = server.reports(), {}
                        s, turn = clients[turn % n], turn + 1
                        s.sendall(request())
                        status = s.recv(65536)[9:12].decode()
                        sent[status] = sent.get(status, 0) + 1
                        time.sleep(0 if time.monotonic() - began < 30 else 0.004)
                    reports = (server.reports() - before) / seconds
                    yield [str(n), f"{sum(sent.values()) / seconds:.0f}", f"{sent.get('200', 0) / seconds:.1f}",
                           f"{reports / n:.1f}", f"{reports:.1f}"]
                finally:
                    for p in proxies:
                        p.close()

    rows(["Machines", "asked a second", "admitted a second, of 100", "usage reports a second, each Machine", "in total"], lines())


def reports(args, app):
    """One Machine with many keys in use, in a limit of its own and in one that is shared through Redis."""

    def lines():
        with Redis(args) as server:
            for shared in (False, True):
                for n in args.sizes or [100, 1000, 10000]:
                    more = SLOW.replace("1000/1d", "100000/1h")
                    if shared:
                        more = more.replace("max_keys", 'shared = "redis"\nmax_keys') + server.section(1)
                    with Proxy(args, base(app.port, more), {"OUTRIGGER_KEY_SECRET": KEYS}) as p:
                        time.sleep(1.5)
                        before, used, began = server.reports(), server.cpu(), time.monotonic()
                        spread, _ = cost(p, args.seconds, lambda i: request("/", f"key-{i * 7919 % n}"))
                        count, took = server.reports() - before, time.monotonic() - began
                        each = f"{(server.cpu() - used) * 1e6 / count:.0f} µs" if count else "–"
                        yield ["shared" if shared else "own", f"{n:,}", f"{spread[0]:.1f} · {spread[1]:.1f}",
                               f"{count / took:,.0f}", each]

    rows(["limit", "keys in use", "µs a request, user · all", "usage reports a second", "CPU of Redis for one"], lines())


class Postgres:
    """A PostgreSQL server in a directory of its own. It refuses to run as root, so then it runs as `postgres`."""

    def __init__(self, programs):
        self.dir, self.port, self.programs = tempfile.mkdtemp(prefix="scale-postgres-"), free_port(), programs
        os.chmod(self.dir, 0o777)
        self.as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        data = f"{self.dir}/data"
        self.run(f"{programs}/initdb", "-D", data, "-U", "app", "--auth=trust", "--no-sync")
        command = [f"{programs}/postgres", "-D", data, "-p", str(self.port), "-k", self.dir]
        self.process = subprocess.Popen([*self.as_user, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while time.monotonic() < end:
            try:
                socket.create_connection(("127.0.0.1", self.port)).close()
                break
            except OSError:
                time.sleep(0.1)
        time.sleep(1)
        self.psql = [f"{programs}/psql", "-h", self.dir, "-p", str(self.port), "-U", "app", "postgres", "-Atc"]
        self.query("create database audit")
        self.url = f"postgres://app@127.0.0.1:{self.port}/audit"

    def run(self, *command):
        done = subprocess.run([*self.as_user, *command], capture_output=True, text=True, cwd="/", check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return done.stdout

    def query(self, text):
        return self.run(*self.psql, text)

    def close(self):
        self.run(f"{self.programs}/pg_ctl", "-D", f"{self.dir}/data", "-m", "immediate", "stop")
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)


def audit(args, app):
    """The audit log: CPU time and bytes of an entry on disk and, with `--postgres`, in PostgreSQL."""

    def lines():
        variants = ["off", "every request"] + (["every request, and PostgreSQL"] if args.postgres else [])
        for name in variants:
            on, server = name != "off", Postgres(args.postgres) if "PostgreSQL" in name else None
            flags = f"prioritized_rate_limit = true\ncircuit_breaker = true\naudit_trail = {str(on).lower()}"
            section = '[audit]\ndirectory = "@DIR@/trail"\ndefault = "data"\n' if on else ""
            env = {"OUTRIGGER_AUDIT_DATABASE_URL": server.url} if server else {}
            try:
                with Proxy(args, base(app.port, LIMITS + section, flags), env) as p:
                    entries = lambda: p.metric("outrigger_audit_entries_total") if on else 0
                    before = entries()
                    began = time.monotonic()
                    spread, _ = cost(p, args.seconds, lambda i: request(f"/items/{i}", f"key-{i % 1000}"))
                    time.sleep(1)
                    written = entries() - before
                    size = sum(f.stat().st_size for f in (p.dir / "trail").rglob("*") if f.is_file()) if on else 0
                    each = f"{size / written:.0f}" if written else "–"
                    stored = shipped = "–"
                    if server:
                        while p.metric("outrigger_audit_unshipped_entries") and time.monotonic() < began + 120:
                            time.sleep(0.1)
                        shipped = f"{written / (time.monotonic() - began):,.0f}"
                        tables = "select sum(pg_total_relation_size(relid)) from pg_catalog.pg_statio_user_tables"
                        server.psql[-2] = "audit"
                        stored = f"{int(server.query(tables)) / written:.0f}"
                    yield [name, f"{spread[0]:.1f} · {spread[1]:.1f}", f"{written:,.0f}", each, stored, shipped]
            finally:
                if server:
                    server.close()

    rows(["audit log", "µs a request, user · all", "entries", "bytes each on disk", "in PostgreSQL", "shipped a second, at least"],
         lines())


def main():
    q = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    q.add_argument("parts", nargs="*", default=PARTS, metavar="PART", help=" ".join(PARTS))
    q.add_argument("--binary", default="target/release/outrigger")
    q.add_argument("--redis", default=shutil.which("redis-server"))
    q.add_argument("--postgres", help="the directory of initdb, postgres and psql")
    q.add_argument("--seconds", type=float, default=3)
    q.add_argument("--sizes", type=int, nargs="*", help="replaces the sizes of a part")
    args = q.parse_args()
    args.binary = str(pathlib.Path(args.binary).resolve())
    app = Backend()
    try:
        for part in args.parts:
            if part not in PARTS:
                q.error(f"no part {part}: {' '.join(PARTS)}")
            print(f"\n## {part}\n\n{globals()[part].__doc__}")
            globals()[part](args, app)
    finally:
        app.close()


if __name__ == "__main__":
    main()
