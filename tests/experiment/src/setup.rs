//! The part of the document that says what was run, and how to read the results.

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::{FACTOR, seconds};
use crate::script::{DEADLINE, Fault, Flood, Kind, OVERLOAD, QUEUE, Script, WORKERS, capacity, clock, times};
use crate::side::{POOL, Side};

/// The setup.
pub fn what_was_run(text: &mut String, script: &Script, sides: &[Side]) {
    let seed = sides.first().map_or(1, |side| side.seed);
    let all = script.arrivals(seed);
    let floods = all.iter().filter(|arrival| arrival.is_flood).count();
    let rate = (all.len() - floods) as f64 / script.length().as_secs_f64();
    let _ = write!(
        text,
        "## Setup\n\n\
         **Time.** {} minutes in {:.0} seconds: every duration is divided by {FACTOR}: the script, the edge's \
         settings, the app's start, the clients' timeout, and each duration and rate of the proxies' configuration \
         (`tests/experiment/proxy.toml`). Below, times are those of the hour; latencies are those of the run, in \
         which a read takes {} ms (a third of a second of the hour).\n\n\
         **The app.** A separate process, the same program on each side: {WORKERS} workers and a queue of {QUEUE}; \
         when the queue is full, it responds with 503 at once. A request sleeps for 0.5 to 1.5 times the mean of its \
         kind:{}. About half of that is the database. One app can serve {:.0} requests a second of the mix. It takes \
         {} s to start, and its supervisor {} s to notice that it ended.\n\n\
         **The edge.** The project's stand-in for Fly's edge (`tests/edge/`), configured as in `fly.toml`; routing \
         learns of state changes after 2 s. A request that a Machine had begun when it broke off is sent again if it \
         is idempotent: whether Fly does that is *not established*, so one column is for an edge that never \
         does.\n\n\
         **The clients.** {:.0} requests a second from 200 addresses (60 % reads, 20 % writes, 10 % checkouts, 10 % \
         searches), at random times that are the same for each side. Each is sent when it is due, even if earlier \
         ones are not complete; its latency counts from then. Clients keep their cookie, wait for {DEADLINE} s, and \
         do not retry. Floods are counted separately:\n\n",
        script.minutes,
        script.length().as_secs_f64(),
        Kind::Read.work().0.as_millis(),
        each_kind(|kind| format!(" {} {} ms", kind.name(), kind.work().0.as_millis())),
        capacity(),
        times::APP_START,
        times::SUPERVISOR,
        rate,
    );
    let _ = write!(
        text,
        "- scrapers: 8 addresses send reads, {:.1} times the capacity of one app;\n\
         - a crowd: 200 addresses send searches, the most expensive and least important requests, {:.1} times the \
         capacity of one app, and ignore `Retry-After`.\n\n\
         **The script.**\n\n\
         | from | to | |\n\
         |---|---|---|\n",
        Flood::Scrapers.times_capacity(),
        Flood::Crowd.times_capacity(),
    );
    for line in &script.lines {
        let words = match line.fault {
            Fault::MachineKilled(_) => format!(
                "a Machine is killed with all its processes; {:.0} s later another host boots it, in {} s",
                times::REPLACEMENT,
                times::MACHINE_BOOT
            ),
            Fault::AppCrash(_) => "an app is killed; its supervisor restarts it".to_owned(),
            Fault::AppHang(_) => {
                format!(
                    "an app hangs; after {:.0} s a watchdog kills it, and its supervisor restarts it",
                    times::WATCHDOG
                )
            }
            Fault::SlowDatabase(factor) => format!("the database takes {factor} times as long"),
            Fault::Deploy(outrigger_edge::Strategy::Rolling) => "a rolling deploy, one Machine at a time".to_owned(),
            Fault::Deploy(outrigger_edge::Strategy::BlueGreen) => "a blue-green deploy".to_owned(),
            Fault::Burst(Flood::Scrapers) => "the scrapers send requests".to_owned(),
            Fault::Burst(Flood::Crowd) => "the crowd sends requests".to_owned(),
        };
        let _ = writeln!(text, "| {} | {} | {words} |", clock(line.begins()), clock(line.ends()));
    }
    text.push('\n');
    if sides.iter().any(|side| side.scaling.is_some()) {
        autoscaling(text);
    }
    let _ = write!(
        text,
        "**Overload.** After the hour, without faults: the mix of well-behaved clients at {OVERLOAD} times the \
         capacity of one app ({:.0} requests a second), from so many addresses that no rate limit applies, for {} s, \
         of which the first {} do not count.\n\n",
        OVERLOAD * capacity(),
        script.overload.as_secs(),
        script.warm_up.as_secs(),
    );
}

fn autoscaling(text: &mut String) {
    let _ = write!(
        text,
        "**Autoscaling.** The last column starts with {} Machines of a pool of {}. The rules are those of \
         `config/autoscaler/fly-autoscaler.yml`: the windows and steps of their queries and the interval are divided by \
         {FACTOR} (`[5m:15s]` becomes `{}`). Limits of latencies are not, since the app's work is not compressed: a p99 \
         above 1 s cannot occur, because clients wait for {:.0} ms of the run, so only CPU and the minimum act. A real \
         Prometheus answers the queries. It scrapes the proxies, and a stand-in for Fly's own metrics: a Machine's CPU is \
         the share of its app's workers that are busy, its memory does not change. The experiment then does what \
         fly-autoscaler's source does with the results: it starts stopped Machines up to the minimum, stops started ones \
         down to the maximum, lowest ids first, and does nothing during a deploy. A Machine takes {} s until its processes \
         start (an assumption), and then as long as its app. A stop is a signal, on which Outrigger drains, without a \
         cordon. The edge starts no Machine itself, although `fly.toml` allows that, since the stand-in has no locks for Machines.\n\n",
        POOL.0,
        POOL.1,
        crate::clock::query("[5m:15s]"),
        1000.0 * seconds(DEADLINE).as_secs_f64(),
        times::MACHINE_BOOT,
    );
}

/// Minutes of the hour.
pub fn minutes(run: Duration) -> f64 {
    run.as_secs_f64() * f64::from(FACTOR) / 60.0
}

fn each_kind(words: impl Fn(Kind) -> String) -> String {
    Kind::ALL.map(words).join(",")
}

/// How to read the results, what limits them, and how to repeat them.
pub fn remarks(text: &mut String, sides: &[Side], script: &Script) {
    let _ = write!(
        text,
        "## Interpretation and limits\n\n\
         - **One bare app is a realistic baseline**: it is the setup before Outrigger. With one Machine, every kill \
         and every rolling deploy is an outage. The column of three bare apps shows the effect of Machines alone.\n\
         - **p99 covers good responses only.** An app that rejects requests at once has no slow responses: read p99 \
         together with availability.\n\
         - **A rejection counts as a failure**, even a 503 with `Retry-After` to a well-behaved client.\n\
         - **A `POST` that an app or a Machine had begun when it died or hung fails**: it is not sent again, because its effect is \
         unknown. With three Machines, {:.1} of them are expected to be in that state in the {} kills, crashes and hangs \
         of this hour; how many there are differs with the seed. No proxy can avoid these failures.\n\
         - **A hang is noticed from requests**, before health checks fail: a `GET` without a response is sent to a peer \
         as well (a hedged request), or, after `retry.attempt_timeout`, instead; after three such attempts in a row all \
         requests go to peers ([failure.md](failure.md#slow-attempts-and-hedged-requests)).\n\
         - **In a flood Outrigger rejects the least important requests first**, here searches, and among equally important \
         ones those of clients that take more than others ([overload.md](overload.md#queue-fairness-rejections)). The \
         crowd is hard to tell apart: each of its clients sends few requests, and each Machine sees a part of them.\n\
         - **Good responses are counted, not their work.** Under overload Outrigger rejects searches, which cost \
         four times as much as reads, so there are more responses than the apps' capacity for the whole mix; the \
         next row shows the share of the apps' time that went into good responses.\n\
         - **Some of Outrigger's times are fixed**, and are not divided: for example, it measures latencies over half \
         a minute, which is seven minutes of the hour, so that hedged requests can come late after a slow database or a flood. \
         Every time that has a key is divided.\n\
         - **Autoscaling is slow by design**: its rules wait for minutes, so that short floods and restarts do not change \
         the number of Machines. Until then Outrigger sheds load.\n\
         - **An hour of faults is not a year.** It is far worse than a usual hour: compare the sides, and do not \
         read the figures as a service's availability.\n\
         - **Work is sleep**, so that the computer, which runs the load, the edge and all sides' processes, is not \
         the bottleneck; the CPU rows show how busy it was, including other programs.\n",
        script.posts_lost(3),
        script.deaths(),
    );
    if let Some(busiest) = sides
        .iter()
        .flat_map(|side| side.busy.iter().chain(&side.busy_overload))
        .map(|busy| busy.all)
        .max_by(f64::total_cmp)
        && busiest > 0.9
    {
        let _ = writeln!(
            text,
            "- **The computer was {:.0} % busy in its worst second**: interpret the latencies of that time with care.",
            100.0 * busiest
        );
    }
    text.push_str(
        "\n## How to repeat it\n\n\
         `cargo xtask experiment` takes about 25 minutes, plus the build; use a computer that is otherwise \
         idle. `--quick` takes a few seconds a side, `--sides one,outrigger` selects sides, `--seeds 1,2,3,4` runs three \
         with Outrigger (or the sides of `--sides`) with other random numbers, too: the main figures are those of the first. \
         Every failed request of a well-behaved client is in `target/experiment/failures-SIDE.tsv`, with its id, time, \
         response and the lines about it in the proxies' logs; the logs of all processes are in \
         `target/experiment/SIDE`, those of the autoscaler's decisions in `autoscaler.log`. The program's output has the \
         number of failures by fault, kind and reason.\n",
    );
}
